"""Every slice, frame, caption and curve is where it belongs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cardiodit.imaging.figures import (
    CURVE,
    MARGIN,
    TILE,
    draw_curve,
    round_step,
    write_beating_rows,
    write_curve,
    write_sheet_with_curve,
)
from cardiodit.imaging.pictures import COLOURS


def marked(level: float, slices: int = 3, frames: int = 4) -> np.ndarray:
    """A dark cine with a bright square in slice s of frame s only."""
    cine = np.full((16, 16, slices, frames), -1.0, np.float32)
    for s in range(min(slices, frames)):
        cine[4:12, 4:12, s, s] = level
    return cine


def bright_columns(picture: np.ndarray) -> set[int]:
    """Return the slices of a row that are bright in their middle."""
    middle = picture[TILE // 2, MARGIN:].reshape(-1, TILE)[:, TILE // 2]
    return set(np.flatnonzero(middle > 128).tolist())


def test_rows_beat_next_to_their_names(tmp_path: Path) -> None:
    path = tmp_path / "hearts.gif"
    write_beating_rows(path, [("first", marked(1.0)), ("second", -marked(1.0))], frame_time=0.05)
    with Image.open(path) as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0 and gif.info["duration"] == 50
        assert gif.size == (MARGIN + 3 * TILE, 2 * TILE)
        for frame in range(4):
            gif.seek(frame)
            picture = np.asarray(gif.convert("L"))
            beating = {frame} if frame < 3 else set()
            assert bright_columns(picture[:TILE]) == beating
            assert bright_columns(picture[TILE:]) == {0, 1, 2} - beating
            for row in (0, 1):
                name = picture[row * TILE : (row + 1) * TILE, :MARGIN]
                assert name.max() > 200 and (name > 128).mean() < 0.2  # letters on black


def test_a_sheet_has_a_row_for_each_frame_and_the_curve_below(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_sheet_with_curve(path, "normal", marked(1.0), [100, 60, 40, 80], frame_time=0.05)
    with Image.open(path) as sheet:
        assert sheet.size == (MARGIN + CURVE[0], 4 * TILE + CURVE[1])  # the curve is wider than three slices
        picture = np.asarray(sheet.convert("RGB")).astype(int)
    grey = picture.mean(axis=2)
    for frame in range(3):
        assert bright_columns(grey[frame * TILE : (frame + 1) * TILE, : MARGIN + 3 * TILE]) == {frame}
    red = (picture[..., 0] > 200) & (picture[..., 1] < 120)
    assert red[4 * TILE :, MARGIN:].sum() > 100  # the ventricle's line
    assert not red[: 4 * TILE].any()


def test_more_than_eight_frames_are_thinned_evenly(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_sheet_with_curve(path, "long", marked(1.0, slices=5, frames=30), [100] * 29 + [50])
    with Image.open(path) as sheet:
        assert sheet.height == 8 * TILE + CURVE[1]


def test_the_curve_is_at_the_volumes() -> None:
    """Volumes are drawn in proportion to the axis, the smallest in mid-beat."""
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


def test_a_curve_is_written_even_for_an_empty_heart(tmp_path: Path) -> None:
    write_curve(tmp_path / "curve.png", [0.0, 0.0, 0.0])
    assert Image.open(tmp_path / "curve.png").size == (480, 300)
