"""Voxel size, frame time and position in the scanner."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cardiodit.errors import CardioDiTError

Triple = tuple[float, float, float]
SAME_SPACING = 0.01  # largest relative difference between spacings that count as equal
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume lie; None means unknown, not 1.

    Args:
        spacing: voxel size in mm along H, W, D.
        frame_time: seconds between frames.
        direction: rows of the 3×3 matrix whose columns are the directions of H, W and D in NIfTI's patient space
            (x to the right, y to the front, z to the head). Columns have length 1; they need not be perpendicular.
        origin: centre of the first voxel in mm.
        in_scanner: True if direction and origin come from a scanner; otherwise they only record how the volume was
            cropped and turned.
    """

    spacing: Triple | None = None
    frame_time: float | None = None
    direction: tuple[Triple, Triple, Triple] = IDENTITY
    origin: Triple = (0.0, 0.0, 0.0)
    in_scanner: bool = False

    def __post_init__(self) -> None:
        if self.spacing is not None and (len(self.spacing) != 3 or not all(_is_positive(s) for s in self.spacing)):
            raise CardioDiTError(f"spacing must be three positive numbers in mm (H, W, D), got {self.spacing}.")
        if self.frame_time is not None and not _is_positive(self.frame_time):
            raise CardioDiTError(f"frame_time must be a positive number of seconds, got {self.frame_time}.")

    @classmethod
    def of_affine(cls, affine: np.ndarray, frame_time: float | None = None, in_scanner: bool = True) -> Self:
        """Create a geometry from the 4×4 matrix that maps voxel indices to mm."""
        affine = np.asarray(affine, dtype=float)
        linear = affine[:3, :3]
        spacing = np.linalg.norm(linear, axis=0).round(6)  # float32 headers store 1.4 as 1.3999999
        if not np.isfinite(affine).all() or not (spacing > 0).all() or abs(np.linalg.det(linear / spacing)) < 1e-3:
            raise CardioDiTError(f"The affine does not span space: {affine.tolist()}.")
        return cls(_triple(spacing), frame_time, _rows(linear / spacing), _triple(affine[:3, 3]), in_scanner)

    @property
    def affine(self) -> np.ndarray:
        """4×4 matrix from voxel indices to mm; the identity if the spacing is unknown."""
        affine = np.eye(4)
        if self.spacing is not None:
            affine[:3, :3] = np.array(self.direction) * self.spacing
            affine[:3, 3] = self.origin
        return affine

    @property
    def shear_degrees(self) -> float:
        """Largest deviation of two axes from a right angle, in degrees."""
        cosines = np.array(self.direction).T @ np.array(self.direction)
        largest = np.abs(cosines[np.triu_indices(3, 1)]).max()
        return math.degrees(math.asin(min(1.0, float(largest))))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL; raises if the voxel size is unknown."""
        if self.spacing is None:
            raise CardioDiTError(
                "The voxel size is unknown, so no volume in mL can be computed. Give the spacing in mm."
            )
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def reindexed(self, index_map: np.ndarray) -> "Geometry":
        """Return the geometry of a new grid; `index_map` (4×4) maps its indices to indices of this grid."""
        if self.spacing is None:
            return self
        return Geometry.of_affine(self.affine @ index_map, self.frame_time, self.in_scanner)

    def after(self, index_map: np.ndarray) -> "Geometry":
        """Deprecated: use `reindexed`."""
        warnings.warn("Geometry.after is deprecated; use Geometry.reindexed.", DeprecationWarning, stacklevel=2)
        return self.reindexed(index_map)

    def with_frame_time(self, frame_time: float | None) -> "Geometry":
        return replace(self, frame_time=frame_time)

    def is_close(self, other: "Geometry", mm: float = 0.1) -> bool:
        """Return True if both grids agree to `mm` over the extent of a heart (100 × 100 × 10 voxels).

        An unknown spacing only agrees with an unknown spacing.
        """
        if (self.spacing is None) != (other.spacing is None):
            return False
        corners = np.array([[x, y, z, 1.0] for x in (0, 100) for y in (0, 100) for z in (0, 10)]).T
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= mm)

    def to_dict(self) -> dict[str, Any]:
        return {
            "spacing": None if self.spacing is None else list(self.spacing),
            "frame_time": self.frame_time,
            "direction": [list(row) for row in self.direction],
            "origin": list(self.origin),
            "in_scanner": self.in_scanner,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        spacing = None if values["spacing"] is None else tuple(values["spacing"])
        direction, origin = _rows(np.array(values["direction"])), tuple(values["origin"])
        return cls(spacing, values["frame_time"], direction, origin, values["in_scanner"])


def common_spacing(geometries: Sequence[Geometry]) -> Triple | None:
    """Return the voxel size that all geometries share, in mm; None if any is unknown or they differ."""
    known = [geometry.spacing for geometry in geometries if geometry.spacing is not None]
    if not known or len(known) < len(geometries):
        return None
    median = np.median(np.array(known), axis=0)
    return _triple(median) if np.abs(np.array(known) / median - 1).max() <= SAME_SPACING else None


def spacing_for(geometries: Sequence[Geometry]) -> Triple | None:
    """Recommend one voxel size for volumes that differ in theirs; None if they share one already or none is known.

    It is the median along the slices and, so that voxels stay square, the median over both axes of the plane.
    """
    known = np.array([geometry.spacing for geometry in geometries if geometry.spacing is not None])
    if not len(known) or np.abs(known / np.median(known, axis=0) - 1).max() <= SAME_SPACING:
        return None
    sizes = [known[:, :2], known[:, :2], known[:, 2]]
    middle = [float(np.median(of_axis)) for of_axis in sizes]
    differ = [np.abs(of_axis / m - 1).max() > SAME_SPACING for of_axis, m in zip(sizes, middle, strict=True)]
    height, width, depth = (round(m, 2 if is_mixed else 6) for m, is_mixed in zip(middle, differ, strict=True))
    return height, width, depth


def mm_of(geometries: Sequence[Geometry]) -> str:
    """Describe the known voxel sizes of volumes, such as "1.25 to 1.4 × 1.25 to 1.4 × 8 mm"."""
    known = np.array([geometry.spacing for geometry in geometries if geometry.spacing is not None])
    ends = [sorted({f"{end:.4g}" for end in (axis.min(), axis.max())}, key=float) for axis in known.T]
    return " × ".join(" to ".join(axis) for axis in ends) + " mm"


def _rows(matrix: np.ndarray) -> tuple[Triple, Triple, Triple]:
    first, second, third = (_triple(row) for row in matrix)
    return first, second, third


def _triple(numbers: np.ndarray) -> Triple:
    first, second, third = (float(number) for number in numbers)
    return first, second, third


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0
