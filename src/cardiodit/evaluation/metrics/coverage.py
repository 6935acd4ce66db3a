"""Precision, recall, density and coverage: how well samples and real volumes cover each other, by k neighbours.

Precision and recall are those of Kynkäänniemi et al. (2019), density and coverage those of Naeem et al. (2020). A ball
around a volume reaches to its k-th nearest other volume of the same kind, including its surface, as in the definition
of precision and recall; the package `prdc` excludes the surface. Only ties, such as exact copies, make a difference.
"""

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import LEVEL, Estimate, checked_features, jackknife_interval
from cardiodit.evaluation.metrics.registry import (
    DISTRIBUTION,
    HIGHER,
    NEAR_REAL,
    NOT_NEGATIVE,
    SHARE,
    Features,
    Result,
    metric,
)

NEIGHBOURS = 5
SHARES = {"precision": HIGHER, "recall": HIGHER, "density": NEAR_REAL, "coverage": HIGHER}


def _share_metric(features: Features, *, name: str) -> Result:
    estimates = features.once(coverage_estimates)
    shares = features.once(_remembered_coverage)  # the four metrics have the same draws
    return features.beside_floor(
        getattr(estimates, name), lambda real, synthetic: getattr(shares(real, synthetic), name)
    )


def _remembered_coverage(*_: np.ndarray) -> "Callable[[np.ndarray, np.ndarray], Coverage]":
    """Return `coverage_metrics` with a memory."""
    seen: dict[bytes, Coverage] = {}

    def remembered(real: np.ndarray, synthetic: np.ndarray) -> Coverage:
        key = hashlib.sha256(real.tobytes() + synthetic.tobytes()).digest()
        if key not in seen:
            seen[key] = coverage_metrics(real, synthetic)
        return seen[key]

    return remembered


for _name, _better in SHARES.items():
    metric(
        _name,
        f"{_name.capitalize()} ({NEIGHBOURS} neighbours)",
        group=DISTRIBUTION,
        better=_better,
        on_features=True,
        place=4,
        label="Precision, recall, density and coverage",
        bounds=NOT_NEGATIVE if _name == "density" else SHARE,
    )(partial(_share_metric, name=_name))


@dataclass(frozen=True)
class Coverage:
    """Four shares from 0 to 1, except density, which is 1 for equal distributions and may be larger.

    Args:
        precision: share of samples in at least one ball of a real volume.
        recall: share of real volumes in at least one ball of a sample.
        density: mean number of real balls that contain a sample, over k.
        coverage: share of real balls that contain at least one sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class CoverageEstimates:
    """The four shares with their intervals."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class _Balls:
    """Which of m points lie in the balls around n centres.

    Args:
        inside: `(n, m)`, balls reaching to the k-th neighbour.
        wider: `(n, m)`, balls reaching to the next neighbour, as when one of the k is left out; None if there is none.
        neighbours: `(n, n)`, whether the second centre is among the first's k neighbours.
    """

    inside: np.ndarray
    wider: np.ndarray | None
    neighbours: np.ndarray


def coverage_metrics(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Coverage:
    return _coverage(*_both_balls(real, synthetic, k), k)


def coverage_estimates(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> CoverageEstimates:
    """Return the shares with intervals for their expected values at these numbers of volumes.

    All four depend on the number of volumes, since balls shrink with more centres; there is no correction for that.
    """
    around_real, around_synthetic = _both_balls(real, synthetic, k)
    value = astuple(_coverage(around_real, around_synthetic, k))
    method = (
        f"{k} nearest neighbours; interval by the jackknife over the volumes of both kinds, for shares no narrower "
        "than the binomial one"
    )
    notes: tuple[str, ...] = (
        f"At {len(real)} real and {len(synthetic)} synthetic volumes; do not compare with other numbers of volumes.",
    )
    if around_real.wider is None or around_synthetic.wider is None:
        notes = (*notes, f"No interval: leaving out a volume leaves fewer than {k + 1}.")
        return CoverageEstimates(*(Estimate(v, None, None, method=method, notes=notes) for v in value))
    without_real = _without_each(around_real, around_synthetic, k)
    without_synthetic = _without_each_point(around_real, around_synthetic, k)
    counted = (len(synthetic), len(real), None, len(real))  # of what it is a share; density is not one
    estimates = []
    for share, number, *left_out in zip(value, counted, without_real.T, without_synthetic.T, strict=True):
        low, high = _interval(share, number, left_out)
        reason = () if low is not None else ("No interval: leaving out a volume makes no difference.",)
        estimates.append(Estimate(share, low, high, method=method, notes=(*notes, *reason)))
    return CoverageEstimates(*estimates)


def _interval(value: float, counted: int | None, left_out: list[np.ndarray]) -> tuple[float | None, float | None]:
    """Return the jackknife interval; for a share at least the binomial one, since 0 of 40 does not mean 0."""
    low, high = jackknife_interval(value, *left_out)
    if counted is not None:
        binomial = binomtest(round(value * counted), counted).proportion_ci(LEVEL)
        return max(0.0, min(low, binomial.low)), min(1.0, max(high, binomial.high))
    return (None, None) if low == high else (max(low, 0.0), high)


def _both_balls(real: np.ndarray, synthetic: np.ndarray, k: int) -> tuple[_Balls, _Balls]:
    if k < 1:
        raise CardioDiTError(f"k={k} neighbours: it must be at least 1.")
    real, synthetic = checked_features(real, synthetic, least=1)
    if min(len(real), len(synthetic)) < k + 1:
        raise CardioDiTError(
            f"{k} nearest neighbours need at least {k + 1} volumes of each kind, and there are {len(real)} real and "
            f"{len(synthetic)} synthetic ones. Take more volumes or a smaller k."
        )
    between = cdist(real, synthetic)  # (n, m)
    return _balls(cdist(real, real), between, k), _balls(cdist(synthetic, synthetic), between.T, k)


def _balls(among: np.ndarray, between: np.ndarray, k: int) -> _Balls:
    """Build balls from the distances among the centres `(n, n)` and between centres and points `(n, m)`."""
    among = among.copy()
    np.fill_diagonal(among, np.inf)  # no volume is its own neighbour
    nearest = np.sort(among, axis=1)
    inside = between <= nearest[:, k - 1 : k]
    wider = between <= nearest[:, k : k + 1] if len(among) > k + 1 else None
    return _Balls(inside, wider, among <= nearest[:, k - 1 : k])


def _coverage(around_real: _Balls, around_synthetic: _Balls, k: int) -> Coverage:
    shares = _shares(around_real.inside.sum(0), around_real.inside.sum(1), k)
    return _with_recall(shares, _touched(around_synthetic.inside.sum(0)))


def _with_recall(shares: tuple[float, float, float], recall: float) -> Coverage:
    precision, density, coverage = shares
    return Coverage(precision, recall, density, coverage)


def _shares(balls_of_point: np.ndarray, points_of_ball: np.ndarray, k: int) -> tuple[float, float, float]:
    """Return precision, density and coverage from the counts `(m,)` and `(n,)`."""
    return _touched(balls_of_point), float(balls_of_point.mean() / k), _touched(points_of_ball)


def _touched(counts: np.ndarray) -> float:
    return float((counts > 0).mean())


def _without_each(around_real: _Balls, around_synthetic: _Balls, k: int) -> np.ndarray:
    """Return the shares without each real volume `(n, 4)`, a centre for three of them and a point for recall."""
    rows = []
    for i in range(len(around_real.inside)):
        inside = _without_centre(around_real, i)
        recall = np.delete(around_synthetic.inside.sum(0), i)
        rows.append(astuple(_with_recall(_shares(inside.sum(0), inside.sum(1), k), _touched(recall))))
    return np.array(rows)


def _without_each_point(around_real: _Balls, around_synthetic: _Balls, k: int) -> np.ndarray:
    """Return the shares without each synthetic volume `(m, 4)`."""
    rows = []
    balls_of_point, points_of_ball = around_real.inside.sum(0), around_real.inside.sum(1)
    for j in range(len(balls_of_point)):
        shares = _shares(np.delete(balls_of_point, j), points_of_ball - around_real.inside[:, j], k)
        recall = _touched(_without_centre(around_synthetic, j).sum(0))
        rows.append(astuple(_with_recall(shares, recall)))
    return np.array(rows)


def _without_centre(balls: _Balls, index: int) -> np.ndarray:
    """Return the balls `(n − 1, m)` without one centre; those that had it as a neighbour reach to the next one."""
    assert balls.wider is not None
    widened = np.where(balls.neighbours[:, index, None], balls.wider, balls.inside)
    return np.delete(widened, index, axis=0)
