"""Helpers that every other part of the package may use: files, hashing, seeds, typed YAML, memory."""
