"""Do samples lie among the real volumes, and real volumes within the samples' reach? Four shares by k neighbours.

Precision and recall as Kynkäänniemi et al. (2019) define them, density and coverage as Naeem et al. (2020). A ball
around a volume reaches to its k-th nearest other volume of the same kind, its surface included.
"""

from dataclasses import astuple, dataclass

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.estimate import LEVEL, Estimate, checked_features, jackknife_interval

NEIGHBOURS = 5


@dataclass(frozen=True)
class Coverage:
    """All from 0 to 1 but density, which is 1 where both distributions are the same and may be larger.

    Args:
        precision: share of samples in at least one ball of a real volume.
        recall: share of real volumes in at least one ball of a sample.
        density: real balls that hold a sample, on average, over k.
        coverage: share of real balls that hold at least one sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class CoverageEstimates:
    """The same, each with its interval."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class _Balls:
    """Which points `(m,)` lie in the balls around which centres `(n,)`.

    Args:
        inside: `(n, m)`, balls reaching to the k-th neighbour.
        wider: `(n, m)`, to the next one: what a ball becomes when one of its k neighbours is left out; else None.
        neighbours: `(n, n)`, whether the second centre is among the first's k neighbours.
    """

    inside: np.ndarray
    wider: np.ndarray | None
    neighbours: np.ndarray


def coverage_metrics(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> Coverage:
    return _coverage(*_both_balls(real, synthetic, k), k)


def coverage_estimates(real: np.ndarray, synthetic: np.ndarray, k: int = NEIGHBOURS) -> CoverageEstimates:
    """With intervals for what the shares would be, on average, at these numbers of volumes.

    All four move with the number of volumes, since balls shrink as centres become more; there is no correction for it.
    """
    around_real, around_synthetic = _both_balls(real, synthetic, k)
    value = astuple(_coverage(around_real, around_synthetic, k))
    method = (
        f"{k} nearest neighbours; interval by the jackknife over the volumes of both kinds, for shares no narrower "
        "than the binomial one"
    )
    notes = (f"At {len(real)} real and {len(synthetic)} synthetic volumes; not to be compared at other numbers.",)
    if around_real.wider is None or around_synthetic.wider is None:
        reason = f"No interval: leaving out a volume leaves fewer than {k + 1}."
        return CoverageEstimates(*(Estimate(v, None, None, method=method, notes=(*notes, reason)) for v in value))
    without_real = _without_each(around_real, around_synthetic, k)
    without_synthetic = _without_each_point(around_real, around_synthetic, k)
    counted = (len(synthetic), len(real), None, len(real))  # whose share it is; density is none
    estimates = []
    for share, number, *left_out in zip(value, counted, without_real.T, without_synthetic.T, strict=True):
        low, high = _interval(share, number, left_out)
        why: tuple[str, ...] = () if low is not None else ("No interval: leaving out a volume makes no difference.",)
        estimates.append(Estimate(share, low, high, method=method, notes=(*notes, *why)))
    return CoverageEstimates(*estimates)


def _interval(value: float, counted: int | None, left_out: list[np.ndarray]) -> tuple[float | None, float | None]:
    """The jackknife's; of a share, as wide as the binomial's at least, since none of 40 is not certainly none."""
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
    """From the distances among the centres `(n, n)` and between centres and points `(n, m)`."""
    among = among.copy()
    np.fill_diagonal(among, np.inf)  # none is its own neighbour
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
    """Precision, density and coverage from the counts `(m,)` and `(n,)`."""
    return _touched(balls_of_point), float(balls_of_point.mean() / k), _touched(points_of_ball)


def _touched(counts: np.ndarray) -> float:
    return float((counts > 0).mean())


def _without_each(around_real: _Balls, around_synthetic: _Balls, k: int) -> np.ndarray:
    """`(n, 4)`: the shares without each real volume, which is a centre for three of them and a point for recall."""
    rows = []
    for i in range(len(around_real.inside)):
        inside = _without_centre(around_real, i)
        recall = np.delete(around_synthetic.inside.sum(0), i)
        rows.append(astuple(_with_recall(_shares(inside.sum(0), inside.sum(1), k), _touched(recall))))
    return np.array(rows)


def _without_each_point(around_real: _Balls, around_synthetic: _Balls, k: int) -> np.ndarray:
    """`(m, 4)`: the shares without each synthetic volume."""
    rows = []
    balls_of_point, points_of_ball = around_real.inside.sum(0), around_real.inside.sum(1)
    for j in range(len(balls_of_point)):
        shares = _shares(np.delete(balls_of_point, j), points_of_ball - around_real.inside[:, j], k)
        recall = _touched(_without_centre(around_synthetic, j).sum(0))
        rows.append(astuple(_with_recall(shares, recall)))
    return np.array(rows)


def _without_centre(balls: _Balls, index: int) -> np.ndarray:
    """Balls `(n − 1, m)` without one centre; those that counted it as a neighbour reach for the next."""
    assert balls.wider is not None
    widened = np.where(balls.neighbours[:, index, None], balls.wider, balls.inside)
    return np.delete(widened, index, axis=0)
