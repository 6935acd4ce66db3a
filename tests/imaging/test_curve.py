from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cardiodit.imaging.curve import draw_curve, round_step, write_curve
from cardiodit.imaging.pictures import COLOURS


def test_the_line_is_at_the_volumes() -> None:
    """Two beats differ where their volumes do: the larger one is drawn higher, in proportion to the axis."""
    picture = np.asarray(draw_curve([150.0, 100, 50, 100], 0.2)).astype(int)
    is_line = np.abs(picture - COLOURS[3]).sum(axis=-1) < 60
    rows = [np.flatnonzero(is_line[:, x]).mean() for x in range(60, 460) if is_line[:, x].any()]
    assert np.argmax(rows) == pytest.approx(len(rows) / 2, abs=len(rows) * 0.05)  # the smallest in mid-beat
    top, bottom = 34, 260  # 160 mL and 0 mL
    assert min(rows) == pytest.approx(bottom - (bottom - top) * 150 / 160, abs=6)
    assert max(rows) == pytest.approx(bottom - (bottom - top) * 50 / 160, abs=6)


@pytest.mark.parametrize(("highest", "step"), [(140, 20), (260, 50), (47, 10), (9, 2), (0, 2e-7)])
def test_grid_lines_are_round(highest: float, step: float) -> None:
    assert round_step(highest) == pytest.approx(step)


def test_it_is_written_even_for_an_empty_heart(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve.png", [0.0, 0.0, 0.0])
    assert Image.open(tmp_path / "curve.png").size == (480, 300)
