"""`report.json`: the same bytes for the same inputs, without times or paths."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import read_json
from cardiodit.errors import CardioDiTError

SCHEMA = "cardiodit-evaluation/1"
DIGITS = 10
NEGLIGIBLE = 1e-12  # smaller values are rounding errors of sums, which differ between machines


def write_report(report: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(rounded(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(text, path)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report; a file with another schema is an error."""
    try:
        report = read_json(path)
    except CardioDiTError as error:
        raise CardioDiTError(f"{path} cannot be read as a report: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise CardioDiTError(
            f"{path} is not a report of `cardiodit evaluate` that this version can read: its schema is {schema}, "
            f"expected {SCHEMA}."
        )
    return report


def current_metrics(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics, without the lines that repeat one under the key of an earlier version."""
    return [metric for metric in report["metrics"] if "renamed" not in metric]


def recall_beside(metric: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recall without which a precision, density or plausibility says little; None for other metrics.

    A model that repeats one perfect heart has a perfect precision. Plausibility goes with the recall of single frames.
    """
    name, _, kind = metric["name"].rpartition("_")
    if metric["group"] == "plausibility":
        kind = "spatial"
    elif name not in ("precision", "density"):
        return None
    return next((each for each in report["metrics"] if each["name"] == f"recall_{kind}"), None)


def rounded(value: Any) -> Any:
    """Round floats to ten significant digits; turn NaN and infinity into None, and tuples into lists."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return 0.0 if abs(value) < NEGLIGIBLE else float(f"{value:.{DIGITS}g}")
    return value


def write_text(text: str, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
