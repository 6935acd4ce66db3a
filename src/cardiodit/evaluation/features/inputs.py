"""Input of a feature network: intensities and grid, treated identically for real and synthetic volumes.

Nothing is rescaled silently: every step is written into the report and is part of the network's identity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.resampling import apply_plans, plan_axis

Size = tuple[int, int, int]
BACKGROUND = 0.01  # share of the range above its lowest value; darker voxels are background for the z-score
PADDINGS = ("centre", "end")


@dataclass(frozen=True)
class InputRules:
    """Rules that turn a volume in [-1, 1] into a network's input.

    Args:
        values: a name in `NORMALISATIONS`.
        size: voxels along H, W and the third axis, D or T. With `spacing`, the volume is cropped or padded to it;
            without, its whole field of view is resampled to it. Time is always resampled.
        spacing: voxel spacing to resample to, in mm along H, W and D.
        padding: where missing voxels are added, around the volume ("centre") or after it ("end").
        still_as_it_is: keep the own grid of volumes without frames, such as CT, whatever the size.
    """

    values: str = "as given"
    size: Size | None = None
    spacing: Triple | None = None
    padding: str = "centre"
    still_as_it_is: bool = False

    def __post_init__(self) -> None:
        if self.values not in NORMALISATIONS:
            raise CardioDiTError(f"values={self.values!r} is unknown; choose from {', '.join(NORMALISATIONS)}.")
        if self.padding not in PADDINGS:
            raise CardioDiTError(f"padding={self.padding!r} is unknown; choose from {', '.join(PADDINGS)}.")
        if self.size is not None and (len(self.size) != 3 or min(self.size) < 1):
            raise CardioDiTError(f"size={self.size} must be three positive numbers of voxels.")
        if self.spacing is not None and (len(self.spacing) != 3 or not min(self.spacing) > 0):
            raise CardioDiTError(f"spacing={self.spacing} must be three positive numbers in mm (H, W, D).")

    def normalise(self, voxels: np.ndarray) -> np.ndarray:
        """Normalise a whole volume or cine at once, so that relative brightness between frames is kept."""
        return NORMALISATIONS[self.values][0](voxels).astype(np.float32)

    def on_grid(self, values: np.ndarray, spacing: Triple | None, time: bool = False) -> np.ndarray:
        """Resample `(H, W, D)`, or `(H, W, T)` with `time`, to the network's grid; pad with the darkest value."""
        if self.size is None and self.spacing is None:
            return values
        if self.spacing is not None and spacing is None:
            raise CardioDiTError(
                f"The network needs voxels of {self.spacing} mm, but this volume's voxel size is unknown. Give its "
                "spacing, or choose a network that uses the volume's own grid."
            )
        sizes = self.size or (None, None, None)
        plans = []
        for axis, (count, size) in enumerate(zip(values.shape, sizes, strict=True)):
            if (time and axis == 2) or self.spacing is None or spacing is None:
                plans.append(plan_axis(count, None, None, size, resize=True))
                continue
            plan = plan_axis(count, spacing[axis], self.spacing[axis], None, resize=False)
            if size is not None and not (self.padding == "end" and plan.count <= size):
                plan = plan_axis(count, spacing[axis], self.spacing[axis], size, resize=False)
            plans.append(plan)
        darkest = float(values.min())
        grid = apply_plans(values, plans, darkest)
        missing = [(0, max(0, size - n) if size else 0) for size, n in zip(sizes, grid.shape, strict=True)]
        return np.pad(grid, missing, constant_values=darkest)

    def describe(self) -> dict[str, Any]:
        """Describe the rules for the report. The texts are part of a network's identity."""
        if self.size is None and self.spacing is None:
            grid = "the volumes' own, nothing is resampled"
        elif self.spacing is None:
            grid = "the whole field of view is fitted into the size"
        else:
            cut = "" if self.size is None else f", cropped around the centre or padded ({self.padding}) to the size"
            grid = f"resampled to the spacing{cut}; time, where it is an axis, is fitted"
        return {
            "values": NORMALISATIONS[self.values][1],
            "size": None if self.size is None else list(self.size),
            "spacing_mm": None if self.spacing is None else list(self.spacing),
            "grid": grid,
            **({"still": "volumes that do not beat are shown on their own grid"} if self.still_as_it_is else {}),
        }


def evenly_spaced(count: int, number: int | None, cycle: bool = False) -> list[int]:
    """Return `number` evenly spaced indices below `count`, or all; those of a cycle start at 0."""
    if number is None or number >= count:
        return list(range(count))
    return [(2 * i + (not cycle)) * count // (2 * number) for i in range(number)]


def _unit(voxels: np.ndarray) -> np.ndarray:
    return (voxels + 1) / 2


def _min_max(voxels: np.ndarray) -> np.ndarray:
    low, high = float(voxels.min()), float(voxels.max())
    return (voxels - low) / (high - low) if high > low else np.zeros_like(voxels)


def _foreground_z_score(voxels: np.ndarray) -> np.ndarray:
    """Normalise as MedicalNet does, without the noise that it adds to the background, which makes features random."""
    unit = _unit(voxels.astype(np.float64))
    foreground = unit > BACKGROUND
    count = int(foreground.sum())
    if count == 0:
        return np.zeros_like(unit)
    mean = _sum(np.where(foreground, unit, 0)) / count
    deviation = np.sqrt(_sum(np.where(foreground, (unit - mean) ** 2, 0)) / count)
    return (unit - mean) / deviation if deviation > 1e-6 else np.zeros_like(unit)


def _sum(values: np.ndarray) -> float:
    """Sum planes, then their sums in sorted order, so that the order of slices or frames changes no bit."""
    return float(np.sort(values.sum(axis=(0, 1)).ravel()).sum())


NORMALISATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {  # function and words for the report
    "as given": (lambda voxels: voxels, "as they are, in [-1, 1]"),
    "unit": (_unit, "(x + 1) / 2, in [0, 1]"),
    "min-max": (_min_max, "each volume's least value 0, its largest 1"),
    "foreground z-score": (
        _foreground_z_score,
        f"(x - mean) / deviation of each volume's voxels above {BACKGROUND:.0%} of the range; the background keeps "
        "its value where MedicalNet's own code fills it with noise",
    ),
}
