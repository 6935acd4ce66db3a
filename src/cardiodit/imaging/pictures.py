"""Pictures of a cine, turned for the viewer: the first image axis runs to the right, the second upwards."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.geometry import Geometry

SMALLEST_SLICE = 128  # pixels; smaller slices are enlarged so that one can see something
MOST_FRAMES = 8  # rows of a sheet
COMPARED_FRAMES = 3  # of two volumes, each with three rows
CAPTION = 80  # pixels to the left of a row
LINE = 2  # pixels between frames that are compared
SLICES, SLICES_ACROSS = 12, 4  # of a volume that does not beat
COLOURS = {1: (80, 140, 255), 2: (90, 220, 90), 3: (255, 80, 70)}  # RV, myocardium, LV
MODEL_WINDOW = (-1.0, 1.0)

Window = tuple[float, float]


def write_gif(
    path: Path,
    cine: np.ndarray,
    geometry: Geometry | None = None,
    masks: np.ndarray | None = None,
    window: Window = MODEL_WINDOW,
    rows: int = 1,
) -> None:
    """A beating `(H, W, D, T)` volume: slices side by side, one heart beat a cycle, masks as outlines.

    `rows`: of slices that lie above each other in it, so that small ones are enlarged as they would be alone.
    """
    frames = cine.shape[3]
    pictures = [
        _enlarged(strip_of(cine[..., t], None if masks is None else masks[..., t], window), rows) for t in range(frames)
    ]
    save_beat(path, pictures, None if geometry is None else geometry.frame_time)


def save_beat(path: Path, pictures: Sequence[Image.Image], frame_time: float | None) -> None:
    """A GIF of the frames of a beat, over and over; without a frame time, a beat a second."""
    seconds = frame_time or 1 / len(pictures)
    with atomic_file(path) as temporary:
        pictures[0].save(
            temporary,
            save_all=True,
            append_images=list(pictures[1:]),
            duration=max(20, round(seconds * 1000)),
            loop=0,
        )


def write_sheet(path: Path, cine: np.ndarray, masks: np.ndarray | None = None, window: Window = MODEL_WINDOW) -> None:
    """A `(H, W, D, T)` volume on one sheet: a row for each of at most eight frames, a column for each slice."""
    frames = frames_of_sheet(cine.shape[3])
    rows = _strips(cine, masks, frames, window)
    with atomic_file(path) as temporary:
        _enlarged(np.concatenate(rows, axis=0), len(rows)).save(temporary)


def frames_of_sheet(count: int) -> np.ndarray:
    """Numbers of at most eight frames, evenly spread."""
    return np.unique(np.linspace(0, count - 1, MOST_FRAMES).round().astype(int))


def write_slices(
    path: Path, volume: np.ndarray, masks: np.ndarray | None = None, window: Window = MODEL_WINDOW
) -> None:
    """Slices of a `(H, W, D)` volume, evenly spread over its depth, in rows of four."""
    depths = np.unique(np.linspace(0, volume.shape[2] - 1, SLICES + 2).round().astype(int)[1:-1])
    rows = [depths[first : first + SLICES_ACROSS] for first in range(0, len(depths), SLICES_ACROSS)]
    strips = [strip_of(volume[:, :, row], None if masks is None else masks[:, :, row], window) for row in rows]
    width = strips[0].shape[1]
    filled = [np.pad(s, [(0, 0), (0, width - s.shape[1]), *[(0, 0)] * (s.ndim - 2)]) for s in strips]
    with atomic_file(path) as temporary:
        _enlarged(np.concatenate(filled), len(rows)).save(temporary)


def write_comparison(path: Path, original: np.ndarray, other: np.ndarray, window: Window = MODEL_WINDOW) -> None:
    """Two `(H, W, D, T)` volumes on one sheet: for each of at most three frames original, other and difference.

    The difference is grey where there is none; a quarter of the window to either side is black or white. A white
    line ends each frame.
    """
    frames = np.unique(np.linspace(0, original.shape[3], COMPARED_FRAMES, endpoint=False).astype(int))
    quarter = (window[1] - window[0]) / 4
    rows = []
    for t in frames:
        before, after = original[..., t], other[..., t]
        rows += [strip_of(before, None, window), strip_of(after, None, window)]
        difference = strip_of(after - before, None, (-quarter, quarter))
        rows.append(np.pad(difference, [(0, LINE), (0, 0)], constant_values=255))
    with atomic_file(path) as temporary:
        _enlarged(np.concatenate(rows), len(rows)).save(temporary)


def write_captioned(path: Path, rows: Sequence[tuple[str, np.ndarray]], window: Window = MODEL_WINDOW) -> None:
    """Volumes `(H, W, D)` under each other, slices side by side, each with a caption to its left."""
    strips = [_enlarged(strip_of(volume, None, window)) for _, volume in rows]
    sheet = Image.new("L", (CAPTION + max(s.width for s in strips), sum(s.height for s in strips)))
    top = 0
    for (caption, _), strip in zip(rows, strips, strict=True):
        sheet.paste(strip, (CAPTION, top))
        ImageDraw.Draw(sheet).text((CAPTION - 6, top + strip.height / 2), caption, fill=255, anchor="rm", font_size=16)
        top += strip.height
    with atomic_file(path) as temporary:
        sheet.save(temporary)


def _strips(cine: np.ndarray, masks: np.ndarray | None, frames: Iterable[int], window: Window) -> list[np.ndarray]:
    return [strip_of(cine[..., t], None if masks is None else masks[..., t], window) for t in frames]


def strip_of(volume: np.ndarray, masks: np.ndarray | None, window: Window) -> np.ndarray:
    """`(H, W, D)` → slices side by side as grey `(W, H·D)` or, with masks, coloured `(W, H·D, 3)` levels."""
    low, high = window
    levels = np.clip((volume - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    strip = _side_by_side(levels)
    if masks is None:
        return strip
    coloured = np.repeat(strip[..., None], 3, axis=-1)
    for label, colour in COLOURS.items():
        coloured[_side_by_side(_outlines(masks == label))] = colour
    return coloured


def _side_by_side(volume: np.ndarray) -> np.ndarray:
    turned = np.rot90(volume)  # (W, H, D)
    return np.concatenate([turned[:, :, d] for d in range(turned.shape[2])], axis=1)


def _outlines(mask: np.ndarray) -> np.ndarray:
    """The voxels of each slice of a mask that touch its outside."""
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    return mask & ~binary_erosion(mask, in_plane, border_value=1)


def _enlarged(levels: np.ndarray, rows: int = 1) -> Image.Image:
    zoom = max(1, round(SMALLEST_SLICE * rows / levels.shape[0]))
    picture = Image.fromarray(levels)
    return picture.resize((picture.width * zoom, picture.height * zoom))


def window_of(volume: np.ndarray, percentiles: Sequence[float] = (0.5, 99.5)) -> Window:
    """A grey window for a volume in a scanner's units."""
    low, high = np.percentile(volume, percentiles)
    return float(low), float(max(high, low + 1e-6))
