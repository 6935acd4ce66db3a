"""Clinical conditions of many samples: a table with one row per sample, or rows drawn from a cohort's manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import read_table
from cardiodit.models.clinical_conditions import ClinicalConditions

NAMING = ("subject", "image")  # columns of a table that only name its rows
DRAW = 0xC0  # keeps the draw of a row apart from that of the sample's noise

Values = dict[str, float | str]


class ConditionRows(Protocol):
    """Conditions by sample number."""

    def __getitem__(self, index: int) -> Values: ...


class ConditionTable:
    """Rows of a table: sample i is given row i, and the last row is followed by the first.

    Args:
        rows: values by name; blank ones are not given.
        conditions: the model's conditions.
        names: names of the rows in errors.
        extrapolate: allow numbers outside the training cohort's range.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        conditions: ClinicalConditions,
        names: Sequence[str],
        extrapolate: bool = False,
    ) -> None:
        self.rows = [conditions.values_of(numbers) for numbers in conditions.numbers_of(rows, names, extrapolate)]

    @classmethod
    def read(cls, path: Path, conditions: ClinicalConditions, extrapolate: bool = False) -> "ConditionTable":
        """Read a CSV whose columns are conditions; columns called subject or image only name the rows."""
        lines = read_table(path, ())
        conditions.check_names([name for name in lines[0][1] if name not in NAMING])
        names = [f"{path.name}, line {line}" for line, _ in lines]
        return cls([row for _, row in lines], conditions, names, extrapolate)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Values:
        return self.rows[index % len(self.rows)]


class ConditionsLike:
    """Rows drawn at random from a cohort, each as a whole, so that values occur together as they do in patients.

    The row of sample i depends on the seed and i alone.

    Args:
        path: manifest of the cohort, of which the columns that are conditions of the model are used.
        conditions: the model's conditions.
        seed: random seed.
        extrapolate: allow numbers outside the training cohort's range.
    """

    def __init__(self, path: Path, conditions: ClinicalConditions, seed: int, extrapolate: bool = False) -> None:
        lines = read_table(path, ())
        self.missing = [name for name in conditions if name not in lines[0][1]]
        if len(self.missing) == len(conditions):
            raise CardioDiTError(f"{path} has none of the columns {', '.join(conditions)}, which are the conditions.")
        names = [f"{path.name}, line {line}" for line, _ in lines]
        self.table = ConditionTable([row for _, row in lines], conditions, names, extrapolate)
        self.seed = seed

    def __getitem__(self, index: int) -> Values:
        generator = generator_for(self.seed ^ DRAW, index)
        return self.table[int(torch.randint(len(self.table), (), generator=generator))]


def parse_conditions(words: Sequence[str]) -> dict[str, str]:
    """Return the conditions that words such as `ef=35` state."""
    stated: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in stated:
            raise CardioDiTError(f"--condition {word}: expected NAME=VALUE, such as ef=35, and each name once.")
        stated[name] = value
    return stated
