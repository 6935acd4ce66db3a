"""What a metric says between real and real volumes: a number of samples means little without it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.estimate import checked_features

REPEATS = 20  # draws; of fewer, the 5th and 95th percentile would be the least and the largest

Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Floored:
    """A metric beside its floor, everything at the same number of volumes.

    Args:
        matched: mean between `volumes` real and `volumes` synthetic ones.
        floor: mean between `volumes` real and as many other real ones.
        floor_low, floor_high: 5th and 95th percentile of the floor over the draws, None of fewer than 20. Draws share
            volumes, so that this is how far a draw lies from another, and no confidence interval.
        repeats: draws.
    """

    matched: float
    floor: float
    floor_low: float | None
    floor_high: float | None
    volumes: int
    repeats: int

    @property
    def above_floor(self) -> float:
        """How much of the matched value is not due to the number of volumes."""
        return self.matched - self.floor


def beside_floor(
    metric: Metric, real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, repeats: int = REPEATS
) -> Floored:
    """Draws halves of the real volumes and meets each with the other half and with as many samples.

    Rows are sorted by their features before anything is drawn: the result depends on the volumes and the seed, not on
    the order in which the volumes came.
    """
    real, synthetic = checked_features(real, synthetic)
    if repeats < 1:
        raise CardioDiTError(f"repeats={repeats} must be at least 1.")
    volumes = min(len(real) // 2, len(synthetic))
    if volumes < 2:
        raise CardioDiTError(
            f"A floor needs at least 4 real and 2 synthetic volumes, and there are {len(real)} and {len(synthetic)}."
        )
    real, synthetic = _sorted(real), _sorted(synthetic)
    matched, floor = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        shuffled = real[rng.permutation(len(real))]
        samples = synthetic[rng.permutation(len(synthetic))[:volumes]]
        matched.append(float(metric(shuffled[:volumes], samples)))
        floor.append(float(metric(shuffled[:volumes], shuffled[volumes : 2 * volumes])))
    return Floored(float(np.mean(matched)), float(np.mean(floor)), *_range(floor), volumes, repeats)


def _range(values: list[float]) -> tuple[float | None, float | None]:
    if len(values) < REPEATS:
        return None, None
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def _sorted(features: np.ndarray) -> np.ndarray:
    """By the first feature, then by the second, and so on."""
    return features[np.lexsort(features.T[::-1])]
