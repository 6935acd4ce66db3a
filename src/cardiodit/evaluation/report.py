"""The report as one dictionary and one file: the same bytes for the same inputs, with no clock and no path in it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError

SCHEMA = "cardiodit-evaluation/1"
DIGITS = 10
NOTHING = 1e-12  # what is smaller is the rounding of sums, and not the same on every machine


def write_report(report: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(rounded(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(text, path)


def read_report(path: Path) -> dict[str, Any]:
    """A report of this schema; another file is an error."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardioDiTError(f"{path} cannot be read as a report: {error}.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else None
        raise CardioDiTError(
            f"{path} is no report of `cardiodit evaluate` that this version reads: its schema is {found}, and "
            f"{SCHEMA} was expected."
        )
    return report


def rounded(value: Any) -> Any:
    """Floats to ten significant digits, what is no number to None, tuples to lists."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return 0.0 if abs(value) < NOTHING else float(f"{value:.{DIGITS}g}")
    return value


def write_text(text: str, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
