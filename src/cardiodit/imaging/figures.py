"""Figures for presentation: large smooth pictures with captions, and ventricular volume curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.pictures import (
    COLOURS,
    MODEL_WINDOW,
    PLAYED_SIDE,
    SLICE_SECONDS,
    frames_of_sheet,
    gif_of,
    paste_captioned,
    slices_as_frames,
    stack_captioned,
    strip_of,
)

TILE = 96  # pixels of a slice
GREY_STEP = 8  # between grey levels of a GIF: finer ones are invisible in motion, and the file is a third as large
MARGIN = 132  # pixels to the left of a row, for its caption
CURVE = (560, 350)
PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (222, 222, 222)
FINE = 3  # the curve is drawn at this many times its size and then reduced, so that lines are smooth
LV = 3


def write_beating_rows(path: Path, rows: Sequence[tuple[str, np.ndarray]], frame_time: float | None = None) -> None:
    """Write the GIF of `beating_rows`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(beating_rows(rows, frame_time))


def beating_rows(rows: Sequence[tuple[str, np.ndarray]], frame_time: float | None = None) -> bytes:
    """Return a GIF of named volumes in [-1, 1] below each other.

    Cines `(H, W, D, T)` beat, slices side by side; 3D volumes `(H, W, D)` run through their slices.
    """
    is_cine = rows[0][1].ndim == 4
    cines = [(name, volume if is_cine else slices_as_frames(volume)) for name, volume in rows]
    tile = TILE if is_cine else PLAYED_SIDE
    pictures = []
    for t in range(cines[0][1].shape[3]):
        strips = [(name, _smooth(strip_of(cine[..., t], None, MODEL_WINDOW), tile)) for name, cine in cines]
        pictures.append(stack_captioned([(name, strip.point(_round_grey)) for name, strip in strips], MARGIN))
    return gif_of(pictures, frame_time if is_cine else SLICE_SECONDS)


def write_sheet_with_curve(
    path: Path, name: str, cine: np.ndarray, volumes_ml: Sequence[float], frame_time: float | None = None
) -> None:
    """Write a cine in [-1, 1] on one sheet, with the volume of its left ventricle over the beat below.

    The sheet has a row for each of at most eight frames and a column for each slice.
    """
    frames = frames_of_sheet(cine.shape[3])
    rows = [(f"frame {t + 1}", _smooth(strip_of(cine[..., t], None, MODEL_WINDOW))) for t in frames]
    width, height = max(rows[0][1].width, CURVE[0]), sum(row.height for _, row in rows)
    sheet = Image.new("RGB", (MARGIN + width, height + CURVE[1]), PAPER)
    paste_captioned(sheet, rows, MARGIN, INK)
    sheet.paste(draw_curve(volumes_ml, frame_time, CURVE), (MARGIN, height))
    ImageDraw.Draw(sheet).text((12, height + 12), name, fill=INK, font_size=20)
    with atomic_file(path) as temporary:
        sheet.save(temporary)


def write_curve(path: Path, volumes_ml: Sequence[float], frame_time: float | None = None) -> None:
    """Write the curve of `draw_curve` as a PNG file."""
    with atomic_file(path) as temporary:
        draw_curve(volumes_ml, frame_time).save(temporary)


def draw_curve(
    volumes_ml: Sequence[float], frame_time: float | None = None, size: tuple[int, int] = (480, 300)
) -> Image.Image:
    """Draw the left ventricle's volume in each frame, with EDV, ESV and EF; over ms if the frame time is known."""
    volumes, frames = np.asarray(volumes_ml, dtype=float), len(volumes_ml)
    picture = Image.new("RGB", (size[0] * FINE, size[1] * FINE), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13 * FINE)
    left, right, top, bottom = 52 * FINE, picture.width - 14 * FINE, 34 * FINE, picture.height - 40 * FINE
    step = round_step(volumes.max())
    highest = step * (volumes.max() // step + 1)

    def position(frame: float, ml: float) -> tuple[float, float]:
        return left + (right - left) * frame / frames, bottom - (bottom - top) * ml / highest

    def write(x: float, y: float, text: str, anchor: str) -> None:
        pen.text((x, y), text, INK, font, anchor)

    for ml in np.arange(0, highest + step / 2, step):
        y = position(0, ml)[1]
        pen.line([(left, y), (right, y)], GRID, FINE)
        write(left - 6 * FINE, y, f"{ml:g}", "rm")
    duration, unit = (frames, "frames") if frame_time is None else (1000 * frame_time * frames, "ms")
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        x = position(fraction * frames, 0)[0]
        write(x, bottom + 6 * FINE, f"{fraction * duration:.0f}", "ma" if fraction < 1 else "ra")
    write((left + right) / 2, picture.height - 4 * FINE, unit, "md")

    closed = [*volumes, volumes[0]]  # the beat begins again
    pen.line([position(t, ml) for t, ml in enumerate(closed)], COLOURS[LV], 3 * FINE, joint="curve")
    diastole, systole = int(volumes.argmax()), int(volumes.argmin())
    for frame, name, offset, anchor in ((diastole, "ED", -4 * FINE, "lb"), (systole, "ES", 4 * FINE, "lt")):
        x, y = position(frame, volumes[frame])
        pen.ellipse([x - 5 * FINE, y - 5 * FINE, x + 5 * FINE, y + 5 * FINE], INK)
        write(x + 8 * FINE, y + offset, name, anchor)
    edv, esv = volumes[diastole], volumes[systole]
    ef = 100 * (1 - esv / edv) if edv > 0 else 0.0
    write(left, 8 * FINE, f"left ventricle in mL   EDV {edv:.0f}   ESV {esv:.0f}   EF {ef:.0f} %", "la")
    return picture.resize(size, Image.Resampling.LANCZOS)


def round_step(highest: float) -> float:
    """Return a round distance between grid lines, so that there are about five."""
    rough = max(float(highest), 1e-6) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    return float(power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)))


def _round_grey(level: int) -> int:
    return min(255, (level + GREY_STEP // 2) // GREY_STEP * GREY_STEP)


def _smooth(levels: np.ndarray, tile: int = TILE) -> Image.Image:
    """Resize the slices of one row smoothly to the height in which they are shown."""
    zoom = tile / levels.shape[0]
    return Image.fromarray(levels).resize((round(levels.shape[1] * zoom), tile), Image.Resampling.BICUBIC)
