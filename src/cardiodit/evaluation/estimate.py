"""A number with its interval: what a metric says of a population, judged by the volumes that were at hand.

Metrics on features take two matrices, `real (n, f)` and `synthetic (m, f)`. A row is one volume, which is one patient;
slices or frames of one heart are not independent and never rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from cardiodit.errors import CardioDiTError

LEVEL = 0.95
NAMED_ROWS = 8  # in an error


@dataclass(frozen=True)
class Estimate:
    """A value and where it may lie.

    Args:
        low, high: the interval's ends; None where no honest interval exists, with the reason in `notes`.
        level: how often such an interval should hold the truth.
        method: how value and interval came about, in words for the report.
    """

    value: float
    low: float | None
    high: float | None
    level: float = LEVEL
    method: str = ""
    notes: tuple[str, ...] = ()


def checked_features(real: np.ndarray, synthetic: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both as matrices of as many features, with at least `least` finite rows each.

    float32 stays as it is, for a copy of a thousand rows is large; who computes with it does so in float64.
    """
    checked = [_checked(matrix, kind, least) for matrix, kind in ((real, "real"), (synthetic, "synthetic"))]
    first, second = checked
    if first.shape[1] != second.shape[1]:
        raise CardioDiTError(
            f"Real volumes have {first.shape[1]} features and synthetic ones {second.shape[1]}; both must come from "
            "the same feature network."
        )
    return first, second


def _checked(matrix: np.ndarray, kind: str, least: int) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.dtype != np.float32:
        matrix = matrix.astype(np.float64, copy=False)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise CardioDiTError(
            f"The {kind} features have the shape {matrix.shape}; expected is (volumes, features), one row a volume."
        )
    if len(matrix) < least:
        raise CardioDiTError(f"This metric needs at least {least} {kind} volumes, and there are {len(matrix)}.")
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        named = ", ".join(map(str, broken[:NAMED_ROWS])) + (", …" if len(broken) > NAMED_ROWS else "")
        raise CardioDiTError(
            f"The {kind} features hold NaN or infinity in {len(broken)} of {len(matrix)} rows (from 0: {named}). "
            "Look at those volumes, or compute their features in float32."
        )
    return matrix


def jackknife_interval(value: float, *left_out: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Around a value, from what it becomes when volumes, or groups of them, are left out of each sample in turn.

    The samples' variances add up (Arvesen 1969); the quantile is Student's, its degrees of freedom Welch's.
    """
    parts = [(len(values) - 1) / len(values) * np.square(values - values.mean()).sum() for values in left_out]
    variance = sum(parts)
    if variance == 0:
        return value, value
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, left_out, strict=True))
    reach = float(student_t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return value - reach, value + reach
