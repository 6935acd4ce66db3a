"""Consistency of a CT volume from slice to slice, along all three axes.

Neighbouring slices are compared per mm, so that the voxel size does not matter. None of these measures has a correct
value of its own; each is to be compared with that of real volumes on the same grid.
"""

from itertools import pairwise

import numpy as np

from cardiodit.evaluation.metrics.diversity import WINDOW, ms_ssim
from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import CONSISTENCY
from cardiodit.imaging.geometry import Geometry

PLANES = ("sagittal", "coronal", "axial")  # slices that follow each other along x, y and z of the scanner
MEASURES = {
    "slice_step": ("Difference of neighbouring slices", "per mm"),  # in units of [-1, 1]
    "slice_bend": ("Second difference of slices", "per mm²"),
    "slice_correlation": ("Correlation of neighbouring slices", ""),
    "slice_ms_ssim": ("MS-SSIM of neighbouring slices", ""),
    "border_jump": ("Jump at the borders of patches", ""),
}
PERIODS = (4, 8, 16, 32)  # voxels: sizes of the patches whose borders are searched
FEWEST_BORDERS = 3
COMPARED = 8  # pairs of slices for MS-SSIM, evenly spaced

register_quantities(
    [
        Quantity(f"{name}_{plane}", f"{title}, {plane}", unit)
        for plane in PLANES
        for name, (title, unit) in MEASURES.items()
    ],
    group=CONSISTENCY,
    if_unknown="no volume has this number.",
)


def slice_consistency(voxels: np.ndarray, geometry: Geometry) -> dict[str, float]:
    """Return the measures of a volume `(H, W, D)` in [-1, 1] by the names of `MEASURES` and `PLANES`.

    Those that have nothing to measure are left out: differences without a voxel size, second differences of fewer than
    three slices, MS-SSIM of planes below 11 × 11 voxels, and jumps where no patches fit.
    """
    found: dict[str, float] = {}
    for axis, plane in enumerate(planes_of(geometry)):
        slices = np.moveaxis(voxels, axis, 0)
        if len(slices) < 2:
            continue
        steps: list[float] = []
        bends: list[float] = []
        correlations: list[float] = []
        before: np.ndarray | None = None
        for a, b in pairwise(slices):
            step = b.astype(np.float64) - a
            steps.append(float(np.abs(step).mean()))
            correlations.append(_correlation(a, b))
            if before is not None:
                bends.append(float(np.abs(step - before).mean()))
            before = step
        if geometry.spacing is not None:
            found[f"slice_step_{plane}"] = float(np.mean(steps)) / geometry.spacing[axis]
            if bends:
                found[f"slice_bend_{plane}"] = float(np.mean(bends)) / geometry.spacing[axis] ** 2
        found[f"slice_correlation_{plane}"] = float(np.mean(correlations))
        if min(slices.shape[1:]) >= WINDOW:
            chosen = np.unique(np.linspace(0, len(slices) - 2, COMPARED).round().astype(int))
            stacks = (np.moveaxis(slices[chosen + shift], 0, 2) for shift in (0, 1))
            found[f"slice_ms_ssim_{plane}"] = ms_ssim(*stacks)
        if (jump := border_jump(np.array(steps))) is not None:
            found[f"border_jump_{plane}"] = jump
    return found


def planes_of(geometry: Geometry) -> tuple[str, ...]:
    """Return which plane the slices along each axis of the volume show, by the direction that is nearest."""
    nearest = np.abs(np.array(geometry.direction)).argmax(axis=0).tolist()
    return tuple(PLANES[world] for world in (nearest if sorted(nearest) == [0, 1, 2] else range(3)))


def border_jump(steps: np.ndarray) -> float | None:
    """Return how much larger steps are at the borders of patches than elsewhere, for the size that shows it most.

    Each step is taken relative to the mean of the steps beside it, which removes how anatomy changes along the axis. 1
    means no borders; None that the axis is too short.

    Args:
        steps: difference between voxel i and voxel i + 1 for each i.
    """
    if len(steps) < 3:
        return None
    beside = (steps[:-2] + steps[2:]) / 2
    relative = np.where(beside > 0, steps[1:-1] / np.where(beside > 0, beside, 1), 1.0)
    first_voxel_after = np.arange(1, len(steps) - 1) + 1
    ratios = []
    for period in PERIODS:
        at_border = first_voxel_after % period == 0
        if at_border.sum() >= FEWEST_BORDERS and relative[~at_border].any():
            ratios.append(float(relative[at_border].mean() / relative[~at_border].mean()))
    return max(ratios, default=None)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's r; 1 if both slices are constant, 0 if one is."""
    is_flat = [plane.min() == plane.max() for plane in (first, second)]
    if any(is_flat):
        return float(all(is_flat))
    a, b = (plane - plane.mean(dtype=np.float64) for plane in (first, second))
    return float((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum()))
