"""What a network is shown of a volume: its grey values and its grid, the same for real and generated hearts.

Nothing is rescaled in silence: all of it is written into the report, and is part of a network's identity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.resampling import AxisPlan, apply_plans, plan_axis

Size = tuple[int, int, int]
BACKGROUND = 0.01  # of the range above its lowest value: what is darker counts as the "zero" of a non-zero z-score
PADDINGS = ("centre", "end")


@dataclass(frozen=True)
class InputRules:
    """How a volume in [-1, 1] becomes a network's input.

    Args:
        values: a name of `NORMALISATIONS`.
        size: voxels along H, W and the third axis, D or T. With `spacing` the volume is cropped or padded to it,
            without one its whole field of view is fitted into it; time is always fitted.
        spacing: mm along H, W and D to resample to.
        padding: where missing voxels are added, around the volume or behind its end.
        still_as_it_is: a volume that does not beat, such as a CT, is shown on its own grid, whatever the size.
    """

    values: str = "as given"
    size: Size | None = None
    spacing: Triple | None = None
    padding: str = "centre"
    still_as_it_is: bool = False

    def __post_init__(self) -> None:
        if self.values not in NORMALISATIONS:
            raise CardioDiTError(f"There are no values {self.values!r}; choose from {', '.join(NORMALISATIONS)}.")
        if self.padding not in PADDINGS:
            raise CardioDiTError(f"There is no padding {self.padding!r}; choose from {', '.join(PADDINGS)}.")
        if self.size is not None and (len(self.size) != 3 or min(self.size) < 1):
            raise CardioDiTError(f"size={self.size} must be three positive numbers of voxels.")
        if self.spacing is not None and (len(self.spacing) != 3 or not min(self.spacing) > 0):
            raise CardioDiTError(f"spacing={self.spacing} must be three positive numbers in mm (H, W, D).")

    def normalise(self, voxels: np.ndarray) -> np.ndarray:
        """The values of a whole volume or cine at once, so that its frames keep their brightness to each other."""
        return NORMALISATIONS[self.values][0](voxels).astype(np.float32)

    def on_grid(self, values: np.ndarray, spacing: Triple | None, time: bool = False) -> np.ndarray:
        """`(H, W, D)`, or with `time` `(H, W, T)`, on the network's grid; missing voxels get the darkest value."""
        if self.size is None and self.spacing is None:
            return values
        fill = float(values.min())
        plans = self._plans(values.shape, spacing, time)
        missing = [0, 0, 0]
        if self.padding == "end" and self.size is not None:
            missing = [max(0, n - plan.count) for n, plan in zip(self.size, plans, strict=True)]
        grid = apply_plans(values, plans, fill)
        return np.pad(grid, [(0, n) for n in missing], constant_values=fill)

    def _plans(self, shape: tuple[int, ...], known: Triple | None, time: bool) -> list[AxisPlan]:
        if self.spacing is not None and known is None:
            raise CardioDiTError(
                f"The network looks at voxels of {self.spacing} mm, and this volume's voxel size is unknown. Give its "
                "spacing, or choose a network that looks at a volume's own grid."
            )
        sizes = self.size or (None, None, None)
        plans = []
        for axis, (count, size) in enumerate(zip(shape, sizes, strict=True)):
            if (time and axis == 2) or self.spacing is None or known is None:
                plans.append(plan_axis(count, None, None, size, resize=True))
            else:
                plans.append(self._spatial_plan(count, known[axis], self.spacing[axis], size))
        return plans

    def _spatial_plan(self, count: int, spacing: float, target: float, size: int | None) -> AxisPlan:
        resampled = plan_axis(count, spacing, target, None, resize=False)
        if size is None or (self.padding == "end" and resampled.count <= size):
            return resampled
        return plan_axis(count, spacing, target, size, resize=False)

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return {
            "values": NORMALISATIONS[self.values][1],
            "size": None if self.size is None else list(self.size),
            "spacing_mm": None if self.spacing is None else list(self.spacing),
            "grid": self._grid_in_words(),
            **({"still": "volumes that do not beat are shown on their own grid"} if self.still_as_it_is else {}),
        }

    def _grid_in_words(self) -> str:
        if self.size is None and self.spacing is None:
            return "the volumes' own, nothing is resampled"
        if self.spacing is None:
            return "the whole field of view is fitted into the size"
        cut = "" if self.size is None else f", cropped around the centre or padded ({self.padding}) to the size"
        return f"resampled to the spacing{cut}; time, where it is an axis, is fitted"


def _as_given(voxels: np.ndarray) -> np.ndarray:
    return voxels


def _unit(voxels: np.ndarray) -> np.ndarray:
    return (voxels + 1) / 2


def _least_to_largest(voxels: np.ndarray) -> np.ndarray:
    low, high = float(voxels.min()), float(voxels.max())
    return (voxels - low) / (high - low) if high > low else np.zeros_like(voxels)


def _foreground_z_score(voxels: np.ndarray) -> np.ndarray:
    """MedicalNet's, but for the noise that it puts into the background, which would make features random."""
    unit = _unit(voxels.astype(np.float64))
    inside = unit > BACKGROUND
    count = int(inside.sum())
    if count == 0:
        return np.zeros_like(unit)
    mean = _sum(np.where(inside, unit, 0)) / count
    deviation = np.sqrt(_sum(np.where(inside, (unit - mean) ** 2, 0)) / count)
    return (unit - mean) / deviation if deviation > 1e-6 else np.zeros_like(unit)


def _sum(values: np.ndarray) -> float:
    """Of planes, then of their sums in order of size: not even the last bit knows how slices or frames are ordered."""
    return float(np.sort(values.sum(axis=(0, 1)).ravel()).sum())


NORMALISATIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "as given": (_as_given, "as they are, in [-1, 1]"),
    "unit": (_unit, "(x + 1) / 2, in [0, 1]"),
    "least to largest": (_least_to_largest, "each volume's least value 0, its largest 1"),
    "foreground z-score": (
        _foreground_z_score,
        f"(x - mean) / deviation of each volume's voxels above {BACKGROUND:.0%} of the range; the background keeps "
        "its value where MedicalNet's own code fills it with noise",
    ),
}
