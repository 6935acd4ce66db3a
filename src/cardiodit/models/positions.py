"""Fixed sine-cosine positions of a token grid with any number of axes."""

import math
from collections.abc import Sequence

import torch


def axis_width(dim: int, num_axes: int) -> int:
    """Features for each axis: an equal, even share of `dim`, rounded up (the surplus is cut off at the end)."""
    return 2 * math.ceil(dim / (2 * num_axes))


def sincos_axis(length: int, width: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Positions 0..length-1 of one axis: (length, width), first all sines, then all cosines."""
    half = width // 2
    frequencies = torch.tensor([10000 ** (-i / half) for i in range(half)], device=device)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_positions(
    grid: Sequence[int],
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Positions of all tokens of `grid`, (tokens, dim), last axis fastest; computed for the grid at hand."""
    width = axis_width(dim, len(grid))
    features = []
    for axis, length in enumerate(grid):
        shape = [length if a == axis else 1 for a in range(len(grid))]
        features.append(sincos_axis(length, width, device).view(*shape, width).expand(*grid, width))
    return torch.cat(features, dim=-1).flatten(0, -2)[:, :dim].to(dtype)


def fourier_positions(
    grid: Sequence[int],
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """PRDiT's positions of all tokens of `grid`, (tokens, dim): waves over the whole volume, whatever its grid.

    Sines and cosines of 2π·f·(i + 0.5)/g, of the last axis first; f rises geometrically from 1 to 0.95·g/2.
    """
    count = math.ceil(dim / (2 * len(grid)))  # frequencies an axis; the surplus is cut off at the end
    features = []
    for axis, length in reversed(list(enumerate(grid))):
        highest = 0.95 * length / 2
        frequencies = highest ** torch.linspace(0, 1, count, dtype=torch.float64)
        centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        angles = 2 * math.pi * torch.outer(centres, frequencies)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        shape = [length if a == axis else 1 for a in range(len(grid))]
        features.append(waves.view(*shape, 2 * count).expand(*grid, 2 * count))
    return torch.cat(features, dim=-1).flatten(0, -2)[:, :dim].to(device, dtype)
