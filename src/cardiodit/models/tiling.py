"""Run a convolutional network over overlapping tiles of a plane or a volume and blend the seams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch


@dataclass(frozen=True)
class AxisTiles:
    """How one axis is tiled. All numbers count latents; `margin` is how far a cut edge falsifies a tile."""

    tile: int
    stride: int
    margin: int

    def starts(self, length: int) -> list[int]:
        """First latents of the tiles; the last tile ends with the axis, so none is smaller than the others."""
        if length <= self.tile:
            return [0]
        return [*range(0, length - self.tile, self.stride), length - self.tile]

    def window(self, start: int, length: int, scale: int) -> torch.Tensor:
        """Blending weight of the tile at `start`, on an output with `scale` samples a latent.

        Across the overlap with a neighbour it rises from 0 to 1, but only beyond the falsified margin: where
        the overlap is at least twice the margin, the blended result is the untiled one.
        """
        starts = self.starts(length)
        size = min(self.tile, length)
        weight = torch.ones(size * scale)
        position = starts.index(start)
        if position > 0:
            weight *= self._ramp(starts[position - 1] + size - start, size, scale)
        if position < len(starts) - 1:
            weight *= self._ramp(start + size - starts[position + 1], size, scale).flip(0)
        return weight

    def _ramp(self, overlap: int, size: int, scale: int) -> torch.Tensor:
        overlap, margin = overlap * scale, self.margin * scale
        margin = min(margin, (overlap - 1) // 2)
        return ((torch.arange(size * scale) + 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)


def run_tiled(
    network: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    axes: Sequence[AxisTiles],
    in_scale: Sequence[int],
    out_scale: Sequence[int],
) -> torch.Tensor:
    """`network(x)` for x `(B, C, *size)`, computed tile by tile over the first axes of its size.

    `in_scale` and `out_scale` are the samples a latent of x and of the result along these axes.
    """
    lengths = [x.shape[2 + i] // scale for i, scale in enumerate(in_scale)]
    size = [length * scale for length, scale in zip(lengths, out_scale, strict=True)]
    total = weights = None
    for starts in product(*(tiles.starts(length) for tiles, length in zip(axes, lengths, strict=True))):
        where = [slice(a * s, (a + t.tile) * s) for a, t, s in zip(starts, axes, in_scale, strict=True)]
        tile = network(x[(slice(None), slice(None), *where)])
        window = _window(starts, axes, lengths, out_scale).to(tile.device)
        if total is None or weights is None:
            total = torch.zeros(*tile.shape[:2], *size, *tile.shape[2 + len(axes) :], device=tile.device)
            weights = torch.zeros(size, device=tile.device)
        place = tuple(slice(a * s, a * s + n) for a, s, n in zip(starts, out_scale, window.shape, strict=True))
        total[(slice(None), slice(None), *place)] += tile * _beside(window, tile)
        weights[place] += window
    assert total is not None and weights is not None  # there is at least one tile
    return total.div_(_beside(weights, total)).to(x.dtype)


def _window(
    starts: Sequence[int], axes: Sequence[AxisTiles], lengths: Sequence[int], scale: Sequence[int]
) -> torch.Tensor:
    """Blending weights of a tile: the product of those along its axes."""
    window = torch.ones(())
    for start, tiles, length, samples in zip(starts, axes, lengths, scale, strict=True):
        window = window[..., None] * tiles.window(start, length, samples)
    return window


def _beside(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Weights with axes of length one where x has axes that are not tiled."""
    return weights.reshape(*weights.shape, *[1] * (x.ndim - 2 - weights.ndim))
