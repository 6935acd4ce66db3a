"""The Fréchet distances of many subsets of the same volumes.

They are computed from what all volumes give once, and their singular values are the roots of eigenvalues, which take a
third of the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

import numpy as np

from cardiodit.evaluation.frechet import blocks, centred_root, nuclear_norm, spreads

# A quick distance may be off by this share of itself, by a bound on its rounding; else it is computed the exact way.
ALLOWED = 1e-5
ROUNDING = 8 * np.finfo(np.float64).eps  # of small eigenvalues, as a share of the largest; 1.5 eps were measured

Some = np.ndarray | slice  # numbers of volumes
Pair = Union["ByProducts", "ByFeatures"]  # of samples, some of whose volumes may be taken


def pair_of(real: np.ndarray, synthetic: np.ndarray) -> Pair:
    """Both samples around their common mean, without the features that are the same of all volumes."""
    moving = _moving(real, synthetic)
    if min(len(real), len(synthetic)) <= len(moving):
        return ByProducts.of(real, synthetic, moving)
    return ByFeatures(*_around_their_mean(real[:, moving], synthetic[:, moving]))


@dataclass(frozen=True)
class ByProducts:
    """Few volumes of many features: the distance of any subsets out of the products of all volumes.

    Args:
        real, synthetic, cross: products of volumes around their common mean, `(n, n)`, `(m, m)` and `(n, m)`.
    """

    real: np.ndarray
    synthetic: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, synthetic: np.ndarray, moving: np.ndarray) -> "ByProducts":
        n, m = len(real), len(synthetic)
        products = cls(np.zeros((n, n)), np.zeros((m, m)), np.zeros((n, m)))
        for block in blocks(len(moving)):
            first, second = _around_their_mean(real[:, moving[block]], synthetic[:, moving[block]])
            np.add(products.real, first @ first.T, out=products.real)
            np.add(products.synthetic, second @ second.T, out=products.synthetic)
            np.add(products.cross, first @ second.T, out=products.cross)
        return products

    def __getitem__(self, chosen: tuple[Some, Some]) -> "ByProducts":
        first, second = chosen
        return ByProducts(self.real[first][:, first], self.synthetic[second][:, second], self.cross[first][:, second])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def with_themselves(self) -> tuple["ByProducts", "ByProducts"]:
        """The real volumes beside the real ones, and the synthetic beside the synthetic."""
        return ByProducts(self.real, self.real, self.real), ByProducts(*[self.synthetic] * 3)

    def distance(self, seen: float = 0.0) -> float:
        """d², off by less than anybody sees; see `_quick`."""
        n, m = self.counts
        means = self.real.mean(), self.synthetic.mean()
        apart = max(0.0, float(sum(means) - 2 * self.cross.mean()))
        both = (np.trace(self.real) - n * means[0]) / (n - 1) + (np.trace(self.synthetic) - m * means[1]) / (m - 1)
        centred = self.cross - self.cross.mean(axis=0)
        centred -= centred.mean(axis=1, keepdims=True)
        centred /= np.sqrt((n - 1) * (m - 1))  # ABᵀ
        return _of_cross(apart, float(both), centred, seen)


@dataclass(frozen=True)
class ByFeatures:
    """Many volumes of few features, `(n, f)` and `(m, f)`."""

    real: np.ndarray
    synthetic: np.ndarray

    def __getitem__(self, chosen: tuple[Some, Some]) -> "ByFeatures":
        return ByFeatures(self.real[chosen[0]], self.synthetic[chosen[1]])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def with_themselves(self) -> tuple["ByFeatures", "ByFeatures"]:
        """The real volumes beside the real ones, and the synthetic beside the synthetic."""
        return ByFeatures(self.real, self.real), ByFeatures(self.synthetic, self.synthetic)

    def distance(self, seen: float = 0.0) -> float:
        """d², off by less than anybody sees; see `_quick`."""
        apart = float(np.square(self.real.mean(axis=0) - self.synthetic.mean(axis=0)).sum())
        roots = centred_root(self.real), centred_root(self.synthetic)
        if min(self.counts) <= self.real.shape[1]:  # of a small subset, whose covariance is singular
            both = sum(float(np.square(root).sum()) for root in roots)
            return _of_cross(apart, both, roots[0] @ roots[1].T, seen)
        covariances = [root.T @ root for root in roots]
        both = float(sum(map(np.trace, covariances)))
        try:
            triangle = np.linalg.cholesky(covariances[1])
        except np.linalg.LinAlgError:  # it is singular
            return apart + spreads(*roots)
        product = triangle.T @ covariances[0] @ triangle  # has the eigenvalues of C₁C₂, and is symmetric
        sizes = [float(np.linalg.norm(covariance)) for covariance in covariances]
        return _quick(apart, both, product, lambda: apart + spreads(*roots), seen, sizes[0] * sizes[1])


def _of_cross(apart: float, both: float, cross: np.ndarray, seen: float) -> float:
    """d² by ABᵀ."""
    product = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    return _quick(apart, both, product, lambda: apart + max(0.0, both - 2 * nuclear_norm(cross)), seen)


def _quick(
    apart: float, both: float, product: np.ndarray, exact: Callable[[], float], seen: float, of_factors: float = 0.0
) -> float:
    """d² with the roots of a symmetric matrix's eigenvalues for singular values, or `exact` where rounding shows.

    Of small singular values, squares lose most: √(λ ± ε) is off by ε/2√λ, and by √ε where there is nothing. The sum of
    these bounds is a thousand times what is lost in fact and more.

    Args:
        apart, both: |μ₁ − μ₂|², and tr C₁ + tr C₂.
        seen: share of the traces below which nobody sees an error, however small d² is.
        of_factors: how large what was multiplied is, whose rounding is in the product.
    """
    values = np.maximum(np.linalg.eigvalsh(product), 0)
    roots, error = np.sqrt(values), ROUNDING * max(float(values[-1]), of_factors)
    if error == 0:
        return exact()
    distance = apart + max(0.0, both - 2 * float(roots.sum()))
    lost = 2 * float((error / np.maximum(2 * roots, np.sqrt(error))).sum())
    return distance if lost <= max(ALLOWED * distance, seen * both) else exact()


def _moving(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """The numbers of the features that differ between any two volumes; of none that do, the first."""
    low = np.minimum(real.min(axis=0), synthetic.min(axis=0))
    high = np.maximum(real.max(axis=0), synthetic.max(axis=0))
    moving = np.flatnonzero(high > low)
    return moving if len(moving) else np.array([0])


def _around_their_mean(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.concatenate([real, synthetic], dtype=np.float64)
    pooled -= pooled.mean(axis=0)
    return pooled[: len(real)], pooled[len(real) :]
