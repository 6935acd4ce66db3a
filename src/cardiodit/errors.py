"""Errors that a user can fix: their text is meant for the user."""

from collections.abc import Callable
from typing import Any


class CardioDiTError(ValueError):
    """Base class for user-fixable errors. The text says what was wrong, where, and what to do; the CLI prints it."""


class Problems:
    """A list of problems, reported in one error so that a user can fix all of them at once."""

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


def try_all(*functions: Callable[[], Any]) -> list[Any]:
    """Call every function and return the results; user-fixable errors are collected and raised as one."""
    results: list[Any] = []
    problems: list[str] = []
    for function in functions:
        try:
            results.append(function())
        except CardioDiTError as problem:
            problems.append(str(problem))
    if problems:
        raise CardioDiTError("\n".join(problems))
    return results
