"""Evaluation of generated volumes against real ones."""
