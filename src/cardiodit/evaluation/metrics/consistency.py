"""Consistency of a cine: whether neighbouring voxels and slices fit each other, and frames follow each other.

This is where a model of all four dimensions should win over one of slices or frames. The measures of one axis do not
depend on the other: temporal ones are summed slice by slice, so that slices in a wrong order leave them unchanged to
the last bit and slices out of phase but for rounding, and frames in a wrong order leave the through-plane ones
unchanged. None has a correct value of its own; each is to be compared with that of real cines on the same grid.

In one whole beat the last frame is followed by the first. In a beat that was repeated and cut to fill the frames it is
not (`closes=False`): the temporal measures then end with the last frame, and those of the gap are left out.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import LV
from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import CONSISTENCY
from cardiodit.imaging.geometry import Geometry

IN_PLANE, THROUGH_PLANE, TEMPORAL = "in-plane", "through-plane", "temporal"
FEWEST_FRAMES = 4


@dataclass(frozen=True)
class Measure:
    """A consistency measure: its quantity, its axis and the data it needs."""

    description: str
    axis: str
    needs_labels: bool = False
    needs_whole_beat: bool = False


MEASURES = {
    "voxel_difference": Measure(
        "mean difference of neighbouring voxels in the plane, in units of [-1, 1]: low if blurred, high with noise or "
        "checkerboards",
        IN_PLANE,
    ),
    "slice_difference": Measure("mean difference of neighbouring slices, in units of [-1, 1]", THROUGH_PLANE),
    "slice_synchrony": Measure(
        "correlation of how neighbouring slices deviate, voxel by voxel, from their mean over the beat; 1 at rest",
        THROUGH_PLANE,
    ),
    "slice_dice": Measure("overlap (Dice) of neighbouring slices' labels, mean of the labels", THROUGH_PLANE, True),
    "centroid_jump_mm": Measure("distance of the left cavity's centres in neighbouring slices", THROUGH_PLANE, True),
    "area_synchrony": Measure(
        "correlation over the beat of the left cavity's areas in neighbouring slices; 1 at rest", THROUGH_PLANE, True
    ),
    "frame_change": Measure("mean difference of neighbouring frames, in units of [-1, 1]", TEMPORAL),
    "frame_correlation": Measure(
        "correlation of how neighbouring frames deviate from the mean over the beat; 1 at rest", TEMPORAL
    ),
    "frame_stall": Measure(
        "smallest difference of neighbouring frames over the usual one; 0 of frozen frames", TEMPORAL
    ),
    "frame_gap": Measure(
        "how far the step from the last frame to the first exceeds the steps beside it: 0 where the beat closes, "
        "towards 1 where it jumps",
        TEMPORAL,
        needs_whole_beat=True,
    ),
    "label_change": Measure(
        "voxels that change their label from frame to frame, over the heart's voxels", TEMPORAL, True
    ),
    "label_gap": Measure("as frame_gap, of the voxels that change their label", TEMPORAL, True, needs_whole_beat=True),
    "area_roughness": Measure(
        "mean second difference of the left cavity's areas over their amplitude, slice by slice", TEMPORAL, True
    ),
}


register_quantities(
    [
        Quantity(
            name,
            f"{name.removesuffix('_mm').replace('_', ' ').capitalize()}, {measure.axis}",
            "mm" if name.endswith("_mm") else "",
        )
        for name, measure in MEASURES.items()
    ],
    group=CONSISTENCY,
)


def consistency(
    cine: np.ndarray, geometry: Geometry, labels: np.ndarray | None = None, closes: bool = True
) -> dict[str, float]:
    """Return the measures of a cine `(H, W, D, T)` in [-1, 1], by the names of `MEASURES`.

    Those that have nothing to measure are left out: of labels without label maps, through-plane ones of a single slice,
    those in mm without a voxel size, those of a left cavity that is in no two neighbouring slices, and gaps where the
    cine is not one whole beat (`closes`).
    """
    if cine.ndim != 4 or cine.shape[3] < FEWEST_FRAMES:
        raise CardioDiTError(
            f"Consistency is measured in cines (H, W, D, T) with at least {FEWEST_FRAMES} frames; this one has the "
            f"shape {cine.shape}."
        )
    if labels is not None and labels.shape != cine.shape:
        raise CardioDiTError(f"The label maps {labels.shape} are not on the grid of the cine, {cine.shape}.")
    slices = [np.ascontiguousarray(cine[:, :, d], dtype=np.float64) for d in range(cine.shape[2])]  # (H, W, T) each
    found = _of_images(slices, closes)
    if labels is not None:
        parts = [np.ascontiguousarray(labels[:, :, d]) for d in range(labels.shape[2])]
        found |= _of_labels(parts, geometry, closes)
    names = [name for name, measure in MEASURES.items() if closes or not measure.needs_whole_beat]
    return {name: float(found[name]) for name in names if name in found and math.isfinite(found[name])}


def _of_images(slices: list[np.ndarray], closes: bool) -> dict[str, float]:
    deviations = [each - each.mean(axis=2, keepdims=True) for each in slices]
    steps = np.array([_steps(each, _difference, closes) for each in slices])  # (D, T), or (D, T - 1)
    neighbours = [np.abs(np.diff(each, axis=axis)).mean() for each in slices for axis in (0, 1)]
    return {
        "voxel_difference": _mean(neighbours),
        "slice_difference": _mean(float(np.abs(b - a).mean()) for a, b in pairwise(slices)),
        "slice_synchrony": _mean(_correlation(a, b) for a, b in pairwise(deviations)),
        "frame_change": math.fsum(steps.ravel()) / (steps.size * slices[0][..., 0].size),
        "frame_correlation": _autocorrelation(deviations, closes),
        "frame_stall": _stall(steps),
        "frame_gap": _gap(steps),
    }


def _of_labels(slices: list[np.ndarray], geometry: Geometry, closes: bool) -> dict[str, float]:
    steps = np.array([_steps(each, _relabelled, closes) for each in slices])  # (D, T), or (D, T - 1)
    heart = sum(int((each > 0).sum()) for each in slices) / slices[0].shape[2]  # voxels in a frame
    areas = np.array([(each == LV).sum(axis=(0, 1)) for each in slices], dtype=np.float64)  # (D, T)
    beating = [(a, b) for a, b in pairwise(areas) if a.any() and b.any()]
    found = {
        "slice_dice": slice_dice(slices),
        "area_synchrony": _mean(_correlation(a - a.mean(), b - b.mean()) for a, b in beating),
        "label_change": float(steps.sum()) / steps.shape[1] / heart if heart else math.nan,
        "label_gap": _gap(steps),
        "area_roughness": area_roughness(areas, closes),
    }
    if geometry.spacing is not None:
        found["centroid_jump_mm"] = centroid_jump_mm(slices, geometry.spacing[:2])
    return found


def slice_dice(slices: list[np.ndarray]) -> float:
    """Return the mean over labels, frames and pairs of neighbouring slices between a label's first and last slice.

    Outside of these a label has ended, which is correct; a slice in between without it counts as 0.
    """
    stack = np.stack(slices)  # (D, H, W, T)
    found: list[float] = []
    for label in np.unique(stack[stack > 0]):
        mask = stack == label
        sizes = mask.sum(axis=(1, 2))  # (D, T)
        both = (mask[:-1] & mask[1:]).sum(axis=(1, 2))  # (D - 1, T)
        pairs = sizes[:-1] + sizes[1:]
        reached, left = np.cumsum(sizes, axis=0) > 0, np.cumsum(sizes[::-1], axis=0)[::-1] > 0
        between = reached[:-1] & left[1:]
        found.extend(2 * both[between] / np.maximum(pairs[between], 1))
    return _mean(found)


def centroid_jump_mm(slices: list[np.ndarray], spacing: tuple[float, float]) -> float:
    """Return the mean over frames and pairs of neighbouring slices that both show the left cavity."""
    centres = np.stack([_centres(each == LV, spacing) for each in slices])  # (D, T, 2)
    jumps = np.linalg.norm(np.diff(centres, axis=0), axis=2)
    return _mean(jumps[np.isfinite(jumps)])


def area_roughness(areas: np.ndarray, closes: bool = True) -> float:
    """Return Σ mean |a(t+1) − 2a(t) + a(t−1)| / Σ (max a − min a) of areas `(D, T)`; sums over slices, periodic time.

    The volume, the areas' sum, would not do: slices out of phase flatten that curve.
    """
    second = np.roll(areas, 1, axis=1) - 2 * areas + np.roll(areas, -1, axis=1)
    within = second if closes else second[:, 1:-1]
    bends = np.abs(within).sum(axis=1) / within.shape[1]
    amplitude = math.fsum(areas.max(axis=1) - areas.min(axis=1))
    return math.fsum(bends) / amplitude if amplitude else 0.0


def _centres(mask: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Return the centres `(T, 2)` of a mask `(H, W, T)` in mm; NaN where it is empty."""
    sizes = mask.sum(axis=(0, 1)).astype(np.float64)
    sizes[sizes == 0] = np.nan
    height, width = (np.arange(n) * mm for n, mm in zip(mask.shape, spacing))
    return np.stack([height @ mask.sum(axis=1) / sizes, width @ mask.sum(axis=0) / sizes], axis=1)


def _difference(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    return np.abs(then - now).sum(axis=(0, 1))


def _relabelled(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    return (then != now).sum(axis=(0, 1))


def _steps(
    frames: np.ndarray, change: Callable[[np.ndarray, np.ndarray], np.ndarray], closes: bool = True
) -> np.ndarray:
    """Return the change from each frame to the next: `(T,)` with the last one to the first, else `(T - 1,)`."""
    return change(*_pairs(frames, closes))


def _pairs(frames: np.ndarray, closes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return all frames that have a next one, and those next ones."""
    return (frames, np.roll(frames, -1, axis=2)) if closes else (frames[..., :-1], frames[..., 1:])


def _stall(steps: np.ndarray) -> float:
    """Return Σ min / Σ median over time of steps `(D, T)`; sums over slices; 0 at rest."""
    usual = math.fsum(np.median(steps, axis=1))
    return math.fsum(steps.min(axis=1)) / usual if usual else 0.0


def _gap(steps: np.ndarray) -> float:
    """Return max(0, (c − b) / (c + b)) of steps `(D, T)`: c closes the beat, b is the mean of the two on either side.

    Only steps beside it, because a beat may begin anywhere, in quiet diastole or in the middle of ejection.
    """
    closing, beside = math.fsum(steps[:, -1]), math.fsum(steps[:, [-3, -2, 0, 1]].ravel()) / 4
    return max(0.0, (closing - beside) / (closing + beside)) if closing + beside else 0.0


def _autocorrelation(deviations: list[np.ndarray], closes: bool) -> float:
    """Return Σ x(t) x(t+1) / √(Σ x(t)² Σ x(t+1)²): 1 at rest; −1/(T−1) for a closed beat in random order."""
    pairs = [_pairs(x, closes) for x in deviations]
    product = math.fsum(float((now * then).sum(axis=2).sum()) for now, then in pairs)
    before, after = (math.fsum(float(np.square(pair[i]).sum(axis=2).sum()) for pair in pairs) for i in (0, 1))
    return product / math.sqrt(before * after) if before and after else 1.0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two deviations from a mean; 1 where neither moves, 0 where one does."""
    powers = float(np.square(first).sum()), float(np.square(second).sum())
    if not any(powers):
        return 1.0
    return float((first * second).sum()) / math.sqrt(powers[0] * powers[1]) if all(powers) else 0.0


def _mean(values: Iterable[float]) -> float:
    """Return the mean; NaN of no values."""
    held = list(values)
    return math.fsum(held) / len(held) if held else math.nan
