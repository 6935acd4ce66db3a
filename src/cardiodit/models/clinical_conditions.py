"""Clinical conditions of a denoiser: columns of a cohort, such as diagnosis, EF and EDV, that a sample can be given.

One record, `ClinicalConditions`, is shared by training, models, pipelines and cards. It lists each column with its
vocabulary (categories) or its unit and the cohort's range (numbers), lives as plain values in the model's config, and
turns a row such as `{"ef": 35, "diagnosis": "dilated"}` into one number per column, where NaN stands for a missing
value. One module, `ConditionEmbedding`, adds an embedding of each column to that of the time. Every column has a
null embedding of its own, so that each can be missing for a patient, dropped in training and left out of a request
independently of the others. Class labels (`class_labels`) are separate from conditions and work without them.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from cardiodit.errors import CardioDiTError, Problems

MISSING = math.nan  # stands for a value that is not given
HARMONICS = 4  # of the embedding of a number over the cohort's range
UNITS = {
    **dict.fromkeys(("ef", "lv_ef", "rv_ef", "lv_ef_percent", "rv_ef_percent"), "%"),
    **dict.fromkeys(("edv", "esv", "lv_edv", "lv_esv", "rv_edv", "rv_esv", "stroke_volume"), "mL"),
    **dict.fromkeys(("lv_edv_ml", "lv_esv_ml", "rv_edv_ml", "rv_esv_ml"), "mL"),
    **dict.fromkeys(("mass", "lv_mass", "lv_mass_g"), "g"),
    "age": "years",
    "heart_rate": "1/min",
    "bsa": "m²",
    "height": "cm",
    "weight": "kg",
}
CATEGORY = "category"  # in place of a unit: numbers are names of categories
MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class ClinicalCondition:
    """One column.

    Args:
        name: column of the manifest, and argument of the pipeline's call.
        values: categories in the order of their numbers; None for numbers.
        unit: unit of numbers; empty if unknown.
        low, high: smallest and largest number in the training cohort.
        known: number of training samples that have a value; None if unknown.
    """

    name: str
    values: tuple[str, ...] | None = None
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    known: int | None = None

    @property
    def range(self) -> str:
        """The allowed values in words."""
        if self.values is not None:
            return ", ".join(self.values)
        return f"{self.low:g} to {self.high:g}{self.unit and f' {self.unit}'}"

    @property
    def middle(self) -> float:
        """A number in the middle of the range, with few digits."""
        exact = (self.low + self.high) / 2
        short = float(f"{exact:.3g}")
        return short if self.low <= short <= self.high else exact

    def number(self, value: Any, extrapolate: bool = False) -> float:
        """Return a value as the model takes it, NaN for None, blank or NaN; raise an error that names the range."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return MISSING
        if self.values is not None:
            return MISSING if isinstance(value, float) and math.isnan(value) else self._category(value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise CardioDiTError(f"{self.name}={value!r} is not a number; the cohort's range is {self.range}") from None
        if math.isinf(number):
            raise CardioDiTError(f"{self.name}={value!r} is not finite; the cohort's range is {self.range}")
        # Requests are written with a few digits, ranges with all.
        tolerance = 1e-6 * max(abs(self.low), abs(self.high))
        if not extrapolate and not math.isnan(number) and not self.low - tolerance <= number <= self.high + tolerance:
            raise CardioDiTError(
                f"{self.name}={number:g} is outside the range of the training cohort, {self.range}; choose a value "
                "within it, or allow others with extrapolate (--extrapolate)"
            )
        return number

    def _category(self, value: Any) -> float:
        assert self.values is not None
        text = str(value).strip()
        if text not in self.values:
            close = get_close_matches(text, self.values, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CardioDiTError(f"{self.name}={value!r} is not one of {self.range}{hint}")
        return float(self.values.index(text))

    def value(self, number: float) -> float | str | None:
        """Return what a number of the model stands for: a category, a number, or None if it is missing."""
        if math.isnan(number):
            return None
        return number if self.values is None else self.values[int(number)]

    def to_config(self) -> dict[str, Any]:
        known = {} if self.known is None else {"known": self.known}
        if self.values is not None:
            return {"values": list(self.values), **known}
        return {"unit": self.unit, "low": self.low, "high": self.high, **known}

    @classmethod
    def of_config(cls, name: str, entry: Any) -> "ClinicalCondition":
        """Read an entry of a model's config, which may come from an untrusted source."""
        problem = CardioDiTError(f"The config's condition {name!r} is {entry!r}; expected values, or low and high.")
        if not isinstance(entry, Mapping):
            raise problem
        known = entry.get("known")
        known = known if isinstance(known, int) else None
        if "values" in entry:
            values = entry["values"]
            is_list = isinstance(values, Sequence) and not isinstance(values, str) and 0 < len(values) < MOST_CATEGORIES
            if not is_list or not all(isinstance(value, str) for value in values) or len(set(values)) < len(values):
                raise problem
            return cls(name, tuple(values), known=known)
        low, high = entry.get("low"), entry.get("high")
        if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)) or low > high:  # type: ignore[operator]
            raise problem
        return cls(name, None, str(entry.get("unit") or ""), float(low), float(high), known)  # type: ignore[arg-type]


class ClinicalConditions(Mapping[str, ClinicalCondition]):
    """The conditions of a model by name, in alphabetical order, which is that of the numbers that the model takes.

    Args:
        conditions: one record per column.
    """

    def __init__(self, conditions: Sequence[ClinicalCondition]) -> None:
        self._by_name = {each.name: each for each in sorted(conditions, key=lambda each: each.name)}

    def __getitem__(self, name: str) -> ClinicalCondition:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        """List the conditions and what they can be, one per line."""
        return "\n".join(f"{name}: {each.range}" for name, each in self.items())

    @classmethod
    def of_config(cls, entries: Mapping[str, Any] | None) -> "ClinicalConditions | None":
        """Return the conditions in a model's config; None if it has none."""
        if not entries:
            return None
        return cls([ClinicalCondition.of_config(name, entry) for name, entry in entries.items()])

    def to_config(self) -> dict[str, Any]:
        return {name: each.to_config() for name, each in self.items()}

    @classmethod
    def of_cohort(cls, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> "ClinicalConditions":
        """Describe columns of a training manifest.

        A column whose cells are all numbers is one of numbers, any other one of categories.

        Args:
            rows: cells by column; empty ones are missing.
            columns: names, each optionally with its unit in brackets, as in "age [years]"; "sex [category]" reads
                numbers as names of categories.
        """
        problems, found = Problems("The condition columns cannot be used"), []
        named = [split_unit(column) for column in columns]
        if repeated := {name for name, _ in named if [other for other, _ in named].count(name) > 1}:
            problems.add(f"{', '.join(sorted(repeated))} is listed twice")
        for name, unit in named:
            cells = [row.get(name, "") for row in rows]
            filled = [cell for cell in cells if cell]
            if not filled:
                what = "is empty in every row" if any(name in row for row in rows) else "does not exist"
                problems.add(f"the column {name!r} {what}")
                continue
            numbers = [as_number(cell) for cell in filled]
            if unit != CATEGORY and all(math.isfinite(number) for number in numbers):
                unit = UNITS.get(name.lower(), "") if unit is None else unit
                found.append(ClinicalCondition(name, None, unit, min(numbers), max(numbers), len(filled)))
                continue
            odd = [cell for cell, number in zip(filled, numbers, strict=True) if not math.isfinite(number)]
            values = sorted(set(filled))
            if unit not in (None, CATEGORY):
                problems.add(f"the column {name!r} has the unit {unit}, but {odd[0]!r} is not a number")
            elif unit is None and len(odd) < len(filled) / 2:
                problems.add(
                    f"the column {name!r} mixes numbers with {odd[0]!r}; correct it, or write '{name} [{CATEGORY}]' if "
                    "its numbers are names of categories"
                )
            elif len(values) >= MOST_CATEGORIES:
                problems.add(f"the column {name!r} has {len(values)} categories, which is too many")
            else:
                found.append(ClinicalCondition(name, tuple(values), known=len(filled)))
        problems.raise_if_any()
        return cls(found)

    def numbers_of(
        self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], extrapolate: bool = False
    ) -> list[tuple[float, ...]]:
        """Return the numbers of each row, `(rows, columns)`; raise one error that lists all problems.

        Args:
            rows: values by column; other columns are ignored, and missing, blank or None is not given.
            names: name of each row in errors.
            extrapolate: allow numbers outside the training cohort's range.
        """
        problems, numbers = Problems("These conditions cannot be used"), []
        for row, name in zip(rows, names, strict=True):
            row_numbers = []
            for column, each in self.items():
                try:
                    row_numbers.append(each.number(row.get(column), extrapolate))
                except CardioDiTError as error:
                    problems.add(f"{name}: {error}" if name else str(error))
            numbers.append(tuple(row_numbers))
        problems.raise_if_any()
        return numbers

    def values_of(self, numbers: Sequence[float]) -> dict[str, float | str]:
        """Return the values that a row of numbers stands for, without missing ones."""
        values = {name: each.value(number) for (name, each), number in zip(self.items(), numbers, strict=True)}
        return {name: value for name, value in values.items() if value is not None}

    def check_names(self, names: Collection[str]) -> None:
        """Raise an error for a name that is not one of the model's conditions."""
        for name in names:
            if name not in self:
                close = get_close_matches(name, list(self), n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise CardioDiTError(f"{name!r} is not a condition of this model; it has {', '.join(self)}.{hint}")


def split_unit(column: str) -> tuple[str, str | None]:
    """Split "age [years]" into name and unit; None if there is no unit."""
    name, bracket, unit = column.partition("[")
    return name.strip(), unit.rstrip().removesuffix("]").strip() if bracket else None


def as_number(cell: str) -> float:
    """Return a cell as a number; NaN if it is not one."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


class NumberEmbedding(nn.Module):
    """Embed a number by its position u in the cohort's range, from -1 to 1, and waves of u; NaN has its own embedding.

    The longest waves are twice the range, so that numbers slightly outside it still differ from those inside.
    """

    def __init__(self, low: float, high: float, hidden_size: int) -> None:
        super().__init__()
        self.centre, self.reach = (low + high) / 2, (high - low) / 2 or 1.0
        self.linear_1 = nn.Linear(1 + 2 * HARMONICS, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)
        self.null = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B,) → (B, hidden)."""
        is_missing = values.isnan()
        u = ((values - self.centre) / self.reach).masked_fill(is_missing, 0.0)[:, None]
        angles = u * (torch.pi / 2) * torch.arange(1, 1 + HARMONICS, device=u.device)
        features = torch.cat([u, angles.sin(), angles.cos()], dim=1).to(self.linear_1.weight.dtype)
        embedded = self.linear_2(F.silu(self.linear_1(features)))
        return torch.where(is_missing[:, None], self.null.to(embedded.dtype), embedded)


class CategoryEmbedding(nn.Embedding):
    """Embed a category; NaN has the last embedding."""

    def __init__(self, categories: int, hidden_size: int) -> None:
        super().__init__(categories + 1, hidden_size)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B,) → (B, hidden)."""
        return super().forward(values.nan_to_num(self.num_embeddings - 1).long())


class ConditionEmbedding(nn.Module):
    """The sum of the embeddings of all conditions.

    Args:
        conditions: the columns.
        hidden_size: size of the embedding.
    """

    def __init__(self, conditions: ClinicalConditions, hidden_size: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(
            NumberEmbedding(each.low, each.high, hidden_size)
            if each.values is None
            else CategoryEmbedding(len(each.values), hidden_size)
            for each in conditions.values()
        )

    def initialise(self) -> None:
        """Draw small embeddings, like those of class labels."""
        for column in self.columns:
            if isinstance(column, CategoryEmbedding):
                nn.init.normal_(column.weight, std=0.02)
            else:
                nn.init.normal_(column.linear_2.weight, std=0.02)  # type: ignore[arg-type,union-attr]

    def silence(self) -> None:
        """Set all embeddings to 0, so that a trained model that the conditions are added to computes as before."""
        for column in self.columns:
            for weight in (column.weight,) if isinstance(column, CategoryEmbedding) else column.linear_2.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(weight)

    def forward(self, values: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Embed values (B, columns), NaN where one is not given, as (B, hidden); None means that none is given.

        Args:
            like: embedding of the time (B, hidden), whose device and precision the result has.
        """
        count = len(self.columns)
        if values is None:
            values = torch.full((len(like), count), MISSING, device=like.device)
        if values.shape != (len(like), count):
            raise CardioDiTError(
                f"conditions have the shape {tuple(values.shape)}, but this model takes ({len(like)}, {count}): one "
                "number for each sample and condition."
            )
        return sum(column(values[:, i]) for i, column in enumerate(self.columns)).to(like.dtype)


def without(values: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
    """Return values (B, columns) with some columns, or all of them, not given."""
    values = values.clone()
    values[:, slice(None) if columns is None else list(columns)] = MISSING
    return values


def dropped_at_random(
    values: torch.Tensor, each: float, together: float, generator: torch.Generator
) -> tuple[torch.Tensor, bool]:
    """Drop some of a sample's conditions (columns,) for training; also return whether all were dropped together.

    Args:
        each: probability of dropping each condition, independently of the others.
        together: probability of dropping everything, so that the model also learns to sample without conditions.
    """
    all_draw, *draws = torch.rand(1 + len(values), generator=generator).tolist()
    if all_draw < together:
        return torch.full_like(values, MISSING), True
    return values.masked_fill(torch.tensor([draw < each for draw in draws]), MISSING), False
