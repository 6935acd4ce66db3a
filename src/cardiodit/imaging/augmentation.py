"""Random changes of training volumes within the image plane, never across slices or time; masks move along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cardiodit.errors import CardioDiTError


@dataclass(frozen=True)
class Augmentation:
    """Random rotation and flips within the plane of H and W, and random changes of intensity.

    The default rotation and flip are those CardioDiT was published with, except that its rotation mixed W with time.

    Args:
        rotation_degrees: largest rotation within the plane, in degrees in either direction.
        rotation_probability: probability of rotating a training sample.
        flip_probability: probability of flipping a training sample along each of `flip_axes`, independently.
        flip_axes: axes that may be flipped, 0 for H and 1 for W. A flipped heart lies on the wrong side of the chest;
            give [] if that matters.
        intensity_probability: probability of changing contrast and brightness of a training sample.
        contrast: largest relative change of contrast; intensities in [-1, 1] are multiplied by 1 ± this value.
        brightness: largest value that is added to or subtracted from all intensities in [-1, 1].
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
            raise CardioDiTError(f"flip_axes={self.flip_axes} may only contain 0 (H) and 1 (W).")

    def __call__(
        self,
        image: torch.Tensor,
        masks: Sequence[torch.Tensor] = (),
        generator: torch.Generator | None = None,
        plane: tuple[int, int] = (-3, -2),
        spacing: tuple[float, float] = (1.0, 1.0),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Change an image at random and move its masks along.

        Args:
            image: cine slice `(…, H, W, T)`, cine `(…, D, H, W, T)` or CT `(…, H, W, D)` in [-1, 1].
            masks: masks with the image's H and W.
            generator: source of all random numbers.
            plane: axes of H and W; the default fits the models' cine tensors and CT, (-2, -1) fits `(…, H, W)`.
            spacing: voxel size along H and W in mm, so that a rotation does not shear if they differ.
        """
        # All numbers are always drawn, so that one setting does not shift the others.
        turn, flip_h, flip_w, change = torch.rand(4, generator=generator).tolist()
        angle, contrast, brightness = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        tensors = [image, *masks]
        if turn < self.rotation_probability:
            radians = math.radians(angle * self.rotation_degrees)
            tensors = [rotate(t, radians, plane, spacing, is_mask=i > 0) for i, t in enumerate(tensors)]
        draws = {0: flip_h, 1: flip_w}
        flips = [plane[a] for a in draws if a in self.flip_axes and draws[a] < self.flip_probability]
        tensors = [t.flip(flips) for t in tensors] if flips else tensors
        if change < self.intensity_probability:
            changed = tensors[0] * (1 + contrast * self.contrast) + brightness * self.brightness
            tensors[0] = changed.clamp(-1, 1)
        return tensors[0], tensors[1:]


def rotate(
    tensor: torch.Tensor,
    radians: float,
    plane: tuple[int, int] = (-3, -2),
    spacing: tuple[float, float] = (1.0, 1.0),
    is_mask: bool = False,
) -> torch.Tensor:
    """Rotate every plane of H and W around its centre; edge values extend outwards, masks keep their labels."""
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
    """Return the source position of each voxel (H, W, 2) in grid_sample's coordinates (W first, -1 to 1)."""
    h = (torch.arange(height) - (height - 1) / 2)[:, None] * spacing[0]  # mm from the centre
    w = (torch.arange(width) - (width - 1) / 2)[None, :] * spacing[1]
    cosine, sine = math.cos(radians), math.sin(radians)
    from_h = (cosine * h + sine * w) / (spacing[0] * max(height - 1, 1) / 2)
    from_w = (-sine * h + cosine * w) / (spacing[1] * max(width - 1, 1) / 2)
    return torch.stack([from_w, from_h], dim=-1)
