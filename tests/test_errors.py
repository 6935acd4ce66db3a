"""Errors that gather."""

import pytest

from cardiodit.errors import CardioDiTError, Problems, try_all


def fail(text: str) -> None:
    raise CardioDiTError(text)


def test_everything_is_tried_and_everything_wrong_is_said() -> None:
    assert try_all(lambda: 1, lambda: "two") == [1, "two"]
    with pytest.raises(CardioDiTError, match="^first\nthird$"):
        try_all(lambda: fail("first"), lambda: 2, lambda: fail("third"))
    with pytest.raises(ZeroDivisionError):  # what nobody can mend is not gathered
        try_all(lambda: 1 // 0)


def test_problems_come_as_a_list_with_advice() -> None:
    problems = Problems("The files cannot be used")
    problems.raise_if_any()
    problems.add("a is missing")
    problems.add("b is empty")
    with pytest.raises(
        CardioDiTError, match="^The files cannot be used:\n  - a is missing\n  - b is empty\nMend them.$"
    ):
        problems.raise_if_any("Mend them.")
