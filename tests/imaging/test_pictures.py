from pathlib import Path

import numpy as np
from PIL import Image

from cardiodit.imaging import Geometry, write_gif


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
