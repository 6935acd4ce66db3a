import pytest
import torch
import torch.nn.functional as F

from cardiodit.models.tiling import AxisTiles, run_tiled


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 40, 41])
@pytest.mark.parametrize("tile, stride", [(8, 4), (8, 6), (8, 1), (10, 9)])
@pytest.mark.parametrize("margin", [0, 2, 9])
@pytest.mark.parametrize("scale", [1, 4])
def test_windows_cover_every_sample(length: int, tile: int, stride: int, margin: int, scale: int) -> None:
    axis = AxisTiles(tile, stride, margin)
    total = torch.zeros(length * scale)
    for start in axis.starts(length):
        window = axis.window(start, length, scale)
        assert start >= 0 and start * scale + len(window) <= length * scale
        total[start * scale : start * scale + len(window)] += window
    assert total.min() > 0.1


def test_all_tiles_are_as_large_as_the_first() -> None:
    assert AxisTiles(40, 24, 9).starts(64) == [0, 24]
    assert AxisTiles(40, 24, 9).starts(70) == [0, 24, 30]
    assert AxisTiles(40, 24, 9).starts(40) == [0]


@pytest.mark.parametrize("size", [(24, 24), (30, 17), (8, 40)])
def test_a_convolution_is_exact_where_the_overlap_covers_its_reach(size: tuple[int, int]) -> None:
    kernel = torch.randn(1, 1, 5, 5, 1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, kernel, padding=(2, 2, 0))

    x = torch.randn(1, 1, *size, 3)
    tiles = AxisTiles(tile=12, stride=7, margin=2)
    assert torch.allclose(run_tiled(blur, x, (tiles, tiles), (1, 1), (1, 1)), blur(x), atol=1e-5)


def test_a_volume_is_exact_along_all_axes() -> None:
    kernel = torch.randn(2, 1, 3, 3, 3)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(F.conv3d(x, kernel, padding=1), scale_factor=2)

    x, tiles = torch.randn(2, 1, 13, 8, 21), AxisTiles(tile=8, stride=5, margin=1)
    tiled = run_tiled(enlarged, x, (tiles, tiles, tiles), (1, 1, 1), (2, 2, 2))
    assert torch.allclose(tiled, enlarged(x), atol=1e-5)


def test_without_enough_overlap_the_seams_are_blended_not_cut() -> None:
    """A constant offset that grows from tile to tile turns into a ramp, never into a jump."""
    calls = iter(range(100))

    def numbered(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, float(next(calls)))

    out = run_tiled(numbered, torch.zeros(1, 1, 8, 36, 1), (AxisTiles(8, 4, 0), AxisTiles(12, 6, 0)), (1, 1), (1, 1))
    assert out.diff(dim=3).abs().max() < 0.26
    assert out[0, 0, 0, 0, 0] == 0 and out[0, 0, 0, -1, 0] == 4
