"""Volumes that play on the page: samples farthest from and nearest to the real volumes, and some real ones.

Each volume becomes one JPEG, a mosaic of all its slices and frames.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report.numbers import is_number

Media = Mapping[str, Callable[[], np.ndarray]]
Volume = Mapping[str, Any]  # an entry of `volumes` in the report

MOST_BYTES, MOST_BYTES_OF_ONE = 8_000_000, 900_000  # of JPEG; base64 adds a third
SIDE = 128  # pixels of a tile's longer side; larger slices are reduced
MOST_TILES = 256  # of a mosaic; more slices are thinned out evenly
MOST_FRAMES = 32  # of a mosaic; more frames are thinned out evenly
QUALITIES = (92, 80, 60, 40, 20)


@dataclass(frozen=True)
class Mosaic:
    """Slices and frames as tiles of one picture.

    Tile `frame · slices + slice` lies in row `tile // across`, column `tile % across`, with `columns × rows` pixels.

    Args:
        slices, frames: indices into the volume.
        jpeg: the picture in base64.
    """

    columns: int
    rows: int
    across: int
    slices: list[int]
    frames: list[int]
    jpeg: str


def group_volumes(report: Mapping[str, Any], media: Media) -> dict[str, list[Volume]]:
    """Return the real volumes, and the farther and the nearer half of the samples with the extremes first."""
    known = {volume["id"]: volume for volume in report["volumes"]}
    if unknown := [name for name in media if name not in known]:
        raise CardioDiTError(
            f"The page cannot show {', '.join(map(repr, unknown[:4]))}: the report has no volume of that name."
        )
    volumes = [known[name] for name in media]
    samples = sorted((v for v in volumes if v["set"] == "synthetic"), key=_typicality, reverse=True)
    farther = math.ceil(len(samples) / 2)
    return {
        "real": [volume for volume in volumes if volume["set"] == "real"],
        "farthest": samples[:farther],
        "nearest": samples[farther:][::-1],
    }


def _typicality(volume: Volume) -> float:
    return float(volume["typicality"]) if is_number(volume.get("typicality")) else -math.inf


def player_contents(report: Mapping[str, Any], groups: Mapping[str, list[Volume]], media: Media) -> dict[str, Any]:
    """Return what the page's script draws. Volumes are loaded one at a time."""
    volumes = [volume for members in groups.values() for volume in members]
    limit = min(MOST_BYTES_OF_ONE, MOST_BYTES // max(1, len(volumes)))
    real = report["sets"]["real"]
    size, frame_time = real.get("size") or [], real.get("frame_time_s")
    return {
        "seconds": float(frame_time) * size[3] if is_number(frame_time) and len(size) == 4 else None,  # of a real beat
        "volumes": [_player(volume, media[volume["id"]], report["sets"], limit) for volume in volumes],
    }


def _player(volume: Volume, load: Callable[[], np.ndarray], sets: Mapping[str, Any], limit: int) -> dict[str, Any]:
    return player(volume["id"], load(), sets[volume["set"]].get("spacing_mm"), limit)


def player(name: str, voxels: np.ndarray, spacing: Sequence[float] | None, limit: int) -> dict[str, Any]:
    """Return what the page's script needs to play a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1]."""
    tiles = mosaic(name, voxels, limit)
    width, height, depth, length = (*voxels.shape, 1)[:4]
    spacing = spacing or (1.0, 1.0)
    return {
        "picture": f"data:image/jpeg;base64,{tiles.jpeg}",
        "columns": tiles.columns,
        "rows": tiles.rows,
        "across": tiles.across,
        "slices": [index + 1 for index in tiles.slices],
        "frames": [index + 1 for index in tiles.frames],
        "depth": depth,
        "length": length,
        "aspect": round(width * spacing[0] / (height * spacing[1]), 4),
    }


def mosaic(name: str, voxels: np.ndarray, limit: int) -> Mosaic:
    """Make a mosaic of a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1].

    Args:
        name: the volume's name, for errors.
        limit: bytes of the JPEG; first the quality is lowered, then the size of the tiles.
    """
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise CardioDiTError(
            f"The page cannot show {name}: its shape is {voxels.shape}, expected (H, W, D) or (H, W, D, T)."
        )
    cine = voxels if voxels.ndim == 4 else voxels[..., None]
    frames = evenly_spaced(cine.shape[3], MOST_FRAMES)
    slices = evenly_spaced(cine.shape[2], max(1, MOST_TILES // len(frames)))
    tiles = [cine[:, :, d, t] for t in frames for d in slices]
    across = math.ceil(math.sqrt(len(tiles)))
    scale = min(1.0, SIDE / max(cine.shape[:2]))
    size = max(1, round(cine.shape[0] * scale)), max(1, round(cine.shape[1] * scale))
    jpeg, (columns, rows) = _jpeg_within(tiles, across, size, limit)
    return Mosaic(columns, rows, across, slices, frames, base64.b64encode(jpeg).decode("ascii"))


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, the first and the last among them."""
    return list(range(count)) if count <= most else [round(i) for i in np.linspace(0, count - 1, most).tolist()]


def _jpeg_within(
    tiles: list[np.ndarray], across: int, size: tuple[int, int], limit: int
) -> tuple[bytes, tuple[int, int]]:
    while True:
        sheet = _sheet(tiles, across, size)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            sheet.save(buffer, "JPEG", quality=quality, optimize=True)
            if len(buffer.getvalue()) <= limit or max(size) <= 8:
                return buffer.getvalue(), size
        size = max(1, size[0] // 2), max(1, size[1] // 2)


def _sheet(tiles: list[np.ndarray], across: int, size: tuple[int, int]) -> Image.Image:
    columns, rows = size
    sheet = Image.new("L", (columns * across, rows * math.ceil(len(tiles) / across)))
    for i, tile in enumerate(tiles):
        grey = (np.clip(np.nan_to_num(tile.astype(np.float32), nan=-1.0), -1, 1) + 1) * 127.5
        turned = np.flip(grey.round().astype(np.uint8), 1).T  # the first axis runs to the right, the second upwards
        picture = Image.fromarray(np.ascontiguousarray(turned))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (i % across * columns, i // across * rows))
    return sheet
