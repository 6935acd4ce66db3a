"""The one exception that means "you can mend this": its text is meant for the user."""


class CardioDiTError(ValueError):
    """Says what was wrong, where, what was expected and what to do. The command line prints it as one line."""


class Problems:
    """Gathers sentences, so that a user can mend everything at once instead of one thing a run."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.found: list[str] = []

    def add(self, sentence: str) -> None:
        self.found.append(sentence)

    def raise_if_any(self, advice: str = "") -> None:
        if not self.found:
            return
        lines = "".join(f"\n  - {sentence}" for sentence in self.found)
        raise CardioDiTError(f"{self.heading}:{lines}{advice and chr(10)}{advice}")
