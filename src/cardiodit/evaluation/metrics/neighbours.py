"""Diversity of CT by distances to neighbours within a set: WAD-Div, with the real set's distances as the reference.

Each volume's Euclidean distances to its k nearest others in its own set are pooled; WAD-Div is the Wasserstein-1
distance of the synthetic set's pool to the real set's. Both sets are cut to the same size, since distances to the
nearest of many are smaller than to the nearest of few. A set of near copies scores badly, but so does one whose volumes
lie farther apart than real ones. A copy of every patient scores well: read it beside a test for memorization.
"""

from functools import partial

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.anatomy import HISTOGRAM
from cardiodit.evaluation.metrics.estimate import Estimate
from cardiodit.evaluation.metrics.numbers import wasserstein
from cardiodit.evaluation.metrics.registry import (
    DIVERSITY,
    LOWER,
    NOT_NEGATIVE,
    SPATIAL,
    Features,
    Result,
    Scoring,
    metric,
)

NEIGHBOURS = (3, 5, 10)
METHOD = "Wasserstein-1 distance of the pooled distances to {k} neighbours within each set, in units of the features"


def neighbour_distances(rows: np.ndarray, k: int) -> np.ndarray:
    """Return the distances `(n · k,)` of each row to its k nearest others."""
    from scipy.spatial.distance import cdist

    distances = cdist(rows, rows)
    np.fill_diagonal(distances, np.inf)  # a volume is not its own neighbour
    return np.sort(distances, axis=1)[:, :k].ravel()


def _distance(real: np.ndarray, synthetic: np.ndarray, k: int, seed: int = 0) -> float:
    count = min(len(real), len(synthetic))
    rng = np.random.default_rng(seed)
    pools = [neighbour_distances(rows[np.sort(rng.permutation(len(rows))[:count])], k) for rows in (real, synthetic)]
    return wasserstein(*pools)


def _wad_of_ct(scoring: Scoring, *, k: int) -> Result | None:
    """Return WAD-Div of the spatial features of CT volumes; None for other volumes."""
    features = None if scoring.features(HISTOGRAM) is None else scoring.features(SPATIAL)
    return None if features is None else wad_div(features, k)


def wad_div(features: Features, k: int) -> Result:
    count = min(len(features.real), len(features.synthetic))
    if count <= k:
        raise CardioDiTError(f"{k} neighbours need more than {k} volumes in each set, and one has {count}.")
    distance = partial(_distance, k=k, seed=features.seed)
    notes: tuple[str, ...] = (
        "The interval is unknown: distances of one volume to several others are not independent.",
    )
    if len(features.real) != len(features.synthetic):
        notes = (*notes, f"Of each set {count} volumes were drawn by the seed: the result depends on their number.")
    estimate = Estimate(distance(features.real, features.synthetic), method=METHOD.format(k=k), notes=notes)
    if min(len(features.real) // 2, len(features.synthetic)) <= k:
        return Result(estimate).with_notes(f"No floor: half of the real volumes are no more than {k}.")
    return features.beside_floor(estimate, distance)


for _k in NEIGHBOURS:
    metric(
        f"wad_div_{_k}",
        f"WAD-Div, {_k} neighbours",
        group=DIVERSITY,
        better=LOWER,
        bounds=NOT_NEGATIVE,
        label="WAD-Div",
    )(partial(_wad_of_ct, k=_k))
