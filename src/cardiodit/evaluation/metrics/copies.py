"""Copies of training volumes: how near samples come to them, compared with real volumes that the model has not seen.

Only the single nearest training volume shows a copy. The mean over several neighbours, as in typicality, hardly moves.
Copies that were turned, shifted in time or cut look different to the network and are missed.
"""

from functools import partial

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import betabinom, binomtest

from cardiodit._util.nearest import nearest_distances
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import LEVEL, Estimate, Floor, floor_of
from cardiodit.evaluation.metrics.registry import (
    COPIES,
    LOWER,
    NEAR_REAL,
    NOT_NEGATIVE,
    SHARE,
    SPATIAL,
    SPATIOTEMPORAL,
    Result,
    Scoring,
    metric,
)

NEAR = 0.05  # share of held-out volumes that are as near to a training volume as a sample must be to count as a copy
BOOTSTRAPS = 1000
TINY = 1e-12


def distances_to_training(
    real: np.ndarray, synthetic: np.ndarray, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each volume `(n,)`, `(m,)` to its nearest training volume, over the median of the real."""
    own = nearest_distances(lambda part: cdist(real[part], training), len(real))
    others = nearest_distances(lambda part: cdist(synthetic[part], training), len(synthetic))
    usual = float(np.median(own)) or 1.0
    return own / usual, others / usual


def _distances(scoring: Scoring, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    features = scoring.features(kind)
    if scoring.training is None or features is None:
        return None
    real, synthetic = distances_to_training(features.real, features.synthetic, scoring.training.rows(kind))
    if not np.median(real):
        raise CardioDiTError(
            "At least half of the real volumes have the same features as a training volume: --real must list volumes "
            "that the model was not trained on."
        )
    return real, synthetic


def _distance_metric(scoring: Scoring, *, kind: str) -> Result | None:
    """Return the median distance of the samples, over that of real volumes: near 0 for copies, 1 if none is copied."""
    if (distances := _distances(scoring, kind)) is None:
        return None
    real, synthetic = map(np.sort, distances)
    rng = np.random.default_rng([scoring.seed, len(real), len(synthetic)])
    medians = [np.median(rng.choice(values, (BOOTSTRAPS, len(values))), axis=1) for values in (real, synthetic)]
    low, high = np.percentile(medians[1] / np.maximum(medians[0], TINY), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    method = (
        "median distance of samples to their nearest training volume, over that of real volumes; bootstrap interval"
    )
    result = Result(Estimate(float(np.median(synthetic)), float(low), float(high), method=method))
    try:
        floor = floor_of(_ratio_of_medians, real[:, None], synthetic[:, None], seed=scoring.seed)
        return Result(result.estimate, floor)
    except CardioDiTError as error:
        return result.with_notes(f"No floor: {error}")


def _ratio_of_medians(real: np.ndarray, synthetic: np.ndarray) -> float:
    return float(np.median(synthetic)) / max(float(np.median(real)), TINY)


def _share_metric(scoring: Scoring, *, kind: str) -> Result | None:
    """Return the share of samples that are nearer to a training volume than all but 5% of the real ones.

    With n real volumes and the threshold at the k-th smallest of their distances, the count among m samples that copy
    nothing is beta-binomial with k and n + 1 − k: the floor is exact.
    """
    if (distances := _distances(scoring, kind)) is None:
        return None
    real, synthetic = distances
    n, m = len(real), len(synthetic)
    k = int(NEAR * (n + 1))
    if k < 1:
        raise CardioDiTError(f"It needs at least {round(1 / NEAR) - 1} real volumes, and there are {n}.")
    count = int((synthetic <= np.sort(real)[k - 1]).sum())
    interval = binomtest(count, m).proportion_ci(LEVEL)
    usual = betabinom(m, k, n + 1 - k)
    floor = Floor(k / (n + 1), float(usual.ppf(0.05)) / m, float(usual.ppf(0.95)) / m, count / m, None)
    return Result(
        p_value=float(usual.sf(count - 1)),
        estimate=Estimate(
            count / m,
            float(interval.low),
            float(interval.high),
            method="share of samples as near to a training volume as the nearest 5% of real volumes; exact binomial "
            "interval",
            notes=(
                "The floor is what a model that copies nothing reaches, with its 5th and 95th percentile for these "
                "numbers of volumes (beta-binomial). Copies that are turned, shifted in time or cut are not found.",
            ),
        ),
        floor=floor,
    )


for _kind in (SPATIAL, SPATIOTEMPORAL):
    metric(
        f"training_distance_{_kind}",
        f"Distance to the nearest training volume, {_kind}",
        group=COPIES,
        better=NEAR_REAL,
        bounds=NOT_NEGATIVE,
    )(partial(_distance_metric, kind=_kind))
    metric(
        f"training_copies_{_kind}",
        f"Samples nearer to a training volume than {1 - NEAR:.0%} of real ones, {_kind}",
        group=COPIES,
        better=LOWER,
        bounds=SHARE,
    )(partial(_share_metric, kind=_kind))
