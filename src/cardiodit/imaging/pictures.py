"""Pictures of volumes, turned for the viewer: the first image axis points to the right, the second up."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.volume import Volume

LONGEST_FRAME = 60_000  # ms, of a GIF
SMALLEST_SLICE = 128  # pixels; smaller slices are enlarged
MOST_FRAMES = 8  # rows of a sheet
COMPARED_FRAMES = 3  # frames of a comparison, each with three rows
CAPTION = 80  # pixels to the left of a row
CAPTION_GAP = 6  # pixels between a caption and its row
FRAME_LINE = 2  # pixels between the frames of a comparison
SLICES, SLICES_ACROSS = 12, 4  # number of slices shown of a 3D volume, and columns
PLAYED_SLICES, PLAYED_SIDE, SLICE_SECONDS = 32, 192, 1 / 8  # of a GIF that runs through a 3D volume
TILE_SIDE, TILE_NAME = 160, 14  # pixels of a tile of an overview, and of the name above it
TILES_ACROSS, TILES_DOWN = 8, 6
NAME_LETTERS = 26
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
    """Write a GIF: a cine loops over one heart beat, slices side by side; a 3D volume runs through its slices.

    Args:
        path: GIF file.
        cine: `(H, W, D, T)`, or a 3D volume `(H, W, D)`.
        geometry: geometry with the frame time, if known.
        masks: labels of the volume's shape, shown as outlines.
        window: grey values shown as black and white.
        rows: number of rows that each slice already contains, so that small ones are enlarged as they would be alone.
    """
    frame_time = None if geometry is None else geometry.frame_time
    is_volume = cine.ndim == 3
    if is_volume:
        cine, masks = slices_as_frames(cine), None if masks is None else slices_as_frames(masks)
        frame_time = SLICE_SECONDS
    strips = [strip_of(cine[..., t], None if masks is None else masks[..., t], window) for t in range(cine.shape[3])]
    pictures = [_enlarged(strip, rows) for strip in strips]
    if is_volume:
        for picture in pictures:
            picture.thumbnail((PLAYED_SIDE, PLAYED_SIDE))
    save_beat(path, pictures, frame_time)


def slices_as_frames(volume: np.ndarray) -> np.ndarray:
    """Return evenly spread slices of `(H, W, D)` as the frames of a cine `(H, W, 1, T)` with one slice."""
    depths = np.unique(np.linspace(0, volume.shape[2] - 1, PLAYED_SLICES).round().astype(int))
    return volume[:, :, None, depths]


def save_beat(path: Path, pictures: Sequence[Image.Image], frame_time: float | None) -> None:
    """Write the frames of a beat as a looping GIF; without a frame time, a beat lasts a second."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(gif_of(pictures, frame_time))


def gif_of(pictures: Sequence[Image.Image], frame_time: float | None) -> bytes:
    """Return the looping GIF that `save_beat` writes."""
    seconds = frame_time or 1 / len(pictures)
    content = io.BytesIO()
    pictures[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=list(pictures[1:]),
        duration=min(max(20, round(seconds * 1000)), LONGEST_FRAME),
        loop=0,
    )
    return content.getvalue()


def write_sheet(path: Path, cine: np.ndarray, masks: np.ndarray | None = None, window: Window = MODEL_WINDOW) -> None:
    """Write a cine `(H, W, D, T)` on one sheet: a row for each of at most eight frames, a column for each slice."""
    frames = frames_of_sheet(cine.shape[3])
    rows = [strip_of(cine[..., t], None if masks is None else masks[..., t], window) for t in frames]
    _save(path, _enlarged(np.concatenate(rows), len(rows)))


def frames_of_sheet(count: int) -> np.ndarray:
    """Return the indices of at most eight frames, evenly spread."""
    return np.unique(np.linspace(0, count - 1, MOST_FRAMES).round().astype(int))


def write_slices(
    path: Path, volume: np.ndarray, masks: np.ndarray | None = None, window: Window = MODEL_WINDOW
) -> None:
    """Write slices of a `(H, W, D)` volume, evenly spread over its depth, in rows of four."""
    depths = np.unique(np.linspace(0, volume.shape[2] - 1, SLICES + 2).round().astype(int)[1:-1])
    rows = [depths[first : first + SLICES_ACROSS] for first in range(0, len(depths), SLICES_ACROSS)]
    strips = [strip_of(volume[:, :, row], None if masks is None else masks[:, :, row], window) for row in rows]
    width = strips[0].shape[1]
    padded = [np.pad(s, [(0, 0), (0, width - s.shape[1]), *[(0, 0)] * (s.ndim - 2)]) for s in strips]
    _save(path, _enlarged(np.concatenate(padded), len(rows)))


def write_comparison(path: Path, original: np.ndarray, other: np.ndarray, window: Window = MODEL_WINDOW) -> None:
    """Write two `(H, W, D, T)` volumes on one sheet: original, other and difference of at most three frames.

    A difference of zero is grey; a quarter of the window to either side is black or white. A white line ends each
    frame.
    """
    frames = np.unique(np.linspace(0, original.shape[3], COMPARED_FRAMES, endpoint=False).astype(int))
    quarter = (window[1] - window[0]) / 4
    rows = []
    for t in frames:
        rows += [strip_of(volume[..., t], None, window) for volume in (original, other)]
        difference = strip_of(other[..., t] - original[..., t], None, (-quarter, quarter))
        rows.append(np.pad(difference, [(0, FRAME_LINE), (0, 0)], constant_values=255))
    _save(path, _enlarged(np.concatenate(rows), len(rows)))


def write_captioned(path: Path, rows: Sequence[tuple[str, np.ndarray]], window: Window = MODEL_WINDOW) -> None:
    """Write volumes `(H, W, D)` below each other, slices side by side, each with a caption to its left."""
    strips = [(caption, _enlarged(strip_of(volume, None, window))) for caption, volume in rows]
    _save(path, stack_captioned(strips, CAPTION))


def stack_captioned(rows: Sequence[tuple[str, Image.Image]], margin: int) -> Image.Image:
    """Return grey pictures below each other on black, with white captions in a margin to their left."""
    sheet = Image.new("L", (margin + max(row.width for _, row in rows), sum(row.height for _, row in rows)))
    paste_captioned(sheet, rows, margin, ink=255)
    return sheet


def paste_captioned(
    sheet: Image.Image, rows: Sequence[tuple[str, Image.Image]], margin: int, ink: int | tuple[int, int, int]
) -> None:
    """Paste pictures below each other into a sheet, with captions in a margin to their left."""
    pen, top = ImageDraw.Draw(sheet), 0
    for caption, row in rows:
        sheet.paste(row, (margin, top))
        at = margin - CAPTION_GAP, top + row.height / 2
        pen.text(at, caption, fill=ink, anchor="rm", font_size=16)
        top += row.height


@dataclass(frozen=True)
class Tile:
    """A named thumbnail of one slice of a volume; compressed, because a large cohort has many.

    Args:
        name: what stands above it.
        size: width and height in pixels.
        packed: its pixels, as JPEG.
    """

    name: str
    size: tuple[int, int]
    packed: bytes

    @classmethod
    def of(cls, name: str, picture: Image.Image) -> Self:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=95, subsampling=0)
        return cls(name, picture.size, content.getvalue())

    @property
    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.packed))


def tile_of(name: str, volume: Volume, labels: np.ndarray | None = None) -> Tile:
    """Show the middle slice of the first frame, in true proportions, with outlines of `labels` `(H, W, D, T)`."""
    first = volume.voxels[..., 0] if volume.is_cine else volume.voxels
    middle = slice(first.shape[2] // 2, first.shape[2] // 2 + 1)
    plane = first[:, :, middle].astype(np.float32)
    mask = None if labels is None else labels[:, :, middle, 0]
    picture = Image.fromarray(strip_of(plane, mask, window_of(plane))).convert("RGB")
    height, width = volume.geometry.spacing[:2] if volume.geometry.spacing else (1.0, 1.0)
    mm = plane.shape[0] * height, plane.shape[1] * width
    pixels = [max(1, round(TILE_SIDE * length / max(mm))) for length in mm]
    return Tile.of(name, picture.resize((pixels[0], pixels[1])))


def write_overview(folder: Path, tiles: Iterable[Tile]) -> list[Path]:
    """Write pages of many tiles each: `overview-1.png`, `overview-2.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    font = ImageFont.load_default(11)
    paths: list[Path] = []
    remaining = iter(tiles)
    while shown := list(islice(remaining, TILES_ACROSS * TILES_DOWN)):
        rows = -(-len(shown) // TILES_ACROSS)
        page = Image.new("RGB", (TILE_SIDE * min(len(shown), TILES_ACROSS), (TILE_SIDE + TILE_NAME) * rows))
        pen = ImageDraw.Draw(page)
        for i, tile in enumerate(shown):
            x, y = TILE_SIDE * (i % TILES_ACROSS), (TILE_SIDE + TILE_NAME) * (i // TILES_ACROSS)
            left, top = (TILE_SIDE - tile.size[0]) // 2, (TILE_SIDE - tile.size[1]) // 2
            pen.text((x + 3, y), tile.name[:NAME_LETTERS], fill="white", font=font)
            page.paste(tile.picture, (x + left, y + TILE_NAME + top))
        paths.append(folder / f"overview-{len(paths) + 1}.png")
        _save(paths[-1], page, compress_level=1)  # there may be thousands
    return paths


def strip_of(volume: np.ndarray, masks: np.ndarray | None, window: Window) -> np.ndarray:
    """Return the slices of `(H, W, D)` side by side: grey `(W, H·D)` or, with masks, coloured `(W, H·D, 3)` levels."""
    low, high = window
    levels = np.clip((volume - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    strip = _side_by_side(levels)
    if masks is None:
        return strip
    coloured = np.repeat(strip[..., None], 3, axis=-1)
    for label, colour in COLOURS.items():
        coloured[_side_by_side(_outlines(masks == label))] = colour
    return coloured


def window_of(volume: np.ndarray, percentiles: Sequence[float] = (0.5, 99.5)) -> Window:
    """Return a grey window for a volume in a scanner's units."""
    low, high = np.percentile(volume, percentiles)
    return float(low), float(max(high, low + max(1e-6, abs(low) * 1e-6)))


def _side_by_side(volume: np.ndarray) -> np.ndarray:
    turned = np.rot90(volume)  # (W, H, D)
    return np.concatenate([turned[:, :, d] for d in range(turned.shape[2])], axis=1)


def _outlines(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of each slice of a mask that touch its outside."""
    from scipy.ndimage import binary_erosion

    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    return mask & ~binary_erosion(mask, in_plane, border_value=1)


def _enlarged(levels: np.ndarray, rows: int = 1) -> Image.Image:
    zoom = max(1, round(SMALLEST_SLICE * rows / levels.shape[0]))
    picture = Image.fromarray(levels)
    return picture.resize((picture.width * zoom, picture.height * zoom))


def _save(path: Path, picture: Image.Image, **settings: Any) -> None:
    with atomic_file(path) as temporary:
        picture.save(temporary, **settings)
