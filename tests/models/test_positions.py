import itertools
import math

import pytest
import torch

from cardiodit.models.positions import sincos_positions


def closed_form(grid: tuple[int, ...], dim: int) -> torch.Tensor:
    """Feature by feature in float64, from the definition."""
    width = 2 * math.ceil(dim / (2 * len(grid)))
    rows = []
    for cell in itertools.product(*(range(length) for length in grid)):
        row = []
        for position in cell:
            angles = [position * 10000 ** (-2 * i / width) for i in range(width // 2)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row[:dim])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    "grid, dim", [((6, 4, 5, 3), 64), ((4, 5, 6), 48), ((4, 5, 6), 64), ((7,), 16), ((2, 3, 2, 2), 20)]
)
def test_positions_follow_the_definition(grid: tuple[int, ...], dim: int) -> None:
    assert (sincos_positions(grid, dim).double() - closed_form(grid, dim)).abs().max() < 1e-6


def test_a_longer_axis_keeps_the_positions_of_the_shorter_one() -> None:
    short = sincos_positions((2, 3, 3, 2), 32).view(2, 3, 3, 2, 32)
    long = sincos_positions((5, 3, 4, 2), 32).view(5, 3, 4, 2, 32)
    assert torch.equal(long[:2, :, :3], short)


def test_every_token_has_its_own_position() -> None:
    positions = sincos_positions((6, 16, 16, 4), 768)
    assert len(torch.unique((positions * 1e4).round(), dim=0)) == 6 * 16 * 16 * 4
