"""A second decoder of an autoencoder: the label of each voxel from the latents, so that every sample has its mask."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

NORM_GROUPS = 4


class MaskHead(nn.Module):
    """Decode latents `(B, C, *size)` of three axes into logits `(B, labels, *voxels)`.

    Args:
        in_channels: number of latent channels.
        channels: width at the latents' resolution; it halves with each level.
        strides: factors by which each level enlarges the three axes, from the latents to the image.
        labels: number of labels, including the background.
    """

    def __init__(self, in_channels: int, channels: int, strides: Sequence[Sequence[int]], labels: int) -> None:
        super().__init__()
        self.strides = [tuple(stride) for stride in strides]
        self.conv_in = nn.Conv3d(in_channels, channels, 3, padding=1)
        self.middle = nn.ModuleList([Residual(channels), Residual(channels)])
        self.levels = nn.ModuleList()
        width = channels
        for _ in strides:
            smaller = max(NORM_GROUPS * 2, width // 2)
            self.levels.append(nn.Sequential(nn.Conv3d(width, smaller, 3, padding=1), Residual(smaller)))
            width = smaller
        self.out = nn.Conv3d(width, labels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(latents)
        for block in self.middle:
            hidden = block(hidden)
        for stride, level in zip(self.strides, self.levels, strict=True):
            hidden = level(F.interpolate(hidden, scale_factor=[float(n) for n in stride], mode="nearest"))
        return self.out(hidden)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.GroupNorm(NORM_GROUPS, channels) for _ in range(2))
        self.conv_1, self.conv_2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.conv_1(F.silu(self.norm_1(hidden)))
        return hidden + self.conv_2(F.silu(self.norm_2(inner)))
