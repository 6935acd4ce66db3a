"""Manifests: CSV files that list the images of a cohort, and how a row becomes a prepared volume.

Relative paths in a manifest start at its folder. What a manifest states about an image overrides the image's header.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import read_text
from cardiodit.errors import CardioDiTError, Problems, reading
from cardiodit.imaging.alignment import KEYFRAMES, Beat
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.orientation import TURNS, StorageOrder
from cardiodit.imaging.preprocessing import Prepared, Preprocessing
from cardiodit.imaging.volume import Volume

# Columns with a meaning to us; others are labels or conditions that the user defines.
PATH_COLUMNS = ("image", "mask", "ed_mask", "es_mask", "volumes")
LONGEST_TABLE = 2**29  # bytes
READING_COLUMNS = ("frame_time", "ed_frame", "slices")  # these change how an image is read
TURN = "turn"  # so does this one, where it is filled
BEAT_COLUMNS = ("ms_frame", "pf_frame", "md_frame", "curve")  # so do these, where beats are aligned


@dataclass(frozen=True)
class Case:
    """A row of a manifest.

    Args:
        image: path of the image.
        subject: patient identifier; without a column `subject`, each image is a subject of its own.
        row: all columns as written.
        folder: folder of the manifest, where relative paths start.
    """

    image: Path
    subject: str
    row: dict[str, str]
    folder: Path

    def path(self, column: str) -> Path | None:
        """Return the file that a column names; None if the cell is empty or the column does not exist."""
        return self.folder / self.row[column] if self.row.get(column) else None

    def number(self, column: str) -> float | None:
        """Return a cell as a number; None if it is empty or the column does not exist."""
        text = self.row.get(column, "")
        try:
            number = float(text) if text else None
        except ValueError as error:
            raise CardioDiTError(f"{column}={_shown(text)} of {self.image} is not a number.") from error
        if number is not None and not math.isfinite(number):
            raise CardioDiTError(f"{column}={_shown(text)} of {self.image} must be a finite number.")
        return number

    def frame(self, column: str) -> int | None:
        """Return a cell as the number of a frame, counted from 0; None if it is empty or missing."""
        number = self.number(column)
        if number is not None and (number < 0 or not number.is_integer()):
            raise CardioDiTError(f"{column}={_shown(self.row[column])} of {self.image} is not the number of a frame.")
        return None if number is None else int(number)


def read_manifest(path: Path | str, columns: Sequence[str] = ()) -> list[Case]:
    """Read a manifest and check every row; all problems are reported in one error.

    Args:
        path: CSV file, with commas or semicolons between columns.
        columns: columns that must exist and be filled, besides `image`.
    """
    path = Path(path)
    problems = Problems(f"The manifest {path} cannot be used")
    cases: list[Case] = []
    first_lines: dict[Path, int] = {}
    for line, row in read_table(path, ("image", *columns)):
        for column in ("image", *columns):
            if not row[column]:
                problems.add(f"line {line}: the column {column!r} is empty")
        case = Case(path.parent / row["image"], row.get("subject") or row["image"], row, path.parent)
        for column in PATH_COLUMNS:
            file = case.path(column)
            if file is not None and not _is_file(file):
                written = row[column] if Path(row[column]).is_absolute() else f"{row[column]} ({file})"
                problems.add(f"line {line}: the {column} {written} does not exist")
        if row["image"] and case.image in first_lines:
            problems.add(f"line {line}: the image {row['image']} is already listed in line {first_lines[case.image]}")
        first_lines.setdefault(case.image, line)
        cases.append(case)
    problems.raise_if_any()
    return cases


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV with their line numbers; raises if a column or every row is missing."""
    with reading(path, "a table", "Save it as CSV in UTF-8, with commas or semicolons."):
        return _read_rows(path, columns)


def _read_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    text = read_text(path, LONGEST_TABLE, advice="Save it as CSV in UTF-8.")
    heading = next((line for line in io.StringIO(text) if line.strip()), "")
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
                f"Line {reader.line_num} of the table {path} has more or fewer cells than the {len(names)} columns."
            )
        cells = {name: value.strip() for name, value in row.items()}
        if any(cells.values()):
            rows.append((reader.line_num, cells))
    if not rows:
        raise CardioDiTError(f"The table {path} has no rows.")
    return rows


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that all have the same columns."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, for example
        return False


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]} …")


def check_disjoint(**splits: Iterable[Case]) -> None:
    """Check that no subject is in two splits: a model must not be tested on what it was trained on."""
    problems = Problems("The splits share subjects")
    subjects = {split: {case.subject for case in cases} for split, cases in splits.items()}
    for first, second in combinations(subjects, 2):
        for subject in sorted(subjects[first] & subjects[second]):
            problems.add(f"{subject} is in {first} and in {second}")
    problems.raise_if_any()


def reading_columns(case: Case) -> dict[str, str]:
    """Return the cells that change how a case's image is read; part of cache keys and identities."""
    of_beat = [column for column in BEAT_COLUMNS if case.row.get(column)]
    of_beat += ["es_frame"] if of_beat else []  # by itself it only says what was labelled
    of_plane = [TURN] if turn_of_case(case) else []
    return {column: case.row.get(column, "") for column in (*READING_COLUMNS, *of_beat, *of_plane)}


def turn_of_case(case: Case) -> int | None:
    """Return the manifest's `turn` in degrees counter-clockwise; None if it is empty or missing."""
    turn = case.number(TURN)
    if turn is not None and turn not in TURNS:
        raise CardioDiTError(f"{TURN}={turn:g} of {case.image} must be one of {', '.join(map(str, TURNS))} degrees.")
    return None if turn is None else int(turn)


def read_case(case: Case) -> Volume:
    """Read the image as stored, with the manifest's `frame_time` if it has one."""
    return read_nifti(case.image, frame_time=case.number("frame_time"))


def beat_of_case(case: Case, steps: Preprocessing) -> Beat | None:
    """Return the keyframes (`ed_frame`, `ms_frame`, …) and the `curve` that a row states, numbers between spaces.

    None if the preprocessing aligns no beats by them.
    """
    if steps.cycle not in ("piecewise", "dtw"):
        return None
    frames = [case.frame(f"{name.lower()}_frame") for name in KEYFRAMES]
    keyframes = tuple(frame for frame in frames if frame is not None)
    try:
        curve = tuple(map(float, case.row.get("curve", "").split()))
    except ValueError as error:
        raise CardioDiTError(f"The curve of {case.image} must be numbers between spaces.") from error
    return Beat(keyframes if len(keyframes) == len(frames) else None, curve or None)


def order_of_case(case: Case, volume: Volume, steps: Preprocessing) -> StorageOrder:
    """Determine how the axes of a case's volume map to ours, using the manifest's `ed_frame`, `slices` and `turn`."""
    frame = case.frame("ed_frame")
    return steps.order_of(volume, None, frame, case.row.get("slices") or None, turn_of_case(case))


def prepare_case(case: Case, steps: Preprocessing) -> Prepared:
    """Return the image as a model sees it, from base to apex, beginning at the manifest's `ed_frame`."""
    volume = read_case(case)
    try:
        return steps(volume, order_of_case(case, volume, steps), beat_of_case(case, steps))
    except CardioDiTError as error:
        raise CardioDiTError(f"{case.image} cannot be prepared. {error}") from error


def prepare_mask(case: Case, prepared: Prepared, column: str = "mask") -> Volume | None:
    """Return the mask of a column, preprocessed like its image; None if the row has none."""
    path = case.path(column)
    if path is None:
        return None
    try:
        voxels = prepared.apply_to_mask(read_labels(path))
    except CardioDiTError as error:
        raise CardioDiTError(f"{path} cannot be prepared. {error}") from error
    return Volume(voxels, prepared.volume.geometry)
