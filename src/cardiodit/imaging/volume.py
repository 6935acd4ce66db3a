"""A volume with its geometry, and operations that move voxels but keep every landmark in its place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry

AXES = ("height", "width", "depth", "frames")  # of `Volume.voxels`; a 3D volume has no frames


@dataclass(frozen=True)
class Volume:
    """Voxels `(H, W, D)` or `(H, W, D, T)` with their geometry. Operations return a new volume."""

    voxels: np.ndarray
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4):
            raise CardioDiTError(f"A volume has axes (H, W, D) or (H, W, D, T), got the shape {self.voxels.shape}.")

    @property
    def is_cine(self) -> bool:
        return self.voxels.ndim == 4

    @property
    def beat_time(self) -> float | None:
        """Duration of all frames together in seconds, if known."""
        frame_time = self.geometry.frame_time
        return None if frame_time is None or not self.is_cine else frame_time * self.voxels.shape[3]

    def permute(self, axes: Sequence[int]) -> "Volume":
        """Reorder the spatial axes: new axis i is the old axis `axes[i]`. Time stays last."""
        if sorted(axes) != [0, 1, 2]:
            raise CardioDiTError(f"axes={tuple(axes)} must be a permutation of 0, 1 and 2.")
        index_map = np.eye(4)[[*axes, 3]].T
        return Volume(self.voxels.transpose(*axes, *range(3, self.voxels.ndim)), self.geometry.reindexed(index_map))

    def flip(self, axis: int) -> "Volume":
        """Reverse one spatial axis."""
        index_map = np.eye(4)
        index_map[axis, axis], index_map[axis, 3] = -1, self.voxels.shape[axis] - 1
        return Volume(np.flip(self.voxels, axis), self.geometry.reindexed(index_map))

    def crop(self, start: Sequence[int], size: Sequence[int]) -> "Volume":
        """Cut out the box of `size` voxels that begins at `start`."""
        box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        if any(s.start < 0 or s.stop > n or n < 1 for s, n in zip(box, self.voxels.shape)):
            raise CardioDiTError(
                f"The box of size {tuple(size)} at {tuple(start)} extends beyond the volume {self.voxels.shape[:3]}."
            )
        return Volume(self.voxels[box], self.geometry.reindexed(_shift(start)))

    def pad(self, before: Sequence[int], behind: Sequence[int], value: float = 0) -> "Volume":
        """Add voxels of a constant value before and behind H, W and D."""
        width = [*zip(before, behind, strict=True), (0, 0)][: self.voxels.ndim]
        voxels = np.pad(self.voxels, width, constant_values=value)
        return Volume(voxels, self.geometry.reindexed(_shift([-n for n in before])))

    def roll(self, first_frame: int) -> "Volume":
        """Rotate the cycle so that it begins with `first_frame`."""
        if not self.is_cine:
            raise CardioDiTError(f"A 3D volume of shape {self.voxels.shape} has no frames to roll.")
        return replace(self, voxels=np.roll(self.voxels, -first_frame, axis=3)) if first_frame else self


def _shift(start: Sequence[float]) -> np.ndarray:
    """4×4 index map of a grid that begins at `start`."""
    index_map = np.eye(4)
    index_map[:3, 3] = start
    return index_map
