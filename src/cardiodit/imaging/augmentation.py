"""Small changes of training volumes that keep hearts hearts: time stays time, slices stay slices, masks come along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cardiodit.errors import CardioDiTError


@dataclass(frozen=True)
class Augmentation:
    """Random rotation and flips within the plane of H and W, and of intensity.

    CardioDiT was published with the rotation and the flip of the defaults; there the rotation turned W into time.

    Args:
        rotation_degrees: at most so far to either side.
        rotation_probability, flip_probability: of each volume; H and W flip independently.
        flip_axes: 0 for H, 1 for W. A flipped heart is one that lies on the right: leave it out where that matters.
        intensity_probability: of a change of contrast and brightness.
        contrast, brightness: at most so much is multiplied to and added to values in [-1, 1].
    """

    rotation_degrees: float = 5.0
    rotation_probability: float = 0.2
    flip_probability: float = 0.5
    flip_axes: tuple[int, ...] = (0, 1)
    intensity_probability: float = 0.0
    contrast: float = 0.1
    brightness: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rotation_probability", "flip_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise CardioDiTError(f"{name}={getattr(self, name)} must be between 0 and 1.")
        if not set(self.flip_axes) <= {0, 1}:
            raise CardioDiTError(f"flip_axes={self.flip_axes} may hold 0 (H) and 1 (W) only.")

    def __call__(
        self,
        image: torch.Tensor,
        masks: Sequence[torch.Tensor] = (),
        generator: torch.Generator | None = None,
        plane: tuple[int, int] = (-3, -2),
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Changes an image and moves its masks along.

        Args:
            image: in [-1, 1]; a cine slice `(…, H, W, T)`, a cine `(…, D, H, W, T)` or a CT `(…, H, W, D)`.
            masks: with the image's H and W.
            generator: the same numbers, the same change.
            plane: axes of H and W: these for the models' cine tensors and for CT; (-2, -1) where nothing follows W.
            spacing: mm along H and W, so that a rotation stays one where they differ.
        """
        # Everything is drawn always, so that one choice does not shift the others.
        turn, flip_h, flip_w, change = torch.rand(4, generator=generator).tolist()
        angle, contrast, brightness = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        tensors = [image, *masks]
        if turn < self.rotation_probability:
            radians = math.radians(angle * self.rotation_degrees)
            tensors = [rotate(t, radians, plane, spacing, is_mask=i > 0) for i, t in enumerate(tensors)]
        flips = [plane[a] for a, chance in ((0, flip_h), (1, flip_w)) if self._flips(a, chance)]
        tensors = [t.flip(flips) for t in tensors] if flips else tensors
        if change < self.intensity_probability:
            stretched = tensors[0] * (1 + contrast * self.contrast) + brightness * self.brightness
            tensors[0] = stretched.clamp(-1, 1)
        return tensors[0], tensors[1:]

    def _flips(self, axis: int, chance: float) -> bool:
        return axis in self.flip_axes and chance < self.flip_probability


def rotate(
    tensor: torch.Tensor,
    radians: float,
    plane: tuple[int, int] = (-3, -2),
    spacing: tuple[float, float] = (1.0, 1.0),
    is_mask: bool = False,
) -> torch.Tensor:
    """Turns every plane of H and W around its centre; the edge is continued outwards, masks keep their labels."""
    moved = tensor.movedim(plane, (-2, -1))  # (…, H, W)
    height, width = moved.shape[-2:]
    flat = moved.reshape(1, -1, height, width)
    grid = _rotated_grid(height, width, radians, spacing).to(flat.device)
    turned = torch.nn.functional.grid_sample(
        flat.float(),
        grid[None],
        mode="nearest" if is_mask else "bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return turned.to(tensor.dtype).reshape(moved.shape).movedim((-2, -1), plane)


def _rotated_grid(height: int, width: int, radians: float, spacing: tuple[float, float]) -> torch.Tensor:
    """(H, W, 2): where each voxel's value comes from, in grid_sample's coordinates (W first, -1 to 1)."""
    h = (torch.arange(height) - (height - 1) / 2)[:, None] * spacing[0]  # mm from the centre
    w = (torch.arange(width) - (width - 1) / 2)[None, :] * spacing[1]
    cosine, sine = math.cos(radians), math.sin(radians)
    from_h = (cosine * h + sine * w) / (spacing[0] * max(height - 1, 1) / 2)
    from_w = (-sine * h + cosine * w) / (spacing[1] * max(width - 1, 1) / 2)
    return torch.stack([from_w, from_h], dim=-1)
