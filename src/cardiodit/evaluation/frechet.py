"""The Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017), and its limit for many volumes.

d² = |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ is what the field calls FID. With any roots C₁ = AᵀA and C₂ = BᵀB, the
last trace is the sum of the singular values of ABᵀ: no matrix root, and nothing has to be invertible.

The limit takes hundreds of distances of subsets. They are computed from the products of all volumes, which are made
once, and their singular values are the roots of eigenvalues, which take a third of the time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Union

import numpy as np

from cardiodit.evaluation.estimate import Estimate, checked_features, jackknife_interval

FRACTIONS = (0.8, 0.65, 0.5)  # of the volumes, for the extrapolation, beside all of them
ORDERS = 3  # shuffles from which subsets are taken
GROUPS = 10  # left out in turn, of each sample
FEWEST = 8  # volumes of each kind, to extrapolate
# Volumes per effective dimension. Below, simulated intervals missed the truth: the bias is no longer linear in 1/n.
ENOUGH = 10.0
# A quick distance may be off by this share of itself, by a bound on its rounding; else it is computed the exact way.
ALLOWED = 1e-5
ROUNDING = 8 * np.finfo(np.float64).eps  # of small eigenvalues, as a share of the largest; 1.5 eps were measured

Some = np.ndarray | slice  # numbers of volumes
_Pair = Union["_ByProducts", "_ByFeatures"]  # of samples, some of whose volumes may be taken


@dataclass(frozen=True)
class Frechet:
    """The squared distance, its two parts, and what was done to get it.

    Args:
        means: |μ₁ − μ₂|².
        spreads: tr C₁ + tr C₂ − 2 tr (C₁C₂)^½.
        shrinkage: Ledoit and Wolf's intensity for the real and the synthetic covariance; None without shrinkage.
    """

    distance: float
    means: float
    spreads: float
    shrinkage: tuple[float, float] | None
    notes: tuple[str, ...] = ()


def frechet_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """d² of all volumes at hand, exact whatever the covariances' ranks, without regularisation; biased upwards."""
    return _distance(*checked_features(real, synthetic))


def frechet(real: np.ndarray, synthetic: np.ndarray, *, shrinkage: bool = False) -> Frechet:
    """d² with its parts; `shrinkage` draws both covariances towards multiples of the identity."""
    real, synthetic = checked_features(real, synthetic)
    intensities: tuple[float, float] | None = None
    if shrinkage:
        intensities = (ledoit_wolf_intensity(real), ledoit_wolf_intensity(synthetic))
        spreads = _shrunk_spreads(real, synthetic, intensities)
    else:
        spreads = _spreads(_centred_root(real), _centred_root(synthetic))
    means = float(np.square(real.mean(axis=0) - synthetic.mean(axis=0)).sum())
    return Frechet(means + spreads, means, spreads, intensities, _notes(real, synthetic, shrinkage))


def _notes(real: np.ndarray, synthetic: np.ndarray, shrinkage: bool) -> tuple[str, ...]:
    if shrinkage:
        return ("Both covariances were drawn towards multiples of the identity (Ledoit and Wolf 2004).",)
    return tuple(
        f"The {kind} covariance is singular: {len(features)} volumes with {features.shape[1]} features spread along "
        f"{rank} directions. It was taken as it is, without regularisation."
        for features, kind in ((real, "real"), (synthetic, "synthetic"))
        if (rank := covariance_rank(features)) < features.shape[1]
    )


def covariance_rank(features: np.ndarray) -> int:
    """Along how many directions the volumes differ, as far as float64 can tell."""
    return int(np.linalg.matrix_rank(_gram(features - features.mean(axis=0)), hermitian=True))


def ledoit_wolf_intensity(features: np.ndarray) -> float:
    """How far the covariance should go towards μI, from 0 to 1 (Ledoit and Wolf 2004, section 3.2)."""
    centred = features - features.mean(axis=0)
    n, f = centred.shape
    squared_norm = np.square(_gram(centred)).sum() / n**2  # |S|², S = XᵀX / n
    spread = squared_norm - (np.square(centred).sum() / n) ** 2 / f  # |S − μI|²
    noise = (np.square(np.square(centred).sum(axis=1)).sum() / n - squared_norm) / n  # Σ |xxᵀ − S|² / n²
    return float(np.clip(noise / spread, 0, 1)) if spread > 0 else 0.0


def frechet_estimate(real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0) -> Estimate:
    """d² for infinitely many volumes: a line in 1/n through subsets (Chong and Forsyth 2020), and a jackknife.

    Both samples shrink by the same fraction, so that the bias a/n + b/m shrinks along one line. The order of the rows
    decides which volumes share a subset; another order is another seed.
    """
    real, synthetic = checked_features(real, synthetic)
    if min(len(real), len(synthetic)) < FEWEST:
        return Estimate(
            frechet_distance(real, synthetic),
            None,
            None,
            method="Fréchet distance of the volumes at hand",
            notes=(f"Biased upwards: fewer than {FEWEST} volumes of a kind do not allow to extrapolate.",),
        )
    samples = _around_their_mean(real, synthetic)
    pair = _pair(*samples)
    rng = np.random.default_rng([seed, len(real), len(synthetic)])
    orders = [(rng.permutation(len(real)), rng.permutation(len(synthetic))) for _ in range(ORDERS)]
    groups = [rng.permutation(np.arange(len(sample)) % GROUPS) for sample in samples]
    everyone = [np.ones(len(sample), bool) for sample in samples]
    value = _extrapolated(pair, orders, everyone)
    without_real = [_extrapolated(pair, orders, [groups[0] != g, everyone[1]]) for g in np.unique(groups[0])]
    without_synthetic = [_extrapolated(pair, orders, [everyone[0], groups[1] != g]) for g in np.unique(groups[1])]
    low, high = jackknife_interval(value, np.array(without_real), np.array(without_synthetic))
    method = (
        f"Fréchet distance extrapolated to infinitely many volumes (line in 1/n through {min(FRACTIONS):.0%} to 100% "
        f"of the volumes, {ORDERS} shuffles); interval by a jackknife over {GROUPS} groups of volumes of each kind"
    )
    notes = ["Below 0 stands for no distance that could be told from none."] if value < 0 else []
    crowded = _crowded(samples)
    if crowded:
        return Estimate(value, None, None, method=method, notes=(*notes, crowded))
    return Estimate(value, low, high, method=method, notes=tuple(notes))


def effective_dimensions(features: np.ndarray) -> float:
    """(tr C)² / tr C²: how many directions of equal spread would do, with the sampling noise's share taken out."""
    gram = _gram(features - features.mean(axis=0))
    if not np.trace(gram):
        return 0.0
    inverse = np.square(gram).sum() / np.trace(gram) ** 2 - 1 / (len(features) - 1)
    return float(1 / inverse) if inverse > 0 else float("inf")


def _gram(centred: np.ndarray) -> np.ndarray:
    """XXᵀ or XᵀX, whichever is smaller; their eigenvalues are the same but for zeros."""
    return centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred


def _crowded(samples: tuple[np.ndarray, np.ndarray]) -> str:
    """Why there is no interval; empty where there is one."""
    for sample, kind in zip(samples, ("real", "synthetic"), strict=True):
        dimensions = effective_dimensions(sample)
        if len(sample) < ENOUGH * dimensions:
            return (
                f"No interval: {len(sample)} {kind} volumes spread over about {dimensions:.0f} dimensions, and below "
                f"{ENOUGH:.0f} volumes a dimension the bias is not linear in 1/n; the value is still too high."
            )
    return ""


@dataclass(frozen=True)
class _ByProducts:
    """Few volumes of many features: the distance of any subsets out of the products of all volumes.

    Args:
        real, synthetic, cross: products of volumes around their common mean, `(n, n)`, `(m, m)` and `(n, m)`.
    """

    real: np.ndarray
    synthetic: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, real: np.ndarray, synthetic: np.ndarray) -> "_ByProducts":
        return cls(real @ real.T, synthetic @ synthetic.T, real @ synthetic.T)

    def __getitem__(self, chosen: tuple[Some, Some]) -> "_ByProducts":
        first, second = chosen
        return _ByProducts(self.real[first][:, first], self.synthetic[second][:, second], self.cross[first][:, second])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def distance(self) -> float:
        n, m = self.counts
        means = self.real.mean(), self.synthetic.mean()
        apart = max(0.0, float(sum(means) - 2 * self.cross.mean()))
        both = (np.trace(self.real) - n * means[0]) / (n - 1) + (np.trace(self.synthetic) - m * means[1]) / (m - 1)
        centred = self.cross - self.cross.mean(axis=0)
        centred -= centred.mean(axis=1, keepdims=True)
        centred /= np.sqrt((n - 1) * (m - 1))  # ABᵀ
        product = centred @ centred.T if n <= m else centred.T @ centred
        return _quick(apart, float(both), product, lambda: apart + max(0.0, float(both) - 2 * _nuclear_norm(centred)))


@dataclass(frozen=True)
class _ByFeatures:
    """Many volumes of few features, `(n, f)` and `(m, f)`."""

    real: np.ndarray
    synthetic: np.ndarray

    def __getitem__(self, chosen: tuple[Some, Some]) -> "_ByFeatures":
        return _ByFeatures(self.real[chosen[0]], self.synthetic[chosen[1]])

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.real), len(self.synthetic)

    @property
    def distance(self) -> float:
        apart = float(np.square(self.real.mean(axis=0) - self.synthetic.mean(axis=0)).sum())
        roots = _centred_root(self.real), _centred_root(self.synthetic)
        covariances = [root.T @ root for root in roots]
        both = float(sum(map(np.trace, covariances)))
        try:
            triangle = np.linalg.cholesky(covariances[1])
        except np.linalg.LinAlgError:  # it is singular
            return apart + _spreads(*roots)
        product = triangle.T @ covariances[0] @ triangle  # has the eigenvalues of C₁C₂, and is symmetric
        sizes = [float(np.linalg.norm(covariance)) for covariance in covariances]
        return _quick(apart, both, product, lambda: apart + _spreads(*roots), sizes[0] * sizes[1])


def _quick(
    apart: float, both: float, product: np.ndarray, exact: Callable[[], float], of_factors: float = 0.0
) -> float:
    """d² with the roots of a symmetric matrix's eigenvalues for singular values, or `exact` where rounding shows.

    Of small singular values, squares lose most: √(λ ± ε) is off by ε/2√λ, and by √ε where there is nothing.

    Args:
        apart, both: |μ₁ − μ₂|², and tr C₁ + tr C₂.
        of_factors: how large what was multiplied is, whose rounding is in the product.
    """
    values = np.maximum(np.linalg.eigvalsh(product), 0)
    roots, error = np.sqrt(values), ROUNDING * max(float(values[-1]), of_factors)
    if error == 0:
        return exact()
    distance = apart + max(0.0, both - 2 * float(roots.sum()))
    lost = 2 * float((error / np.maximum(2 * roots, np.sqrt(error))).sum())
    return distance if lost <= ALLOWED * distance else exact()


def _nuclear_norm(matrix: np.ndarray) -> float:
    """The sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def _extrapolated(pair: _Pair, orders: list[tuple[np.ndarray, np.ndarray]], kept: list[np.ndarray]) -> float:
    """Where the line through the subsets' distances meets 1/n = 0; each order counts all volumes once."""
    points = [_point(pair[kept[0], kept[1]])] * len(orders)
    for order in orders:
        first, second = (turn[keep[turn]] for turn, keep in zip(order, kept, strict=True))
        points += map(_point, _subsets(pair[first, second]))
    inverse, distances = np.array(points).T
    _, limit = np.polyfit(inverse, distances, 1)
    return float(limit)


def _point(pair: _Pair) -> tuple[float, float]:
    """1/n + 1/m, and d²."""
    return sum(1 / count for count in pair.counts), pair.distance


def _subsets(pair: _Pair) -> Iterator[_Pair]:
    """Of each fraction the first and the last volumes."""
    for fraction in FRACTIONS:
        n, m = (round(fraction * count) for count in pair.counts)
        yield pair[:n, :m]
        yield pair[-n:, -m:]


def _pair(real: np.ndarray, synthetic: np.ndarray) -> _Pair:
    are_few = min(len(real), len(synthetic)) <= real.shape[1]
    return _ByProducts.of(real, synthetic) if are_few else _ByFeatures(real, synthetic)


def _around_their_mean(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both samples around their common mean, without the features that are the same of all volumes."""
    pooled = np.concatenate([real, synthetic])
    moves = np.ptp(pooled, axis=0) > 0
    pooled = pooled[:, moves if moves.any() else [0]]
    pooled = pooled - pooled.mean(axis=0)
    return pooled[: len(real)], pooled[len(real) :]


def _distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    means = np.square(real.mean(axis=0) - synthetic.mean(axis=0)).sum()
    return float(means) + _spreads(_centred_root(real), _centred_root(synthetic))


def _centred_root(features: np.ndarray) -> np.ndarray:
    """A of C = AᵀA, `(n, f)`."""
    return (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)


def _shrunk_spreads(real: np.ndarray, synthetic: np.ndarray, intensities: tuple[float, float]) -> float:
    """The spreads of (1 − s)C + sμI, within the span of all volumes and, where both are multiples of I, outside."""
    features = real.shape[1]
    inside = _within_their_span(np.concatenate([real, synthetic]))
    roots = [_centred_root(part) for part in (inside[: len(real)], inside[len(real) :])]
    levels = [s * np.square(root).sum() / features for root, s in zip(roots, intensities, strict=True)]  # sμ
    shrunk = [_shrunk(*parts) for parts in zip(roots, intensities, levels, strict=True)]
    outside = (features - inside.shape[1]) * (np.sqrt(levels[0]) - np.sqrt(levels[1])) ** 2
    return _spreads(*shrunk) + float(outside)


def _shrunk(root: np.ndarray, intensity: float, level: float) -> np.ndarray:
    """A root `(n + f, f)` of (1 − s)C + level · I."""
    return np.concatenate([np.sqrt(1 - intensity) * root, np.sqrt(level) * np.eye(root.shape[1])])


def _spreads(a: np.ndarray, b: np.ndarray) -> float:
    """tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ of two roots; rounding alone could make it negative."""
    both = np.square(a).sum() + np.square(b).sum()
    return max(0.0, float(both) - 2 * _nuclear_norm(_cross(a, b)))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ABᵀ, or what has its singular values, at most `(f, f)`."""
    return _fewest_rows(a) @ _fewest_rows(b).T


def _fewest_rows(root: np.ndarray) -> np.ndarray:
    """Another root of the same covariance with no more rows than features."""
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _within_their_span(pooled: np.ndarray) -> np.ndarray:
    """The same volumes in as many coordinates as they span; distances stay, and many features cost nothing."""
    if len(pooled) >= pooled.shape[1]:
        return pooled
    centred = pooled - pooled.mean(axis=0)
    return np.asarray(np.linalg.qr(centred.T, mode="r")).T  # (n + m, n + m)
