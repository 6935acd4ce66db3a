"""A network that names the parts of a heart, asked in one way whatever its grid, intensities and labels are.

A cine in [-1, 1] is brought to the network's grid by weighted means, and what was found is brought back by the nearest
voxel, and into our order: RV 1, myocardium 2, LV 3. Which grid that is, `Segmenter.grid` says. Directions in the plane
are left as they are in the cine; networks of others were trained on files in their scanner's directions, turned and
mirrored while training, if at all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.masks import reorder
from cardiodit.imaging.preprocessing import FILL
from cardiodit.imaging.resampling import apply_plans, index_map, plan_axis

BATCH = 16  # planes at once

Network = Callable[[np.ndarray, Geometry], np.ndarray]  # (H, W, D, T) in [-1, 1] → labels on the same grid


@dataclass(frozen=True)
class Grid:
    """What a cine is resampled to (mm) and then cropped or padded to (voxels) along H, W, D; None leaves it."""

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    size: tuple[int | None, int | None, int | None] = (None, None, None)


@dataclass(frozen=True)
class Segmenter:
    """A network that names the parts of a heart.

    Args:
        name: as it was asked for.
        identity: a hash of its weights, or of the source of a function.
        labels: its own order, as manifests write it in `mask_order`.
        grid: what cines are resampled to for it; labels come back by the nearest voxel.
        network: labels in its own order, of a cine on its grid.
        note: what a reader of its numbers should know.
    """

    name: str
    identity: str
    labels: str
    grid: Grid
    network: Network
    note: str = ""

    def segment(self, cine: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Labels (uint8) of a cine `(H, W, D, T)` in [-1, 1]: RV 1, myocardium 2, LV 3."""
        if cine.ndim != 4:
            raise CardioDiTError(f"A cine (H, W, D, T) can be segmented, this has the shape {tuple(cine.shape)}.")
        known = geometry.spacing or (None, None, None)
        if geometry.spacing is None and any(self.grid.spacing):
            raise CardioDiTError(
                f"The segmenter {self.name} sees hearts at {self.grid.spacing} mm, and the voxel size of this cine is "
                "unknown. Give its spacing in mm."
            )
        axes = zip(cine.shape, known, self.grid.spacing, self.grid.size, strict=False)
        plans = [plan_axis(n, s, t, m, resize=False) for n, s, t, m in axes]
        seen = apply_plans(cine, plans, FILL)
        found = self.network(seen, geometry.reindexed(index_map(plans)))
        if found.shape != seen.shape:
            raise CardioDiTError(f"The segmenter {self.name} answered {found.shape} to a cine of {seen.shape}.")
        ours = reorder(found, self.labels)
        return np.ascontiguousarray(apply_plans(ours, [plan.inverse() for plan in plans], 0, labels=True))


@torch.no_grad()
def identity_of(model: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names, types and shapes: the same wherever and from whatever file."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def from_0_to_1(voxels: np.ndarray) -> torch.Tensor:
    """Its smallest value becomes 0 and its largest 1; all 0 where they are the same."""
    image = torch.from_numpy(np.ascontiguousarray(voxels)).float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else torch.zeros_like(image)
