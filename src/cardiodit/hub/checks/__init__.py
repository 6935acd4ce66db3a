"""What must not leave the house with a model."""
