"""The one exception that means "you can mend this": its text is meant for the user."""

from collections.abc import Callable
from typing import Any


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


def try_all(*works: Callable[[], Any]) -> list[Any]:
    """Does all of it; what goes wrong comes in one error, so that nobody mends one thing only to meet the next."""
    results: list[Any] = []
    problems: list[str] = []
    for work in works:
        try:
            results.append(work())
        except CardioDiTError as problem:
            problems.append(str(problem))
    if problems:
        raise CardioDiTError("\n".join(problems))
    return results
