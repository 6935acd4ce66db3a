from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.phantom import Phantom
from cardiodit.imaging.pictures import (
    COLOURS,
    TILE_NAME,
    TILE_SIDE,
    TILES_ACROSS,
    TILES_DOWN,
    tile_of,
    window_of,
    write_comparison,
    write_gif,
    write_overview,
    write_sheet,
)
from cardiodit.imaging.volume import Volume


def test_the_gif_plays_every_frame_of_every_slice_turned_for_the_viewer(tmp_path: Path) -> None:
    cine = np.full((40, 30, 3, 5), -1.0)
    for frame in range(5):
        cine[35, 2, 1, frame] = -1 + 0.4 * frame  # far along the first axis, low on the second, slice 1
    write_gif(tmp_path / "heart.gif", cine, Geometry(frame_time=0.05))
    gif = Image.open(tmp_path / "heart.gif")
    zoom = round(128 / 30)
    assert gif.n_frames == 5 and gif.info["duration"] == 50 and gif.info["loop"] == 0
    assert gif.size == (3 * 40 * zoom, 30 * zoom)
    gif.seek(4)
    picture = np.asarray(gif.convert("L"), dtype=float)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert column // zoom == 40 + 35  # second picture from the left, to the right in it
    assert row // zoom == 30 - 1 - 2  # low


def test_a_sheet_has_a_row_a_frame_and_outlines_in_colour(tmp_path: Path) -> None:
    cine = np.zeros((40, 30, 3, 20))
    masks = np.zeros(cine.shape, np.uint8)
    masks[10:20, 5:15, 1] = 3
    write_sheet(tmp_path / "heart.png", cine, masks, window=(0.0, 1.0))
    picture = Image.open(tmp_path / "heart.png")
    zoom = round(128 / 30)
    assert picture.size == (3 * 40 * zoom, 8 * 30 * zoom)
    red = (np.asarray(picture)[..., 0] > 200) & (np.asarray(picture)[..., 1] < 150)
    rows, columns = np.nonzero(red[: 30 * zoom])
    assert columns.min() // zoom == 40 + 10 and columns.max() // zoom == 40 + 19  # slice 1, in the middle
    assert rows.min() // zoom == 30 - 15 and rows.max() // zoom == 30 - 6  # turned upwards
    assert not red[(30 - 10) * zoom, (40 + 15) * zoom], "only the outline is drawn"


def test_few_frames_make_few_rows(tmp_path: Path) -> None:
    write_sheet(tmp_path / "heart.png", np.zeros((130, 128, 2, 3)))
    assert Image.open(tmp_path / "heart.png").size == (2 * 130, 3 * 128)


def test_the_window_follows_the_scanner_and_survives_a_constant() -> None:
    assert window_of(np.arange(1001.0)) == (5.0, 995.0)
    low, high = window_of(np.full(10, 7.0))
    assert low == 7.0 and high > low


def test_a_comparison_has_three_rows_a_frame_and_a_line_below(tmp_path: Path) -> None:
    original = np.full((130, 128, 2, 6), -1.0)
    other = original.copy()
    original[..., 2:], other[..., 2:] = 0.0, 0.25
    write_comparison(tmp_path / "pair.png", original, other)
    picture = np.asarray(Image.open(tmp_path / "pair.png"))
    frame = 3 * 128 + 2
    assert picture.shape == (3 * frame, 2 * 130)
    levels = [[int(picture[t * frame + row * 128 + 64, 10]) for row in range(3)] for t in range(3)]
    assert levels == [[0, 0, 127], [127, 159, 191], [127, 159, 191]]  # frames 0, 2 and 4
    assert (picture[frame - 2 : frame] == 255).all()


def test_an_overview_has_pages_for_all_hearts(tmp_path: Path, small_heart: Callable[..., Phantom]) -> None:
    phantom = small_heart()
    tile = tile_of("a heart", Volume(phantom.image, phantom.geometry), phantom.labels)
    paths = write_overview(tmp_path / "pictures", [tile] * (TILES_ACROSS * TILES_DOWN + 3))
    assert [path.name for path in paths] == ["overview-1.png", "overview-2.png"]
    assert Image.open(paths[0]).size == (TILES_ACROSS * TILE_SIDE, TILES_DOWN * (TILE_SIDE + TILE_NAME))
    assert Image.open(paths[1]).size == (3 * TILE_SIDE, TILE_SIDE + TILE_NAME)
    colours = np.asarray(tile.picture).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - COLOURS[3]).sum(axis=1) < 120).any()


def test_a_tile_has_true_proportions_and_is_turned_for_the_viewer() -> None:
    voxels = np.zeros((20, 20, 3, 2))
    voxels[0, 19] = 1  # first along H, last along W: left and above
    tile = tile_of("", Volume(voxels, Geometry((1.0, 2.0, 8.0))))
    assert tile.picture.size == (TILE_SIDE // 2, TILE_SIDE)
    levels = np.asarray(tile.picture.convert("L"))
    assert levels[:6, :3].min() > 200 > 50 > levels[20:].max()
