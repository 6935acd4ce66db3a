"""Checks for patient data and other files that must not be published with a model."""
