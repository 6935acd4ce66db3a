from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.overview import ACROSS, DOWN, LINE, SIDE, tile_of, write_overview
from cardiodit.imaging.phantom import Phantom
from cardiodit.imaging.pictures import COLOURS
from cardiodit.imaging.volume import Volume


def test_pages_hold_all_hearts(tmp_path: Path, small_heart: Callable[..., Phantom]) -> None:
    phantom = small_heart()
    tile = tile_of("a heart", Volume(phantom.image, phantom.geometry), phantom.labels)
    paths = write_overview(tmp_path / "pictures", [tile] * (ACROSS * DOWN + 3))
    assert [path.name for path in paths] == ["overview-1.png", "overview-2.png"]
    assert Image.open(paths[0]).size == (ACROSS * SIDE, DOWN * (SIDE + LINE))
    assert Image.open(paths[1]).size == (3 * SIDE, SIDE + LINE)
    colours = np.asarray(tile.picture).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - COLOURS[3]).sum(axis=1) < 120).any()


def test_proportions_are_true_and_the_picture_is_turned_for_the_viewer() -> None:
    voxels = np.zeros((20, 20, 3, 2))
    voxels[0, 19] = 1  # first along H, last along W: left and above
    tile = tile_of("", Volume(voxels, Geometry((1.0, 2.0, 8.0))))
    assert tile.picture.size == (SIDE // 2, SIDE)
    levels = np.asarray(tile.picture.convert("L"))
    assert levels[:6, :3].min() > 200 > 50 > levels[20:].max()
