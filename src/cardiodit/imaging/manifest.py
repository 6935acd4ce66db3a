"""The list of a cohort's images: a CSV whose relative paths start at its own folder."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError, Problems

# Columns that mean something to us; others are labels or conditions of the user's own.
PATH_COLUMNS = ("image", "mask", "ed_mask", "es_mask", "volumes")


@dataclass(frozen=True)
class Case:
    """One row of a manifest.

    Args:
        image: where the image lies.
        subject: whose it is; without a column of that name, each image is a subject of its own.
        row: all columns as written.
        folder: of the manifest, where its relative paths start.
    """

    image: Path
    subject: str
    row: dict[str, str]
    folder: Path

    def path(self, column: str) -> Path | None:
        """The file that a column names, or None where the cell is empty or there is no such column."""
        return self.folder / self.row[column] if self.row.get(column) else None

    def number(self, column: str) -> float | None:
        """A cell as a number, or None where it is empty or there is no such column."""
        text = self.row.get(column, "")
        try:
            return float(text) if text else None
        except ValueError as error:
            raise CardioDiTError(f"{column}={text!r} of {self.image} is not a number.") from error


def read_manifest(path: Path | str, columns: Sequence[str] = ()) -> list[Case]:
    """Reads a manifest and checks every row; all its problems come in one error.

    Args:
        path: the CSV. A semicolon between columns, as some spreadsheets write it, is understood.
        columns: that must be there and filled, beside `image`.
    """
    path = Path(path)
    rows = read_table(path, ("image", *columns))
    problems = Problems(f"The manifest {path} cannot be used")
    cases: list[Case] = []
    seen: dict[Path, int] = {}
    for line, row in rows:
        for column in ("image", *columns):
            if not row[column]:
                problems.add(f"line {line}: the column {column!r} is empty")
        case = Case(path.parent / row["image"], row.get("subject") or row["image"], row, path.parent)
        for column in PATH_COLUMNS:
            file = case.path(column)
            if file is not None and not file.is_file():
                problems.add(f"line {line}: the {column} {_where(row[column], file)} does not exist")
        if row["image"] and case.image in seen:
            problems.add(f"line {line}: the image {row['image']} is the one of line {seen[case.image]}")
        seen.setdefault(case.image, line)
        cases.append(case)
    problems.raise_if_any()
    return cases


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV with their line numbers; an error where a column or every row is missing."""
    if not path.is_file():
        raise CardioDiTError(f"The table {path} does not exist.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CardioDiTError(f"The table {path} is no UTF-8 text. Save it as CSV in UTF-8.") from error
    heading = text.splitlines()[0] if text.strip() else ""
    separator = ";" if heading.count(";") > heading.count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = names
    if missing := [column for column in columns if column not in names]:
        raise CardioDiTError(
            f"The table {path} has no column {', '.join(map(repr, missing))}. It has {', '.join(names) or 'none'}."
        )
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise CardioDiTError(
                f"Line {reader.line_num} of the table {path} has another number of cells than its first line."
            )
        cells = {name: value.strip() for name, value in row.items()}
        if any(cells.values()):
            rows.append((reader.line_num, cells))
    if not rows:
        raise CardioDiTError(f"The table {path} has no rows.")
    return rows


def _where(written: str, file: Path) -> str:
    """A path as written and, if that is another, where it was looked for."""
    return written if Path(written).is_absolute() else f"{written} ({file})"


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that all have the same columns."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def check_disjoint(**splits: Iterable[Case]) -> None:
    """No subject may be in two splits: what was trained on cannot be tested on."""
    problems = Problems("The splits share subjects")
    names = {split: {case.subject for case in cases} for split, cases in splits.items()}
    for i, (first, here) in enumerate(names.items()):
        for second, there in list(names.items())[i + 1 :]:
            for subject in sorted(here & there):
                problems.add(f"{subject} is in {first} and in {second}")
    problems.raise_if_any()
