"""The Fréchet distance extrapolated to infinitely many volumes, with a jackknife interval.

Distances of subsets show how the bias falls with the number of volumes. Where it does not fall as the extrapolation
assumes, some bias remains, an interval around the value would miss the truth, and none is given.

The distances of many subsets of the same volumes are computed from products of all volumes, and from eigenvalues in
place of singular values, which takes a third of the time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Union

import numpy as np

from cardiodit.evaluation.metrics.estimate import Estimate, checked_features, jackknife_interval
from cardiodit.evaluation.metrics.frechet import (
    blocks,
    centred_gram,
    centred_root,
    frechet_distance,
    nuclear_norm,
    spreads,
)

FRACTIONS = (0.8, 0.65, 0.5)  # of the volumes, for the extrapolation, in addition to all of them
ORDERS = 3  # shuffles from which subsets are taken
GROUPS = 10  # left out in turn, of each sample
FEWEST = 8  # volumes of each kind, to extrapolate
# Volumes per effective dimension. With fewer, simulated intervals missed the truth: the bias is no longer linear in
# 1/n. Effective dimensions cover the leading directions only; the tail is checked with halves of a sample.
ENOUGH = 10.0
HALVINGS = 8  # random halves of each sample
# Share of the traces by which one distance may be off: about 1e-5 after extrapolation, and volumes scatter a hundred
# times as far.
TOLERATED = 2e-6
# A fast distance may be off by this share of itself, by a bound on its rounding; else the exact one is computed.
ALLOWED = 1e-5
ROUNDING = 8 * np.finfo(np.float64).eps  # of small eigenvalues, as a share of the largest; 1.5 eps were measured

Order = tuple[np.ndarray, np.ndarray]  # of the real and of the synthetic volumes
Chosen = np.ndarray | slice  # volumes of a subset
Pair = Union["ByProducts", "ByFeatures"]  # two samples of which subsets may be taken


def frechet_estimate(real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0) -> Estimate:
    """Return d² for infinitely many volumes: a line in 1/n through subsets (Chong and Forsyth 2020), and a jackknife.

    Both samples shrink by the same fraction, so that the bias a/n + b/m shrinks along one line. The order of the rows
    decides which volumes share a subset, as the seed does.
    """
    real, synthetic = checked_features(real, synthetic)
    if min(len(real), len(synthetic)) < FEWEST:
        return Estimate(
            frechet_distance(real, synthetic),
            None,
            None,
            method="Fréchet distance of the volumes at hand",
            notes=(f"Biased upwards: with fewer than {FEWEST} volumes of a kind it cannot be extrapolated.",),
        )
    pair = pair_of(real, synthetic)
    value, low, high = _with_interval(pair, seed)
    method = (
        f"Fréchet distance extrapolated to infinitely many volumes (line in 1/n through {min(FRACTIONS):.0%} to 100% "
        f"of the volumes, {ORDERS} shuffles); interval by a jackknife over {GROUPS} groups of volumes of each kind"
    )
    notes = ["A value below 0 means that no distance can be distinguished from zero."] if value < 0 else []
    no_interval = _too_many_dimensions(real, synthetic) or _bias_in_halves(pair, value - low, seed)
    if no_interval:
        return Estimate(value, None, None, method=method, notes=(*notes, no_interval))
    return Estimate(value, low, high, method=method, notes=tuple(notes))


def _with_interval(pair: Pair, seed: int) -> tuple[float, float, float]:
    """Return the limit and the ends of its interval."""
    rng = np.random.default_rng([seed, *pair.counts])
    orders = [(rng.permutation(pair.counts[0]), rng.permutation(pair.counts[1])) for _ in range(ORDERS)]
    groups = [rng.permutation(np.arange(count) % GROUPS) for count in pair.counts]
    everything = [np.ones(count, bool) for count in pair.counts]
    value = _extrapolated(pair, orders, everything)
    without_real = [_extrapolated(pair, orders, [groups[0] != g, everything[1]]) for g in np.unique(groups[0])]
    without_synthetic = [_extrapolated(pair, orders, [everything[0], groups[1] != g]) for g in np.unique(groups[1])]
    return value, *jackknife_interval(value, np.array(without_real), np.array(without_synthetic))


def effective_dimensions(features: np.ndarray) -> float:
    """Return (tr C)² / tr C², the number of directions of equal spread, corrected for sampling noise."""
    gram = centred_gram(features)
    if not np.trace(gram):
        return 0.0
    inverse = np.square(gram).sum() / np.trace(gram) ** 2 - 1 / (len(features) - 1)
    return float(1 / inverse) if inverse > 0 else float("inf")


def _too_many_dimensions(real: np.ndarray, synthetic: np.ndarray) -> str:
    """Return why there is no interval; empty if there may be one."""
    for sample, kind in ((real, "real"), (synthetic, "synthetic")):
        dimensions = effective_dimensions(sample)
        if len(sample) < ENOUGH * dimensions:
            return (
                f"No interval: {len(sample)} {kind} volumes spread over about {dimensions:.0f} dimensions, and below "
                f"{ENOUGH:.0f} volumes per dimension the bias is not linear in 1/n; the value is still too high."
            )
    return ""


def _bias_in_halves(pair: Pair, reach: float, seed: int) -> str:
    """Return why there is no interval; empty if the bias left after extrapolation, seen in halves, is within reach."""
    pairs: tuple[Pair, Pair] = pair.with_themselves
    for same, kind in zip(pairs, ("real", "synthetic"), strict=True):
        left = _between_halves(same, seed)
        if left > reach:
            return (
                f"No interval: between random halves of the {same.counts[0]} {kind} volumes, whose true distance "
                f"is 0, extrapolation leaves {left:.3g}, more than the interval would reach ({reach:.3g}). Many "
                "directions contribute a little of their spread each, and the bias is not linear in 1/n; the value is "
                "still too high."
            )
    return ""


def _between_halves(same: Pair, seed: int) -> float:
    """Return the mean limit between random halves of one sample, which is pure bias."""
    count = same.counts[0]
    limits = []
    for draw in range(HALVINGS):
        shuffled = np.random.default_rng([seed, count, draw]).permutation(count)
        halves = same[shuffled[: count // 2], shuffled[count // 2 :]]
        in_order = [np.arange(half) for half in halves.counts]
        everything = [np.ones(half, bool) for half in halves.counts]
        limits.append(_extrapolated(halves, [(in_order[0], in_order[1])], everything))
    return float(np.mean(limits))


def _extrapolated(pair: Pair, orders: list[Order], kept: list[np.ndarray]) -> float:
    """Return where the line through the subsets' distances meets 1/n = 0; each order counts all volumes once."""
    points = [_point(pair[kept[0], kept[1]])] * len(orders)
    for order in orders:
        first, second = (turn[keep[turn]] for turn, keep in zip(order, kept, strict=True))
        points += map(_point, _subsets(pair[first, second]))
    inverse, distances = np.array(points).T
    _, limit = np.polyfit(inverse, distances, 1)
    return float(limit)


def _point(pair: Pair) -> tuple[float, float]:
    """Return 1/n + 1/m, and d²."""
    return sum(1 / count for count in pair.counts), pair.distance(TOLERATED)


def _subsets(pair: Pair) -> Iterator[Pair]:
    """Yield the first and the last volumes for each fraction."""
    for fraction in FRACTIONS:
        n, m = (round(fraction * count) for count in pair.counts)
        yield pair[:n, :m]
        yield pair[-n:, -m:]


def pair_of(real: np.ndarray, synthetic: np.ndarray) -> Pair:
    """Return both samples around their common mean, without the features that are constant over all volumes."""
    low = np.minimum(real.min(axis=0), synthetic.min(axis=0))
    high = np.maximum(real.max(axis=0), synthetic.max(axis=0))
    varying = np.flatnonzero(high > low)
    if not len(varying):
        varying = np.array([0])
    if min(len(real), len(synthetic)) <= len(varying):
        return ByProducts.of(real, synthetic, varying)
    return ByFeatures(*_around_their_mean(real[:, varying], synthetic[:, varying]))


@dataclass(frozen=True)
class ByProducts:
    """Few volumes of many features: distances of any subsets from the products of all volumes.

    Args:
        real, synthetic, cross: products of volumes around their common mean, `(n, n)`, `(m, m)` and `(n, m)`.
    """

    real: np.ndarray
    synthetic: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, synthetic: np.ndarray, varying: np.ndarray) -> "ByProducts":
        n, m = len(real), len(synthetic)
        products = cls(np.zeros((n, n)), np.zeros((m, m)), np.zeros((n, m)))
        for block in blocks(len(varying)):
            first, second = _around_their_mean(real[:, varying[block]], synthetic[:, varying[block]])
            np.add(products.real, first @ first.T, out=products.real)
            np.add(products.synthetic, second @ second.T, out=products.synthetic)
            np.add(products.cross, first @ second.T, out=products.cross)
        return products

    def __getitem__(self, chosen: tuple[Chosen, Chosen]) -> "ByProducts":
        first, second = chosen
        return ByProducts(self.real[first][:, first], self.synthetic[second][:, second], self.cross[first][:, second])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def with_themselves(self) -> tuple["ByProducts", "ByProducts"]:
        """The real volumes paired with themselves, and the synthetic ones with themselves."""
        return ByProducts(self.real, self.real, self.real), ByProducts(*[self.synthetic] * 3)

    def distance(self, tolerated: float = 0.0) -> float:
        """Return d², within the tolerance of `_fast`."""
        n, m = self.counts
        means = self.real.mean(), self.synthetic.mean()
        apart = max(0.0, float(sum(means) - 2 * self.cross.mean()))
        both = (np.trace(self.real) - n * means[0]) / (n - 1) + (np.trace(self.synthetic) - m * means[1]) / (m - 1)
        centred = self.cross - self.cross.mean(axis=0)
        centred -= centred.mean(axis=1, keepdims=True)
        centred /= np.sqrt((n - 1) * (m - 1))  # ABᵀ
        return _of_cross(apart, float(both), centred, tolerated)


@dataclass(frozen=True)
class ByFeatures:
    """Many volumes of few features, `(n, f)` and `(m, f)`."""

    real: np.ndarray
    synthetic: np.ndarray

    def __getitem__(self, chosen: tuple[Chosen, Chosen]) -> "ByFeatures":
        return ByFeatures(self.real[chosen[0]], self.synthetic[chosen[1]])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def with_themselves(self) -> tuple["ByFeatures", "ByFeatures"]:
        """The real volumes paired with themselves, and the synthetic ones with themselves."""
        return ByFeatures(self.real, self.real), ByFeatures(self.synthetic, self.synthetic)

    def distance(self, tolerated: float = 0.0) -> float:
        """Return d², within the tolerance of `_fast`."""
        apart = float(np.square(self.real.mean(axis=0) - self.synthetic.mean(axis=0)).sum())
        roots = centred_root(self.real), centred_root(self.synthetic)
        if min(self.counts) <= self.real.shape[1]:  # a small subset, whose covariance is singular
            both = sum(float(np.square(root).sum()) for root in roots)
            return _of_cross(apart, both, roots[0] @ roots[1].T, tolerated)
        covariances = [root.T @ root for root in roots]
        both = float(sum(map(np.trace, covariances)))
        try:
            triangle = np.linalg.cholesky(covariances[1])
        except np.linalg.LinAlgError:  # it is singular
            return apart + spreads(*roots)
        product = triangle.T @ covariances[0] @ triangle  # has the eigenvalues of C₁C₂, and is symmetric
        sizes = [float(np.linalg.norm(covariance)) for covariance in covariances]
        return _fast(apart, both, product, lambda: apart + spreads(*roots), tolerated, sizes[0] * sizes[1])


def _of_cross(apart: float, both: float, cross: np.ndarray, tolerated: float) -> float:
    """Return d² from ABᵀ."""
    product = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
    return _fast(apart, both, product, lambda: apart + max(0.0, both - 2 * nuclear_norm(cross)), tolerated)


def _fast(
    apart: float,
    both: float,
    product: np.ndarray,
    exact: Callable[[], float],
    tolerated: float,
    factor_norm: float = 0.0,
) -> float:
    """Return d² with roots of a symmetric matrix's eigenvalues as singular values, or `exact` if rounding could show.

    Small singular values lose most by squaring: √(λ ± ε) is off by ε/2√λ, and by √ε at zero. The sum of these bounds is
    at least a thousand times the actual loss.

    Args:
        apart, both: |μ₁ − μ₂|², and tr C₁ + tr C₂.
        tolerated: share of the traces below which an error does not matter, however small d² is.
        factor_norm: product of the norms of the factors, whose rounding is in the product.
    """
    values = np.maximum(np.linalg.eigvalsh(product), 0)
    roots, error = np.sqrt(values), ROUNDING * max(float(values[-1]), factor_norm)
    if error == 0:
        return exact()
    distance = apart + max(0.0, both - 2 * float(roots.sum()))
    lost = 2 * float((error / np.maximum(2 * roots, np.sqrt(error))).sum())
    return distance if lost <= max(ALLOWED * distance, tolerated * both) else exact()


def _around_their_mean(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pooled = np.concatenate([real, synthetic], dtype=np.float64)
    pooled -= pooled.mean(axis=0)
    return pooled[: len(real)], pooled[len(real) :]
