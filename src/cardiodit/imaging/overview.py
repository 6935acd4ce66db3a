"""Many hearts on one page, so that one sees at a glance whether they are upright."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.pictures import strip_of, window_of
from cardiodit.imaging.volume import Volume

SIDE, LINE = 160, 14  # pixels of a tile and of the name above it
ACROSS, DOWN = 8, 6
NAME_LETTERS = 26


@dataclass(frozen=True)
class Tile:
    """One slice of one heart, small, under its name."""

    name: str
    picture: Image.Image


def tile_of(name: str, volume: Volume, labels: np.ndarray | None = None) -> Tile:
    """The middle slice of the first frame, in true proportions, with outlines of `labels` `(H, W, D, T)`."""
    first = volume.voxels[..., 0] if volume.is_cine else volume.voxels
    middle = slice(first.shape[2] // 2, first.shape[2] // 2 + 1)
    plane = first[:, :, middle].astype(np.float32)
    mask = None if labels is None else labels[:, :, middle, 0]
    picture = Image.fromarray(strip_of(plane, mask, window_of(plane))).convert("RGB")
    height, width = volume.geometry.spacing[:2] if volume.geometry.spacing else (1.0, 1.0)
    mm = plane.shape[0] * height, plane.shape[1] * width
    pixels = [max(1, round(SIDE * length / max(mm))) for length in mm]
    return Tile(name, picture.resize((pixels[0], pixels[1])))


def write_overview(folder: Path, tiles: Sequence[Tile]) -> list[Path]:
    """As many pages as it takes: `overview-1.png`, …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for first in range(0, len(tiles), ACROSS * DOWN):
        paths.append(folder / f"overview-{len(paths) + 1}.png")
        with atomic_file(paths[-1]) as temporary:
            _page(tiles[first : first + ACROSS * DOWN]).save(temporary)
    return paths


def _page(tiles: Sequence[Tile]) -> Image.Image:
    rows = -(-len(tiles) // ACROSS)
    page = Image.new("RGB", (SIDE * min(len(tiles), ACROSS), (SIDE + LINE) * rows))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(11)
    for i, tile in enumerate(tiles):
        x, y = SIDE * (i % ACROSS), (SIDE + LINE) * (i // ACROSS)
        draw.text((x + 3, y), tile.name[:NAME_LETTERS], fill="white", font=font)
        page.paste(tile.picture, (x + (SIDE - tile.picture.width) // 2, y + LINE + (SIDE - tile.picture.height) // 2))
    return page
