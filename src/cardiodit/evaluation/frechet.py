"""The Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017), and its limit for many volumes.

d² = |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ is what the field calls FID. With any roots C₁ = AᵀA and C₂ = BᵀB, the
last trace is the sum of the singular values of ABᵀ: no matrix root, and nothing has to be invertible.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cardiodit.evaluation.estimate import Estimate, checked_features, jackknife_interval

FRACTIONS = (1.0, 0.8, 0.65, 0.5)  # of the volumes, for the extrapolation
ORDERS = 3  # shuffles from which subsets are taken
GROUPS = 10  # left out in turn, of each sample
FEWEST = 8  # volumes of each kind, to extrapolate
# Volumes per effective dimension. Below, simulated intervals missed the truth: the bias is no longer linear in 1/n.
ENOUGH = 10.0


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
    return frechet(real, synthetic).distance


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
        f"The {kind} covariance is singular ({len(features)} volumes, {features.shape[1]} features) and was taken as "
        "it is, without regularisation."
        for features, kind in ((real, "real"), (synthetic, "synthetic"))
        if len(features) <= features.shape[1]
    )


def ledoit_wolf_intensity(features: np.ndarray) -> float:
    """How far the covariance should go towards μI, from 0 to 1 (Ledoit and Wolf 2004, section 3.2)."""
    centred = features - features.mean(axis=0)
    n, f = centred.shape
    gram = centred @ centred.T if n < f else centred.T @ centred
    squared_norm = np.square(gram).sum() / n**2  # |S|², S = XᵀX / n
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
    pooled = _within_their_span(np.concatenate([real, synthetic]))
    samples = (pooled[: len(real)], pooled[len(real) :])
    rng = np.random.default_rng([seed, len(real), len(synthetic)])
    orders = [(rng.permutation(len(real)), rng.permutation(len(synthetic))) for _ in range(ORDERS)]
    groups = [rng.permutation(np.arange(len(sample)) % GROUPS) for sample in samples]
    everyone = [np.ones(len(sample), bool) for sample in samples]
    value = _extrapolated(samples, orders, everyone)
    without_real = [_extrapolated(samples, orders, [groups[0] != g, everyone[1]]) for g in np.unique(groups[0])]
    without_synthetic = [_extrapolated(samples, orders, [everyone[0], groups[1] != g]) for g in np.unique(groups[1])]
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
    centred = features - features.mean(axis=0)
    values = np.square(np.linalg.svd(centred, compute_uv=False))
    if values.sum() == 0:
        return 0.0
    inverse = np.square(values).sum() / values.sum() ** 2 - 1 / (len(features) - 1)
    return float(1 / inverse) if inverse > 0 else float("inf")


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


def _extrapolated(
    samples: tuple[np.ndarray, np.ndarray], orders: list[tuple[np.ndarray, np.ndarray]], kept: list[np.ndarray]
) -> float:
    """Where the line through the subsets' distances meets 1/n = 0."""
    inverse, distances = [], []
    for order in orders:
        ordered = [sample[turn[keep[turn]]] for sample, turn, keep in zip(samples, order, kept, strict=True)]
        for subsets in _subsets(*ordered):
            inverse.append(sum(1 / len(subset) for subset in subsets))
            distances.append(_distance(*subsets))
    _, limit = np.polyfit(inverse, distances, 1)
    return float(limit)


def _subsets(real: np.ndarray, synthetic: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All, and of each smaller fraction the first and the last volumes of an order."""
    for fraction in FRACTIONS:
        n, m = round(fraction * len(real)), round(fraction * len(synthetic))
        yield real[:n], synthetic[:m]
        if fraction < 1:
            yield real[-n:], synthetic[-m:]


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
    cross = _fewest_rows(a) @ _fewest_rows(b).T  # at most (f, f)
    both = np.square(a).sum() + np.square(b).sum()
    return max(0.0, float(both - 2 * np.linalg.svd(cross, compute_uv=False).sum()))


def _fewest_rows(root: np.ndarray) -> np.ndarray:
    """Another root of the same covariance with no more rows than features."""
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _within_their_span(pooled: np.ndarray) -> np.ndarray:
    """The same volumes in as many coordinates as they span; distances stay, and many features cost nothing."""
    if len(pooled) >= pooled.shape[1]:
        return pooled
    centred = pooled - pooled.mean(axis=0)
    return np.asarray(np.linalg.qr(centred.T, mode="r")).T  # (n + m, n + m)
