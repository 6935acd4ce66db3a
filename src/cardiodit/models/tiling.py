"""Run a convolutional network over overlapping tiles of a plane and blend the seams."""

from collections.abc import Callable
from dataclasses import dataclass

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
    axes: tuple[AxisTiles, AxisTiles],
    in_scale: tuple[int, int],
    out_scale: tuple[int, int],
) -> torch.Tensor:
    """`network(x)` for x `(B, C, H, W, *)`, computed tile by tile over H and W.

    `in_scale` and `out_scale` are the samples a latent of x and of the result along H and W.
    """
    lengths = [x.shape[2] // in_scale[0], x.shape[3] // in_scale[1]]
    total = weights = None
    for top in axes[0].starts(lengths[0]):
        for left in axes[1].starts(lengths[1]):
            rows = slice(top * in_scale[0], (top + axes[0].tile) * in_scale[0])
            columns = slice(left * in_scale[1], (left + axes[1].tile) * in_scale[1])
            tile = network(x[:, :, rows, columns])
            window = torch.outer(
                axes[0].window(top, lengths[0], out_scale[0]), axes[1].window(left, lengths[1], out_scale[1])
            ).to(tile.device)
            if total is None or weights is None:
                plane = [lengths[0] * out_scale[0], lengths[1] * out_scale[1]]
                total = torch.zeros(*tile.shape[:2], *plane, *tile.shape[4:], device=tile.device)
                weights = torch.zeros(plane, device=tile.device)
            rows = slice(top * out_scale[0], top * out_scale[0] + window.shape[0])
            columns = slice(left * out_scale[1], left * out_scale[1] + window.shape[1])
            total[:, :, rows, columns] += tile * window[..., None]
            weights[rows, columns] += window
    assert total is not None and weights is not None  # every plane has at least one tile
    return (total / weights[..., None]).to(tile.dtype)
