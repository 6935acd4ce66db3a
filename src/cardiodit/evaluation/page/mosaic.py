"""A volume as one picture that a page can hold: all slices of all frames as tiles of a mosaic, in JPEG."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cardiodit.errors import CardioDiTError

SIDE = 128  # pixels of a tile's longer side; larger slices are made smaller
TILES = 256
FRAMES = 32  # of a beat; more are thinned out evenly, as slices are where there would be too many tiles
QUALITIES = (92, 80, 60, 40, 20)


@dataclass(frozen=True)
class Mosaic:
    """Tile `frame · slices + slice` lies in row `tile // across`, column `tile % across`; `columns × rows` pixels each.

    Args:
        slices, frames: that are shown, as indices into the volume.
        jpeg: in base64.
    """

    columns: int
    rows: int
    across: int
    slices: list[int]
    frames: list[int]
    jpeg: str


def mosaic(name: str, voxels: np.ndarray, limit: int) -> Mosaic:
    """Of a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1].

    Args:
        name: for errors.
        limit: bytes of the picture; the quality, then the tiles' size, go down until they are met.
    """
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise CardioDiTError(
            f"{name} has the shape {voxels.shape}; a volume (H, W, D) or (H, W, D, T) was expected for the page."
        )
    cine = voxels if voxels.ndim == 4 else voxels[..., None]
    frames = evenly(cine.shape[3], FRAMES)
    slices = evenly(cine.shape[2], max(1, TILES // len(frames)))
    tiles = [cine[:, :, d, t] for t in frames for d in slices]
    across = math.ceil(math.sqrt(len(tiles)))
    size = _tile_size(cine.shape[0], cine.shape[1])
    jpeg, size = _within(tiles, across, size, limit)
    return Mosaic(*size, across, slices, frames, base64.b64encode(jpeg).decode("ascii"))


def evenly(count: int, most: int) -> list[int]:
    """The first and the last of `count` things, and as many between them as may be."""
    return list(range(count)) if count <= most else [round(i) for i in np.linspace(0, count - 1, most).tolist()]


def _tile_size(columns: int, rows: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(columns, rows))
    return max(1, round(columns * scale)), max(1, round(rows * scale))


def _within(tiles: list[np.ndarray], across: int, size: tuple[int, int], limit: int) -> tuple[bytes, tuple[int, int]]:
    while True:
        sheet = _sheet(tiles, across, size)
        for quality in QUALITIES:
            if len(jpeg := _jpeg(sheet, quality)) <= limit or max(size) <= 8:
                return jpeg, size
        size = max(1, size[0] // 2), max(1, size[1] // 2)


def _sheet(tiles: list[np.ndarray], across: int, size: tuple[int, int]) -> Image.Image:
    columns, rows = size
    sheet = Image.new("L", (columns * across, rows * math.ceil(len(tiles) / across)))
    for i, tile in enumerate(tiles):
        picture = Image.fromarray(_levels(tile))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (i % across * columns, i // across * rows))
    return sheet


def _levels(tile: np.ndarray) -> np.ndarray:
    """Grey levels `(rows, columns)`: the first axis runs to the right, the second upwards."""
    shown = np.clip(np.nan_to_num(tile.astype(np.float32), nan=-1.0), -1, 1)
    levels = ((shown + 1) * 127.5).round().astype(np.uint8)
    return np.ascontiguousarray(np.flip(levels, 1).T)


def _jpeg(sheet: Image.Image, quality: int) -> bytes:
    held = io.BytesIO()
    sheet.save(held, "JPEG", quality=quality, optimize=True)
    return held.getvalue()
