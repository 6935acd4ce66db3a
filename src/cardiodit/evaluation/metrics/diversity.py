"""Diversity: how similar samples are to each other, by multi-scale SSIM (Wang et al. 2003) between pairs.

Lower values mean more diverse samples. The number is only meaningful beside that of pairs of real volumes, measured in
the same way. Images are in [-1, 1].

MONAI's `MultiScaleSSIMMetric` is not used: it computes in float32, where variances cancel. On cine MRI it differs from
this float64 version by 6e-7, but on bright images of low contrast its SSIM is off by 3e-6, more than the 1e-6 that a
reported number may move.
"""

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, Floor, jackknife_interval
from cardiodit.evaluation.metrics.registry import DIVERSITY, NEAR_REAL, SHARE, Result, Scoring, metric
from cardiodit.evaluation.similarity import C1, C2, RADIUS, SIGMA
from cardiodit.evaluation.volume_sets import Item, load
from cardiodit.imaging.preprocessing import Preprocessing

FORMAT = 1  # of the cached results
WINDOW = 2 * RADIUS + 1
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, fine to coarse (Wang et al. 2003, section 3.2)
FRAMES = 4  # of a cine, evenly spaced over the beat
KEPT = 2**28  # bytes of samples that stay in memory until their next pair
ROUNDING = 1e-3  # how far beyond [-1, 1] a value may lie


@metric("ms_ssim", "MS-SSIM among pairs of samples", group=DIVERSITY, better=NEAR_REAL, label="MS-SSIM", bounds=SHARE)
def ms_ssim_metric(scoring: Scoring) -> Result:
    """Compare MS-SSIM among pairs of samples with that among pairs of real volumes.

    A mean over pairs does not depend on their number, so that no set is cut for the floor. The floor's range is where
    as many other real volumes as there are samples would lie in 95%: both means vary.
    """
    inputs = [
        SimilarityInput(
            tuple(side.items_by_content),
            tuple(measured.content for measured in side.by_content),
            scoring.preprocessing,
            scoring.seed,
            scoring.cache,
        )
        for side in scoring.sets
    ]
    among_real, among_synthetic = scoring.workers.map(mean_similarity, inputs)
    low, high = among_real.low, among_real.high
    if low is not None and high is not None:
        widened = math.sqrt(1 + len(scoring.real.measured) / len(scoring.synthetic.measured))
        low, high = (among_real.value + widened * (end - among_real.value) for end in (low, high))
    return Result(among_synthetic, Floor(among_real.value, low, high, among_synthetic.value, None))


@dataclass(frozen=True)
class SimilarityInput:
    """The input of one set's similarity; `contents` are the items' hashes, in their order."""

    items: tuple[Item, ...]
    contents: tuple[str, ...]
    steps: Preprocessing
    seed: int
    cache: Path


def mean_similarity(given: SimilarityInput) -> Estimate:
    """Return the mean MS-SSIM of one set; it is cached, because it loads many volumes twice."""
    key = json.dumps([FORMAT, "ms_ssim", given.seed, given.contents])
    file = given.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    try:
        cached = json.loads(file.read_text())
        return Estimate(**{**cached, "notes": tuple(cached["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        pass  # missing or damaged: compute it
    result = diversity(lambda i: load(given.items[i], given.steps).volume.voxels, len(given.items), seed=given.seed)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(asdict(result.ms_ssim)))
    return result.ms_ssim


@dataclass(frozen=True)
class Diversity:
    """Mean MS-SSIM among samples.

    Args:
        scales: number of the five scales for which the images are large enough.
        axes: of the window and the halving: "HW" plane by plane, "HWD" in volumes.
        pairs: number of compared pairs.
        frames: the cine's frames that were compared, each with the same frame of the other; empty for volumes.
    """

    ms_ssim: Estimate
    scales: int
    axes: str
    pairs: int
    frames: tuple[int, ...]


def diversity(load: Callable[[int], np.ndarray], count: int, *, pairs: int = 100, seed: int = 0) -> Diversity:
    """Compare at most `pairs` random pairs of the samples 0 … count − 1.

    `load` returns a volume `(H, W, D)` or a cine `(H, W, D, T)`, all of one size. Besides the pair at hand, at most
    `KEPT` bytes stay in memory, so that small samples are loaded once.
    """
    if count < 2 or pairs < 1:
        raise CardioDiTError(f"Pairs need at least two samples, and count={count}, pairs={pairs} were given.")
    drawn = draw_pairs(count, pairs, seed)
    values = np.empty(len(drawn))
    recent: OrderedDict[int, np.ndarray] = OrderedDict()
    shape: tuple[int, ...] = ()

    def frames_of(index: int) -> np.ndarray:
        nonlocal shape
        if index not in recent:
            image = _checked(load(index), index)
            if shape and image.shape != shape:
                raise CardioDiTError(
                    f"Sample {index} has the size {image.shape}, and those before it have {shape}; only images of one "
                    "size can be compared."
                )
            shape, recent[index] = image.shape, _chosen_frames(image)
            while len(recent) > max(2, KEPT // recent[index].nbytes):
                recent.popitem(last=False)
        recent.move_to_end(index)
        return recent[index]

    for number, (i, j) in enumerate(drawn.tolist()):
        values[number] = ms_ssim(frames_of(i), frames_of(j))
    return _summary(values, drawn, count, shape)


def ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Return MS-SSIM of two images `(H, W, D)` or `(H, W, D, T)` in [-1, 1]: the mean over planes or a cine's volumes.

    It uses as many scales as the size allows, from one to five; their weights are divided by their sum. Opposite
    structure at some scale counts as 0, as usual, since a negative number has no fractional power.
    """
    axes = window_axes(first.shape)
    weights = scale_weights(count_scales(first.shape))
    a, b = first.astype(np.float64), second.astype(np.float64)
    product = np.ones(1)
    for scale, weight in enumerate(weights):
        if scale > 0:
            a, b = _halved(a, axes), _halved(b, axes)
        whole, structure = _ssim_parts(a, b, axes)
        part = whole if scale == len(weights) - 1 else structure
        product = product * np.maximum(part, 0) ** weight  # equation 7, one value per plane or volume
    return float(product.mean())


def window_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return height and width, and depth if it allows two scales and is at least half as long; never time."""
    height, width, depth = shape[:3]
    if min(height, width) < WINDOW:
        raise CardioDiTError(
            f"SSIM uses windows of {WINDOW} × {WINDOW} voxels; planes of {height} × {width} are too small."
        )
    return (0, 1, 2) if depth >= max(2 * WINDOW, min(height, width) / 2) else (0, 1)


def count_scales(shape: tuple[int, ...]) -> int:
    """Return how many scales the shortest of the window's axes allows: each halves it, and it must hold a window."""
    shortest = min(shape[axis] for axis in window_axes(shape))
    return sum(shortest // 2**scale >= WINDOW for scale in range(len(WEIGHTS)))


def scale_weights(scales: int) -> np.ndarray:
    """Return the weights of the finest scales that fit, with the sum 1."""
    weights = np.array(WEIGHTS[:scales])
    return weights / weights.sum()


def draw_pairs(count: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Return pairs `(P, 2)`, i < j, sorted: all of them, or the requested number, drawn without replacement."""
    total = count * (count - 1) // 2
    if total <= pairs:
        return np.stack(np.triu_indices(count, 1), axis=1)
    # The number of the pair (i, j) is j(j − 1)/2 + i.
    numbers = np.random.default_rng([seed, count, pairs]).choice(total, pairs, replace=False)
    j = np.floor((1 + np.sqrt(1 + 8 * numbers.astype(np.float64))) / 2).astype(np.int64)
    i = numbers - j * (j - 1) // 2
    return np.array(sorted(zip(i.tolist(), j.tolist(), strict=True)))


def _checked(image: np.ndarray, index: int) -> np.ndarray:
    if image.ndim not in (3, 4):
        raise CardioDiTError(f"Sample {index} has the shape {image.shape}; expected (H, W, D) or (H, W, D, T).")
    if not np.isfinite(image).all():
        raise CardioDiTError(f"Sample {index} contains NaN or infinity. Check it, or sample it again.")
    if np.abs(image).max() > 1 + ROUNDING:
        raise CardioDiTError(
            f"Sample {index} has values from {image.min():g} to {image.max():g}; expected images in [-1, 1], the "
            "models' range, since SSIM depends on it."
        )
    return image


def _frame_numbers(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 3:
        return ()
    frames = min(FRAMES, shape[3])
    return tuple(number * shape[3] // frames for number in range(frames))


def _chosen_frames(image: np.ndarray) -> np.ndarray:
    return image[..., list(_frame_numbers(image.shape))] if image.ndim == 4 else image


def _ssim_parts(a: np.ndarray, b: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return SSIM, and its contrast and structure part, averaged over the window's axes (Wang et al. 2003, eq. 6)."""
    mean_a, mean_b = _windowed(a, axes), _windowed(b, axes)
    variances = _windowed(a * a + b * b, axes) - mean_a**2 - mean_b**2
    covariance = _windowed(a * b, axes) - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * structure).mean(axis=axes), structure.mean(axis=axes)


def _windowed(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the Gaussian mean around each voxel whose window lies within the image."""
    for axis in axes:
        filtered = gaussian_filter1d(image, SIGMA, axis=axis, radius=RADIUS)
        image = filtered.take(range(RADIUS, image.shape[axis] - RADIUS), axis=axis)
    return image


def _halved(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return means of two neighbours along each axis; a last odd one is left out."""
    for axis in axes:
        even = np.moveaxis(image, axis, 0)
        even = even[: len(even) // 2 * 2]
        image = np.moveaxis((even[::2] + even[1::2]) / 2, 0, axis)
    return image


def _summary(values: np.ndarray, drawn: np.ndarray, count: int, shape: tuple[int, ...]) -> Diversity:
    scales, axes, frames = count_scales(shape), window_axes(shape), _frame_numbers(shape)
    where = "volumes" if len(axes) == 3 else "planes"
    method = (
        f"mean MS-SSIM of {len(values)} pairs of {count} samples, {where}, {scales} scales, data range 2; interval by "
        "the jackknife over samples, since pairs share them"
    )
    notes = []
    if scales < len(WEIGHTS):
        notes.append(
            f"The images are large enough for {scales} of {len(WEIGHTS)} scales; their weights were divided by their "
            "sum. Compare only with numbers of as many scales."
        )
    if frames:
        notes.append(
            f"Frames {', '.join(map(str, frames))} (from 0) of each cine, each with the same frame of the other."
        )
    value = float(values.mean())
    without = _without_each_sample(values, drawn)
    if without is None:
        notes.append("No interval: leaving out a sample leaves no pair.")
        estimate = Estimate(value, None, None, method=method, notes=tuple(notes))
    else:
        estimate = Estimate(value, *jackknife_interval(value, without), method=method, notes=tuple(notes))
    return Diversity(estimate, scales, "HWD"[: len(axes)], len(values), frames)


def _without_each_sample(values: np.ndarray, drawn: np.ndarray) -> np.ndarray | None:
    """Return the mean over the pairs that remain without each sample; None if none would remain for some sample."""
    total, left = np.zeros(drawn.max() + 1), np.zeros(drawn.max() + 1)
    for side in drawn.T:
        np.add.at(total, side, values)
        np.add.at(left, side, 1)
    used = left > 0
    remaining = len(values) - left[used]
    return None if (remaining == 0).any() else (values.sum() - total[used]) / remaining
