"""Random changes of training volumes: turns, flips, intensities, never across time; masks move along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cardiodit.errors import CardioDiTError

IN_PLANE = (2,)  # the axis about which slices turn within their plane


@dataclass(frozen=True)
class Augmentation:
    """Random rotation and flips, by default within the plane of H and W, and random changes of intensity.

    The default rotation and flip are those CardioDiT was published with, except that its rotation mixed W with time.

    Args:
        rotation_degrees: largest rotation about each of `rotation_axes`, in degrees in either direction.
        rotation_probability: probability of rotating a training sample.
        rotation_axes: axes about which it turns, 0 for H, 1 for W and 2 for D. [2] turns within the plane of H and W;
            a cine can only be turned so. [0, 1, 2] is for 3D volumes, as MedLoRD was published with.
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
    rotation_axes: tuple[int, ...] = IN_PLANE

    def __post_init__(self) -> None:
        for name in ("rotation_probability", "flip_probability", "intensity_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise CardioDiTError(f"{name}={getattr(self, name)} must be between 0 and 1.")
        if not set(self.flip_axes) <= {0, 1}:
            raise CardioDiTError(f"flip_axes={self.flip_axes} may only contain 0 (H) and 1 (W).")
        if not self.rotation_axes or not set(self.rotation_axes) <= {0, 1, 2}:
            raise CardioDiTError(f"rotation_axes={self.rotation_axes} may only contain 0 (H), 1 (W) and 2 (D).")

    def check(self, is_cine: bool) -> None:
        """Raise an error if slices of a cine, whose last axis is time, would be turned out of their plane."""
        if is_cine and self.turns_volumes:
            raise CardioDiTError(
                f"rotation_axes={list(self.rotation_axes)} turns slices out of their plane, which only 3D volumes can "
                "be; for cine it must be [2]."
            )

    @property
    def is_active(self) -> bool:
        """True if anything is ever changed."""
        return max(self.rotation_probability, self.flip_probability, self.intensity_probability) > 0

    @property
    def turns_volumes(self) -> bool:
        """True if slices are also turned out of their plane, which only 3D volumes can be."""
        return self.rotation_probability > 0 and set(self.rotation_axes) != set(IN_PLANE)

    def __call__(
        self,
        image: torch.Tensor,
        masks: Sequence[torch.Tensor] = (),
        generator: torch.Generator | None = None,
        plane: tuple[int, int] = (-3, -2),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Change an image at random and move its masks along.

        Args:
            image: cine slice `(…, H, W, T)`, cine `(…, D, H, W, T)` or CT `(…, H, W, D)` in [-1, 1].
            masks: masks with the image's H and W.
            generator: source of all random numbers.
            plane: axes of H and W; the default fits the models' cine tensors and CT, (-2, -1) fits `(…, H, W)`.
            spacing: voxel size along H, W and, to turn volumes, D in mm, so that a rotation does not shear if they
                differ.
        """
        # All numbers are always drawn, so that one setting does not shift the others.
        turn, flip_h, flip_w, change = torch.rand(4, generator=generator).tolist()
        angle, contrast, brightness = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        tensors = [image, *masks]
        if self.turns_volumes:
            angles = (angle, *(torch.rand(2, generator=generator) * 2 - 1).tolist())
        if turn < self.rotation_probability and self.turns_volumes:
            about = [angles[2 - axis] * self.rotation_degrees * (axis in self.rotation_axes) for axis in range(3)]
            matrix = rotation_matrix(*map(math.radians, about))
            tensors = [rotate_volume(t, matrix, spacing, is_mask=i > 0) for i, t in enumerate(tensors)]
        elif turn < self.rotation_probability:
            radians_in_plane = math.radians(angle * self.rotation_degrees)
            tensors = [rotate(t, radians_in_plane, plane, spacing[:2], is_mask=i > 0) for i, t in enumerate(tensors)]
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
    spacing: Sequence[float] = (1.0, 1.0),
    is_mask: bool = False,
) -> torch.Tensor:
    """Rotate every plane of H and W around its centre; edge values extend outwards, masks keep their labels."""
    moved = tensor.movedim(plane, (-2, -1))  # (…, H, W)
    flat = moved.reshape(1, -1, *moved.shape[-2:])
    cosine, sine = math.cos(radians), math.sin(radians)
    turned = _turned(flat, torch.tensor([[cosine, -sine], [sine, cosine]]), spacing, is_mask)
    return turned.to(tensor.dtype).reshape(moved.shape).movedim((-2, -1), plane)


def rotation_matrix(about_h: float, about_w: float, about_d: float) -> torch.Tensor:
    """Return the matrix (3, 3) that turns mm along H, W, D about D, then W, then H, by angles in radians."""
    matrix = torch.eye(3)
    for first, second, angle in ((0, 1, about_d), (0, 2, about_w), (1, 2, about_h)):
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def rotate_volume(
    tensor: torch.Tensor, matrix: torch.Tensor, spacing: Sequence[float] = (1.0, 1.0, 1.0), is_mask: bool = False
) -> torch.Tensor:
    """Rotate volumes `(…, H, W, D)` around their centre; edge values extend outwards, masks keep their labels."""
    flat = tensor.reshape(1, -1, *tensor.shape[-3:])
    return _turned(flat, matrix, spacing, is_mask).to(tensor.dtype).reshape(tensor.shape)


def _turned(flat: torch.Tensor, matrix: torch.Tensor, spacing: Sequence[float], is_mask: bool) -> torch.Tensor:
    """Rotate `(1, N, *size)` by a matrix of mm, and sample it at the places where its voxels come from."""
    size = flat.shape[2:]
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) @ matrix  # row vectors: by the inverse
    half = torch.tensor([mm * max(n - 1, 1) / 2 for n, mm in zip(size, spacing, strict=True)])
    return torch.nn.functional.grid_sample(
        flat.float(),
        (places / half).flip(-1)[None].to(flat.device),  # -1 to 1, the last axis first
        mode="nearest" if is_mask else "bilinear",
        padding_mode="border",
        align_corners=True,
    )
