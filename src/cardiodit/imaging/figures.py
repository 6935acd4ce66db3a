"""Pictures for people who have not seen the data before: large, smooth, with words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.curve import PAPER, draw_curve
from cardiodit.imaging.pictures import MODEL_WINDOW, frames_of_sheet, save_beat, strip_of

TILE = 96  # pixels of a slice
STEP = 8  # between grey levels of a GIF: nobody sees finer ones move, and the file is a third as large
MARGIN = 132  # pixels to the left of a row, for its caption
CURVE = (560, 350)
INK = (30, 30, 30)


def write_beating_rows(path: Path, rows: Sequence[tuple[str, np.ndarray]], frame_time: float | None = None) -> None:
    """A GIF of cines `(H, W, D, T)` in [-1, 1] under each other, slices side by side, each with its name."""
    frames = rows[0][1].shape[3]
    pictures = [_beat([(name, cine[..., t]) for name, cine in rows]) for t in range(frames)]
    save_beat(path, pictures, frame_time)


def write_sheet_with_curve(
    path: Path, name: str, cine: np.ndarray, volumes_ml: Sequence[float], frame_time: float | None = None
) -> None:
    """A cine in [-1, 1] on one sheet: a row for each of at most eight frames, a column for each slice; below, the
    volume of the left ventricle over the beat."""
    shown = frames_of_sheet(cine.shape[3])
    rows = [(f"frame {t + 1}", _smooth(strip_of(cine[..., t], None, MODEL_WINDOW))) for t in shown]
    width = MARGIN + max(rows[0][1].width, CURVE[0])
    height = sum(picture.height for _, picture in rows)
    curve = draw_curve(volumes_ml, frame_time, CURVE)
    sheet = Image.new("RGB", (width, height + CURVE[1]), PAPER)
    _place(sheet, rows)
    sheet.paste(curve, (MARGIN, height))
    ImageDraw.Draw(sheet).text((12, height + 12), name, fill=INK, font_size=20)
    with atomic_file(path) as temporary:
        sheet.save(temporary)


def _beat(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """One frame of all rows."""
    strips = [(name, _smooth(strip_of(volume, None, MODEL_WINDOW)).point(_rounded)) for name, volume in rows]
    picture = Image.new("L", (MARGIN + max(s.width for _, s in strips), sum(s.height for _, s in strips)))
    _place(picture, strips)
    return picture


def _place(sheet: Image.Image, rows: Sequence[tuple[str, Image.Image]]) -> None:
    """Rows under each other, their captions to their left."""
    pen, top = ImageDraw.Draw(sheet), 0
    ink = 255 if sheet.mode == "L" else INK
    for caption, picture in rows:
        sheet.paste(picture, (MARGIN, top))
        pen.text((MARGIN - 10, top + picture.height / 2), caption, fill=ink, anchor="rm", font_size=16)
        top += picture.height


def _rounded(level: int) -> int:
    return min(255, (level + STEP // 2) // STEP * STEP)


def _smooth(levels: np.ndarray) -> Image.Image:
    """Slices of one row at the size in which they are shown."""
    zoom = TILE / levels.shape[0]
    return Image.fromarray(levels).resize((round(levels.shape[1] * zoom), TILE), Image.Resampling.BICUBIC)
