"""Fréchet distance of hand-crafted texture features of CT (Konz et al. 2024), for reports with `--radiomics`.

The features are those of PyRadiomics and of the Image Biomarker Standardisation Initiative (Zwanenburg et al. 2020):
intensities, grey-level co-occurrence (GLCM), run lengths (GLRLM), zones of equal grey level (GLSZM) and differences
from the neighbourhood (NGTDM), of the volume itself, of its Laplacian of Gaussian at four widths, and of its eight
wavelet bands. Here wavelets are Haar's, widths are in voxels, and 51 grey levels span [-1, 1], which is PyRadiomics'
bin width of 5 on a scale of 255. Numbers of other implementations differ: compare only within one.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from cardiodit.evaluation.metrics.estimate import Estimate, checked_features
from cardiodit.evaluation.metrics.frechet import frechet
from cardiodit.evaluation.metrics.registry import DISTRIBUTION, LOWER, NOT_NEGATIVE, Result, Scoring, metric

RADIOMICS = "radiomics"  # kind of features, and the setting that switches them on
LEVELS = 51
WIDTHS = (2.0, 3.0, 4.0, 5.0)  # voxels, of the Laplacian of Gaussian
LONGEST = 128  # voxels along an axis; longer volumes are averaged over blocks, since zones are searched level by level
DIRECTIONS = [way for way in product((-1, 0, 1), repeat=3) if way > (0, 0, 0)]  # one of each opposite pair: 13
AROUND = np.ones((3, 3, 3))
SMALLEST_DISTANCE = 1e-12  # of which a logarithm is given

Direction = tuple[int, ...]


@metric(
    "frechet_radiomics",
    "Fréchet radiomics distance",
    group=DISTRIBUTION,
    better=LOWER,
    bounds=NOT_NEGATIVE,
    option=RADIOMICS,
)
def frechet_radiomics(scoring: Scoring) -> Result | None:
    """Return d² of radiomics features, standardised by the real set, beside its floor."""
    features = scoring.features(RADIOMICS)
    if features is None:
        return None
    real, synthetic = standardised(features.real, features.synthetic)
    regular, plain = (frechet(real, synthetic, shrinkage=shrinkage) for shrinkage in (True, False))
    logarithm = np.log(max(regular.distance, SMALLEST_DISTANCE))
    notes = (
        f"Its logarithm, which is usually published, is {logarithm:.4g}; half of that in the paper.",
        f"Both covariances were shrunk (Ledoit and Wolf 2004); without shrinkage it is {plain.distance:.6g}.",
        "No interval: features outnumber volumes.",
    )
    method = f"Fréchet distance of {real.shape[1]} radiomics features, standardised by the real set"
    return features.beside_floor(Estimate(regular.distance, method=method, notes=notes), radiomics_distance)


def radiomics_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return d² of features standardised by the first set, with both covariances shrunk."""
    return frechet(*standardised(real, synthetic), shrinkage=True).distance


def standardised(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets relative to the mean and the standard deviation of the real one; constant features keep 1."""
    real, synthetic = (rows.astype(np.float64) for rows in checked_features(real, synthetic))
    scale = real.std(axis=0)
    scale[scale <= 1e-9 * np.abs(real).max(axis=0)] = 1.0
    mean = real.mean(axis=0)
    return (real - mean) / scale, (synthetic - mean) / scale


def radiomics(voxels: np.ndarray) -> np.ndarray:
    """Return the features `(f,)` of a volume `(H, W, D)` in [-1, 1]."""
    rows = []
    for image in filtered(averaged(voxels)):
        levels = grey_levels(image)
        rows += [*intensities(image, levels), *cooccurrence(levels), *run_lengths(levels), *zones(levels)]
        rows += neighbourhood_differences(levels)
    return np.array(rows, np.float32)


def averaged(voxels: np.ndarray) -> np.ndarray:
    """Return means of blocks, so that no axis is longer than `LONGEST`; voxels beyond the last block are left out."""
    image = voxels.astype(np.float64)
    for axis, length in enumerate(voxels.shape):
        block = -(-length // LONGEST)
        if block > 1:
            cut = image.take(range(length // block * block), axis=axis)
            image = cut.reshape(*cut.shape[:axis], -1, block, *cut.shape[axis + 1 :]).mean(axis=axis + 1)
    return image


def filtered(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the volume, its Laplacians of Gaussian with equal response at all widths, and its wavelet bands."""
    yield image
    for width in WIDTHS:
        yield width**2 * ndimage.gaussian_laplace(image, width)
    for band in product((1, -1), repeat=3):
        part = image
        for axis, sign in enumerate(band):
            following = np.concatenate([part.take(range(1, part.shape[axis]), axis), part.take([-1], axis)], axis)
            part = (part + sign * following) / 2  # Haar, undecimated
        yield part


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Return levels from 1 to `LEVELS` of values from -1 to 1."""
    return np.clip(np.floor((image + 1) / 2 * LEVELS), 0, LEVELS - 1).astype(np.int32) + 1


def intensities(image: np.ndarray, levels: np.ndarray) -> list[float]:
    """Return the first-order features."""
    values = image.ravel()
    low, p10, q1, median, q3, p90, high = np.percentile(values, (0, 10, 25, 50, 75, 90, 100))
    mean, sd = values.mean(), values.std()
    deviations = values - mean
    central = values[(values >= p10) & (values <= p90)]
    shares = np.bincount(levels.ravel()) / values.size
    skewness, kurtosis = ((deviations**n).mean() / sd**n if sd > 1e-9 else 0.0 for n in (3, 4))
    spread = [np.abs(deviations).mean(), np.abs(central - central.mean()).mean(), np.sqrt((values**2).mean()), sd]
    return [low, p10, median, p90, high, high - low, q3 - q1, mean, *spread, skewness, kurtosis, *_disorder(shares)]


def cooccurrence(levels: np.ndarray) -> list[float]:
    """Return the features of the symmetric co-occurrence of neighbours, averaged over the directions."""
    tables = np.stack([_pairs(levels, way) for way in DIRECTIONS if min(np.add(levels.shape, -np.abs(way))) > 0])
    p = tables / tables.sum(axis=(1, 2), keepdims=True)  # (directions, LEVELS, LEVELS)
    level = np.arange(1, LEVELS + 1.0)
    i, j = level[:, None], level[None, :]
    of_one = p.sum(axis=2)  # the same for both neighbours
    mean = of_one @ level
    variance = of_one @ level**2 - mean**2
    gap, total = np.abs(i - j), i + j - 2 * mean[:, None, None]
    gaps, sums = (p.reshape(len(p), -1) @ members for members in _gaps_and_sums())
    product_of_one = of_one[:, :, None] * of_one[:, None, :]
    entropy_of_one, entropy, crossed, independent = (
        _entropy(of_one),
        _entropy(p.reshape(len(p), -1)),
        -(p * np.log2(np.where(p > 0, product_of_one, 1))).sum(axis=(1, 2)),
        _entropy(product_of_one.reshape(len(p), -1)),
    )
    contrast = (p * gap**2).sum(axis=(1, 2))
    covariance = (p * i * j).sum(axis=(1, 2)) - mean**2
    mean_gap = gaps @ np.arange(LEVELS)
    features = [
        (p * i * j).sum(axis=(1, 2)),  # autocorrelation
        mean,
        *((p * total**n).sum(axis=(1, 2)) for n in (4, 3, 2)),  # cluster prominence, shade, tendency
        contrast,
        np.where(variance > 1e-12, covariance / np.maximum(variance, 1e-12), 1.0),  # correlation
        mean_gap,
        _entropy(gaps),
        contrast - mean_gap**2,
        (p**2).sum(axis=(1, 2)),
        entropy,
        np.where(entropy_of_one > 0, (entropy - crossed) / np.maximum(entropy_of_one, 1e-12), 0.0),
        np.sqrt(np.maximum(0, 1 - np.exp(-2 * (independent - entropy)))),
        *((gaps / weight).sum(axis=1) for weight in _inverse_weights()),
        (gaps[:, 1:] / np.arange(1, LEVELS) ** 2).sum(axis=1),  # inverse variance
        p.max(axis=(1, 2)),
        _entropy(sums),
        variance,
    ]
    return [float(np.mean(feature)) for feature in features]


@lru_cache(maxsize=1)
def _gaps_and_sums() -> tuple[np.ndarray, np.ndarray]:
    """Return which pairs of levels have each difference, and which have each sum: `(pairs, values)` of 0 and 1."""
    i, j = (place.ravel() for place in np.indices((LEVELS, LEVELS)))
    return np.eye(LEVELS)[np.abs(i - j)], np.eye(2 * LEVELS - 1)[i + j]


def _inverse_weights() -> list[np.ndarray]:
    """Return the divisors of the inverse difference (moment), plain and normalised by the number of levels."""
    gap = np.arange(LEVELS)
    return [1 + gap**2, 1 + (gap / LEVELS) ** 2, 1 + gap, 1 + gap / LEVELS]


def _pairs(levels: np.ndarray, way: Direction) -> np.ndarray:
    """Return how often each pair of levels lies next to each other, in both orders."""
    first, second = _shifted(levels, way)
    table = np.bincount(((first - 1) * LEVELS + second - 1).ravel(), minlength=LEVELS**2)
    counts = table.reshape(LEVELS, LEVELS).astype(np.float64)
    return counts + counts.T


def _shifted(levels: np.ndarray, way: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return all voxels that have a neighbour in a direction, and these neighbours."""
    here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(way, levels.shape, strict=True))
    there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in zip(way, levels.shape, strict=True))
    return levels[here], levels[there]


def run_lengths(levels: np.ndarray) -> list[float]:
    """Return the features of runs of equal levels along straight lines, averaged over the directions."""
    found = []
    for way in DIRECTIONS:
        order, starts = _lines(levels.shape, way)
        line = levels.ravel()[order]
        begins = np.flatnonzero(starts | np.r_[True, line[1:] != line[:-1]])
        found.append(_of_sizes(line[begins], np.diff(np.r_[begins, line.size]), line.size))
    return np.mean(found, axis=0).tolist()


@lru_cache(maxsize=2 * len(DIRECTIONS))
def _lines(shape: tuple[int, ...], way: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of all voxels line by line in a direction, and which of them begin a line."""
    places = np.indices(shape, np.int32)
    steps = np.full(shape, max(shape), np.int32)  # from the beginning of the line
    for axis, d in enumerate(way):
        if d:
            steps = np.minimum(steps, places[axis] if d > 0 else shape[axis] - 1 - places[axis])
    first = np.ravel_multi_index(tuple(p - d * steps for p, d in zip(places, way, strict=True)), shape)
    order = np.lexsort((steps.ravel(), first.ravel())).astype(np.int32)
    return order, steps.ravel()[order] == 0


def zones(levels: np.ndarray) -> list[float]:
    """Return the features of connected zones of equal level."""
    of_zones, sizes = [], []
    for level, box in enumerate(ndimage.find_objects(levels), start=1):
        if box is None:
            continue
        labelled, _ = ndimage.label(levels[box] == level, AROUND)
        counts = np.bincount(labelled.ravel())[1:]
        of_zones.append(np.full(len(counts), level))
        sizes.append(counts)
    return _of_sizes(np.concatenate(of_zones), np.concatenate(sizes), levels.size)


def _of_sizes(levels: np.ndarray, sizes: np.ndarray, voxels: int) -> list[float]:
    """Return the 16 features that runs and zones share, given the level and the size of each."""
    i, j, count = levels.astype(np.float64), sizes.astype(np.float64), len(levels)
    of_levels, of_sizes = np.bincount(levels), np.bincount(sizes)
    _, of_both = np.unique(levels * (int(sizes.max()) + 1) + sizes, return_counts=True)
    emphases = [1 / j**2, j**2, 1 / i**2, i**2, 1 / (i * j) ** 2, (i / j) ** 2, (j / i) ** 2, (i * j) ** 2]
    uniformity = [float((counts.astype(np.float64) ** 2).sum()) for counts in (of_levels, of_sizes)]
    return [
        *(float(each.mean()) for each in emphases),
        *(value / count for value in uniformity),
        *(value / count**2 for value in uniformity),
        count / voxels,
        float(i.var()),
        float(j.var()),
        float(_entropy(of_both / count)),
    ]


def neighbourhood_differences(levels: np.ndarray) -> list[float]:
    """Return coarseness, contrast, busyness, complexity and strength (Amadasun and King 1989)."""
    ring = AROUND.copy()
    ring[1, 1, 1] = 0
    around, number = (
        ndimage.convolve(each, ring, mode="constant") for each in (levels.astype(np.float64), np.ones(levels.shape))
    )
    difference = np.abs(levels - around / np.maximum(number, 1))
    n = np.bincount(levels.ravel(), minlength=LEVELS + 1).astype(np.float64)
    s = np.bincount(levels.ravel(), difference.ravel(), minlength=LEVELS + 1)
    level = np.flatnonzero(n)
    p, s = n[level] / levels.size, s[level]
    i, j, p_i, p_j, s_i, s_j = level[:, None], level[None, :], p[:, None], p[None, :], s[:, None], s[None, :]
    weighted = float((p * s).sum())
    variety = len(level) * (len(level) - 1)
    spread = float((p_i * p_j * (i - j) ** 2).sum())
    apart = float(np.abs(i * p_i - j * p_j).sum())
    return [
        1 / weighted if weighted > 0 else 1e6,
        spread / variety * float(s.sum()) / levels.size if variety else 0.0,
        weighted / apart if apart > 0 else 0.0,
        float((np.abs(i - j) * (p_i * s_i + p_j * s_j) / (p_i + p_j)).sum()) / levels.size,
        float(((p_i + p_j) * (i - j) ** 2).sum() / s.sum()) if s.sum() > 0 else 0.0,
    ]


def _disorder(shares: np.ndarray) -> list[float]:
    return [float(_entropy(shares)), float((shares**2).sum())]


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Return −Σ p log₂ p over the last axis."""
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)
