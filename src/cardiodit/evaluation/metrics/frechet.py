"""The Fréchet distance between two Gaussians fitted to features (Heusel et al. 2017).

d² = |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ is known as FID. With any roots C₁ = AᵀA and C₂ = BᵀB, the last trace is
the sum of the singular values of ABᵀ: no matrix root is needed, and nothing has to be invertible.

Rows may be float32 or float64; everything is computed in float64. With a thousand volumes of thousands of features
every copy counts: sums over features are taken block by block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cardiodit.evaluation.metrics.estimate import checked_features
from cardiodit.evaluation.metrics.registry import DISTRIBUTION, LOWER, NOT_NEGATIVE, Features, Result, Shrunk, metric

BLOCK = 256  # features at a time


@metric(
    "frechet",
    "Fréchet distance",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=1,
    bounds=NOT_NEGATIVE,
)
def frechet_metric(features: Features) -> Result:
    """Return the distance extrapolated to infinitely many volumes, and in notes what other papers call FID."""
    from cardiodit.evaluation.metrics.frechet_limit import frechet_estimate

    real, synthetic = features.real, features.synthetic
    at_hand, shrunk, comparison = frechet(real, synthetic), None, ""
    if at_hand.notes:  # a covariance is singular
        regular = frechet(real, synthetic, shrinkage=True)
        assert regular.shrinkage is not None
        shrunk = Shrunk(regular.distance, at_hand.distance, *regular.shrinkage)
        comparison = f"; with both covariances shrunk (Ledoit and Wolf 2004) {shrunk.value:.6g}"
    estimate = frechet_estimate(real, synthetic, seed=features.seed)
    notes = (
        *at_hand.notes,
        f"For the volumes at hand, as published elsewhere, it is {at_hand.distance:.6g}{comparison}.",
    )
    estimate = replace(estimate, notes=(*estimate.notes, *notes))
    return replace(features.beside_floor(estimate, frechet_distance), shrunk=shrunk)


@dataclass(frozen=True)
class Frechet:
    """The squared distance and its two parts.

    Args:
        means: |μ₁ − μ₂|².
        spreads: tr C₁ + tr C₂ − 2 tr (C₁C₂)^½.
        shrinkage: Ledoit and Wolf's intensities for the real and the synthetic covariance; None without shrinkage.
    """

    distance: float
    means: float
    spreads: float
    shrinkage: tuple[float, float] | None
    notes: tuple[str, ...] = ()


def frechet_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return d² of all volumes at hand, exact for any rank and without regularisation; biased upwards."""
    real, synthetic = checked_features(real, synthetic)
    return _squared_mean_difference(real, synthetic) + _spreads_at_hand(real, synthetic)


def frechet(real: np.ndarray, synthetic: np.ndarray, *, shrinkage: bool = False) -> Frechet:
    """Return d² with its parts; `shrinkage` shrinks both covariances towards multiples of the identity."""
    real, synthetic = checked_features(real, synthetic)
    intensities: tuple[float, float] | None = None
    if shrinkage:
        intensities = (ledoit_wolf_intensity(real), ledoit_wolf_intensity(synthetic))
        spreads = _shrunk_spreads(real, synthetic, intensities)
    else:
        spreads = _spreads_at_hand(real, synthetic)
    means = _squared_mean_difference(real, synthetic)
    return Frechet(means + spreads, means, spreads, intensities, _notes(real, synthetic, shrinkage))


def _notes(real: np.ndarray, synthetic: np.ndarray, shrinkage: bool) -> tuple[str, ...]:
    if shrinkage:
        return ("Both covariances were shrunk towards multiples of the identity (Ledoit and Wolf 2004).",)
    return tuple(
        f"The {kind} covariance is singular: {len(features)} volumes with {features.shape[1]} features spread along "
        f"{rank} directions. It was used as it is, without regularisation."
        for features, kind in ((real, "real"), (synthetic, "synthetic"))
        if (rank := covariance_rank(features)) < features.shape[1]
    )


def covariance_rank(features: np.ndarray) -> int:
    """Return the number of directions along which the volumes differ, to float64 precision."""
    return int(np.linalg.matrix_rank(centred_gram(features), hermitian=True))


def ledoit_wolf_intensity(features: np.ndarray) -> float:
    """Return how far to shrink the covariance towards μI, from 0 to 1 (Ledoit and Wolf 2004, section 3.2)."""
    n, f = features.shape
    gram = centred_gram(features)
    lengths = sum(np.square(part).sum(axis=1) for part in _centred_blocks(features))  # xᵀx of each volume
    squared_norm = np.square(gram).sum() / n**2  # |S|², S = XᵀX / n
    spread = squared_norm - (np.trace(gram) / n) ** 2 / f  # |S − μI|²
    noise = (np.square(lengths).sum() / n - squared_norm) / n  # Σ |xxᵀ − S|² / n²
    return float(np.clip(noise / spread, 0, 1)) if spread > 0 else 0.0


def centred_gram(features: np.ndarray) -> np.ndarray:
    """Return XXᵀ or XᵀX around the mean, whichever is smaller; their nonzero eigenvalues are the same."""
    n, f = features.shape
    if n >= f:
        centred = _centred(features)
        return centred.T @ centred
    gram = np.zeros((n, n))
    for part in _centred_blocks(features):
        gram += part @ part.T
    return gram


def blocks(features: int) -> Iterator[slice]:
    """Yield the columns in blocks."""
    for start in range(0, features, BLOCK):
        yield slice(start, start + BLOCK)


def centred_root(features: np.ndarray) -> np.ndarray:
    """Return A of C = AᵀA, `(n, f)`."""
    return _centred(features) / np.sqrt(len(features) - 1)


def spreads(a: np.ndarray, b: np.ndarray) -> float:
    """Return tr C₁ + tr C₂ − 2 tr (C₁C₂)^½ of two roots; only rounding could make it negative."""
    both = np.square(a).sum() + np.square(b).sum()
    return max(0.0, float(both) - 2 * nuclear_norm(_fewest_rows(a) @ _fewest_rows(b).T))


def nuclear_norm(matrix: np.ndarray) -> float:
    """Return the sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def _squared_mean_difference(real: np.ndarray, synthetic: np.ndarray) -> float:
    means = real.mean(axis=0, dtype=np.float64), synthetic.mean(axis=0, dtype=np.float64)
    return float(np.square(means[0] - means[1]).sum())


def _spreads_at_hand(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the spreads: of few volumes by blocks of features, of many from all at once."""
    if min(len(real), len(synthetic)) > real.shape[1]:
        return spreads(centred_root(real), centred_root(synthetic))
    both, cross = 0.0, np.zeros((len(real), len(synthetic)))
    for columns in blocks(real.shape[1]):
        a, b = centred_root(real[:, columns]), centred_root(synthetic[:, columns])
        both += float(np.square(a).sum() + np.square(b).sum())
        cross += a @ b.T
    return max(0.0, both - 2 * nuclear_norm(cross))


def _centred(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return features - features.mean(axis=0)


def _centred_blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    return (_centred(features[:, columns]) for columns in blocks(features.shape[1]))


def _fewest_rows(root: np.ndarray) -> np.ndarray:
    """Return another root of the same covariance with no more rows than features."""
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _shrunk_spreads(real: np.ndarray, synthetic: np.ndarray, intensities: tuple[float, float]) -> float:
    """Return the spreads of (1 − s)C + sμI: within the volumes' span, and outside, where both are multiples of I."""
    features = real.shape[1]
    inside = _within_their_span(real, synthetic)
    parts = inside[: len(real)], inside[len(real) :]
    traces = [float(np.square(centred_root(part)).sum()) for part in parts]
    levels = [s * trace / features for trace, s in zip(traces, intensities, strict=True)]  # sμ
    triangles = [_shrunk(*given) for given in zip(parts, intensities, levels, strict=True)]
    outside = (features - inside.shape[1]) * (np.sqrt(levels[0]) - np.sqrt(levels[1])) ** 2
    return spreads(*triangles) + float(outside)


def _shrunk(part: np.ndarray, intensity: float, level: float) -> np.ndarray:
    """Return the triangular root `(f, f)` of (1 − s)C + level · I."""
    n, f = part.shape
    root = np.zeros((n + f, f), order="F")  # which LAPACK takes without a copy
    root[:n] = np.sqrt(1 - intensity) * centred_root(part)
    np.fill_diagonal(root[n:], np.sqrt(level))
    return _triangle(root)


def _within_their_span(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Return all volumes in as many coordinates as they span, which keeps their distances."""
    pooled = np.empty((len(real) + len(synthetic), real.shape[1]))
    pooled[: len(real)], pooled[len(real) :] = real, synthetic
    if len(pooled) >= pooled.shape[1]:
        return pooled
    pooled -= pooled.mean(axis=0)
    return _triangle(pooled.T).T  # (n + m, n + m)


def _triangle(tall: np.ndarray) -> np.ndarray:
    """Return R of QR; overwrites a matrix in Fortran order."""
    from scipy.linalg import qr

    _, triangle = qr(tall, overwrite_a=True, mode="raw", check_finite=False)
    return np.asarray(triangle)
