"""How large a voxel is and how long a frame lasts."""

from dataclasses import dataclass

import numpy as np

from cardiodit.errors import CardioDiTError


@dataclass(frozen=True)
class Geometry:
    """Voxel size in mm along H, W, D and seconds between frames; None means unknown, not 1."""

    spacing: tuple[float, float, float] | None = None
    frame_time: float | None = None

    def __post_init__(self) -> None:
        if self.spacing is not None and (len(self.spacing) != 3 or not all(s > 0 for s in self.spacing)):
            raise CardioDiTError(f"spacing must be three positive numbers in mm (H, W, D), got {self.spacing}.")
        if self.frame_time is not None and not self.frame_time > 0:
            raise CardioDiTError(f"frame_time must be a positive number of seconds, got {self.frame_time}.")

    @property
    def affine(self) -> np.ndarray:
        """Voxel index → mm with the origin in the first voxel; without a spacing, the index itself."""
        return np.diag([*(self.spacing or (1.0, 1.0, 1.0)), 1.0])
