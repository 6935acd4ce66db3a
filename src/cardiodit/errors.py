"""The one exception that means "you can mend this": its text is meant for the user."""


class CardioDiTError(ValueError):
    """Says what was wrong, where, what was expected and what to do. The command line prints it as one line."""
