"""Maximum mean discrepancy between features (Gretton et al. 2012): unbiased with two kernels, and as in PRDiT."""

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist, pdist

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, checked_features, jackknife_interval
from cardiodit.evaluation.metrics.registry import DISTRIBUTION, LOWER, NOT_NEGATIVE, Features, Result, metric

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
KernelName = Literal["rbf", "polynomial"]


@metric(
    "mmd_rbf",
    "Unbiased MMD² (RBF kernel)",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=2,
    label="Kernel distances",
    former="kid",
)
def mmd_rbf_metric(features: Features) -> Result:
    return _kernel_metric(features, "rbf")


@metric(
    "kid_polynomial",
    "KID (unbiased MMD², polynomial kernel)",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=2,
    label="Kernel distances",
)
def kid_polynomial_metric(features: Features) -> Result:
    return _kernel_metric(features, "polynomial")


def _kernel_metric(features: Features, kernel: KernelName) -> Result:
    estimate = mmd_estimate(features.real, features.synthetic, kernel=kernel)
    return features.beside_floor(estimate, lambda real, synthetic: mmd_estimate(real, synthetic, kernel=kernel).value)


@metric(
    "mmd_prdit",
    "MMD² as in PRDiT",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=3,
    label="MMD",
    bounds=NOT_NEGATIVE,
)
def mmd_prdit_metric(features: Features) -> Result:
    estimate = Estimate(
        mmd_prdit(features.real, features.synthetic),
        method="biased MMD² with an RBF kernel, its bandwidth from the median distance of real pairs, as in PRDiT",
        notes=("It is biased and falls with the number of volumes: compare it with its floor. No interval.",),
    )
    return features.beside_floor(estimate, mmd_prdit)


def mmd_prdit(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return MMD² with PRDiT's kernel, exp(−γ|x − y|²) with γ = 1/(2 · median squared distance of real pairs).

    The paper names the kernel only. This is the biased V-statistic (Gretton et al., equation 5, squared): each volume
    is also compared with itself, so that it is never negative and falls with the number of volumes. Compare at equal
    numbers.
    """
    real, synthetic = checked_features(real, synthetic)
    kernel = rbf(real)
    within = kernel(real, real).mean() + kernel(synthetic, synthetic).mean()
    return float(within - 2 * kernel(real, synthetic).mean())


def mmd_estimate(real: np.ndarray, synthetic: np.ndarray, *, kernel: KernelName = "rbf") -> Estimate:
    """Return the unbiased MMD² (Gretton et al., equation 3) over all volumes, with a jackknife interval.

    `polynomial` is the kernel of KID (Bińkowski et al. 2018), (x·y/f + 1)³. All pairs are used: nothing is drawn.
    """
    real, synthetic = checked_features(real, synthetic, least=3)
    if kernel not in ("rbf", "polynomial"):
        raise CardioDiTError(f'kernel="{kernel}" is unknown; choose "rbf" or "polynomial".')
    chosen = rbf(real) if kernel == "rbf" else polynomial
    value, without_real, without_synthetic = _leave_one_out(
        chosen(real, real), chosen(synthetic, synthetic), chosen(real, synthetic)
    )
    low, high = jackknife_interval(value, without_real, without_synthetic)
    name = "RBF kernel, bandwidth from the real volumes" if kernel == "rbf" else "polynomial kernel of degree 3"
    notes = [
        "Where both distributions are the same, the U-statistic is degenerate and the jackknife about doubles its "
        "variance: the interval is then too wide rather than too narrow."
    ]
    if value < 0:
        notes.append("A value below 0 is normal for an unbiased estimate of a small distance.")
    return Estimate(
        value, low, high, method=f"unbiased MMD² ({name}), jackknife over the volumes of both kinds", notes=tuple(notes)
    )


def kid_estimate(real: np.ndarray, synthetic: np.ndarray, *, kernel: KernelName = "rbf") -> Estimate:
    """Former name of `mmd_estimate`, whose default kernel is not that of KID."""
    warnings.warn("kid_estimate is deprecated; use mmd_estimate.", DeprecationWarning, stacklevel=2)
    return mmd_estimate(real, synthetic, kernel=kernel)


def rbf(real: np.ndarray) -> Kernel:
    """Return PRDiT's kernel, its bandwidth set by the real volumes."""
    median = float(np.median(pdist(real, "sqeuclidean")))
    if median == 0:
        raise CardioDiTError(
            "At least half of all pairs of real volumes have the same features, so that the kernel has no bandwidth. "
            "Check the real volumes for copies, and that the feature network has its weights."
        )
    gamma = 1 / (2 * median)
    return lambda x, y: np.exp(-gamma * cdist(x, y, "sqeuclidean"))


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[1] + 1) ** 3


def _leave_one_out(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return MMD² of kernel matrices `(n, n)`, `(m, m)`, `(n, m)`, and without each real and each synthetic volume."""
    within_x, without_x = _pair_means(xx)
    within_y, without_y = _pair_means(yy)
    n, m = xy.shape
    between = xy.mean()
    between_without_x = (xy.sum() - xy.sum(axis=1)) / ((n - 1) * m)
    between_without_y = (xy.sum() - xy.sum(axis=0)) / (n * (m - 1))
    value = float(within_x + within_y - 2 * between)
    return value, without_x + within_y - 2 * between_without_x, within_x + without_y - 2 * between_without_y


def _pair_means(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean over all pairs of different volumes, and the same without each volume."""
    n = len(matrix)
    rows = matrix.sum(axis=1) - np.diagonal(matrix)
    total = rows.sum()
    return float(total / (n * (n - 1))), (total - 2 * rows) / ((n - 1) * (n - 2))
