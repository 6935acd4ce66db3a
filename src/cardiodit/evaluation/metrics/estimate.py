"""Values with confidence intervals, and floors: what the same metric gives between real and real volumes.

Metrics on features take two matrices, `real (n, f)` and `synthetic (m, f)`. A row is one volume, which is one patient;
slices or frames of one heart are not independent and are never rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from cardiodit.errors import CardioDiTError

LEVEL = 0.95
NAMED_ROWS = 8  # row numbers listed in an error
REPEATS = 20  # draws of a floor; with fewer, the 5th and 95th percentiles would be the minimum and the maximum

Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval.

    Args:
        low, high: ends of the interval; None where no honest interval exists, with the reason in `notes`.
        level: coverage of the interval.
        method: how value and interval were computed, in words for the report.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    method: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Floor:
    """The same metric between real and real volumes.

    Args:
        value: mean over the draws.
        low, high: 5th and 95th percentile of the draws; None if unknown. Draws share volumes, so this is their spread
            and no confidence interval.
        matched: the metric at the floor's number of volumes, which the floor is to be compared with.
        volumes: that number, on each side; None where the floor uses all volumes and no set was cut for it.
    """

    value: float
    low: float | None
    high: float | None
    matched: float
    volumes: int | None


def floor_of(
    distance: Distance, real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, repeats: int = REPEATS
) -> Floor:
    """Compare random halves of the real volumes with each other, and with as many synthetic volumes.

    Rows are sorted by their features before anything is drawn: the result depends on the volumes and the seed, not on
    the order of the volumes.
    """
    real, synthetic = checked_features(real, synthetic)
    if repeats < 1:
        raise CardioDiTError(f"repeats={repeats} must be at least 1.")
    volumes = min(len(real) // 2, len(synthetic))
    if volumes < 2:
        raise CardioDiTError(
            f"A floor needs at least 4 real and 2 synthetic volumes, and there are {len(real)} and {len(synthetic)}."
        )
    real, synthetic = (rows[np.lexsort(rows.T[::-1])] for rows in (real, synthetic))
    matched, floor = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        shuffled = real[rng.permutation(len(real))]
        samples = synthetic[rng.permutation(len(synthetic))[:volumes]]
        matched.append(float(distance(shuffled[:volumes], samples)))
        floor.append(float(distance(shuffled[:volumes], shuffled[volumes : 2 * volumes])))
    low, high = map(float, np.percentile(floor, [5, 95])) if repeats >= REPEATS else (None, None)
    return Floor(float(np.mean(floor)), low, high, float(np.mean(matched)), volumes)


def checked_features(real: np.ndarray, synthetic: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return both as finite matrices with the same number of features and at least `least` rows each.

    float32 is kept, because a copy of a thousand rows is large; callers compute in float64.
    """
    first, second = (_checked(rows, kind, least) for rows, kind in ((real, "real"), (synthetic, "synthetic")))
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
            f"The {kind} features have the shape {matrix.shape}; expected (volumes, features), one row per volume."
        )
    if len(matrix) < least:
        raise CardioDiTError(f"This metric needs at least {least} {kind} volumes, and there are {len(matrix)}.")
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        named = ", ".join(map(str, broken[:NAMED_ROWS])) + (", …" if len(broken) > NAMED_ROWS else "")
        raise CardioDiTError(
            f"The {kind} features contain NaN or infinity in {len(broken)} of {len(matrix)} rows (from 0: {named}). "
            "Check those volumes, or compute their features in float32."
        )
    return matrix


def jackknife_interval(value: float, *left_out: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the interval around a value, given its values with each volume (or group) of each sample left out.

    The samples' variances add up (Arvesen 1969); the quantile is Student's with Welch's degrees of freedom.
    """
    parts = [(len(values) - 1) / len(values) * np.square(values - values.mean()).sum() for values in left_out]
    variance = sum(parts)
    if variance == 0:
        return value, value
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, left_out, strict=True))
    reach = float(student_t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return value - reach, value + reach
