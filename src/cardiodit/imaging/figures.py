"""Figures for presentation: large smooth pictures with captions, and ventricular volume curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.pictures import (
    COLOURS,
    MODEL_WINDOW,
    frames_of_sheet,
    paste_captioned,
    save_beat,
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
    """Write named cines `(H, W, D, T)` in [-1, 1] as a GIF, below each other, slices side by side."""
    pictures = []
    for t in range(rows[0][1].shape[3]):
        strips = [(name, _smooth(strip_of(cine[..., t], None, MODEL_WINDOW)).point(_round_grey)) for name, cine in rows]
        pictures.append(stack_captioned(strips, MARGIN))
    save_beat(path, pictures, frame_time)


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
    return _Curve(np.asarray(volumes_ml, dtype=float), frame_time, size).draw()


def round_step(highest: float) -> float:
    """Return a round distance between grid lines, so that there are about five."""
    rough = max(float(highest), 1e-6) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    return float(power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)))


class _Curve:
    """A picture of the volume over a beat; all lengths are in pixels of the enlarged picture."""

    def __init__(self, volumes: np.ndarray, frame_time: float | None, size: tuple[int, int]) -> None:
        self.volumes, self.frame_time, self.size = volumes, frame_time, size
        width, height = size[0] * FINE, size[1] * FINE
        self.left, self.right, self.top, self.bottom = 52 * FINE, width - 14 * FINE, 34 * FINE, height - 40 * FINE
        self.step = round_step(volumes.max())
        self.highest = self.step * (volumes.max() // self.step + 1)
        self.picture = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.picture)
        self.font = ImageFont.load_default(13 * FINE)

    def draw(self) -> Image.Image:
        self._draw_axes()
        closed = [*self.volumes, self.volumes[0]]  # the beat begins again
        self.pen.line([self._position(t, ml) for t, ml in enumerate(closed)], COLOURS[LV], 3 * FINE, joint="curve")
        diastole, systole = int(self.volumes.argmax()), int(self.volumes.argmin())
        self._mark(diastole, "ED", above=True)
        self._mark(systole, "ES", above=False)
        edv, esv = self.volumes[diastole], self.volumes[systole]
        fraction = 100 * (1 - esv / edv) if edv > 0 else 0.0
        heading = f"left ventricle in mL   EDV {edv:.0f}   ESV {esv:.0f}   EF {fraction:.0f} %"
        self._write(self.left, 8 * FINE, heading, "la")
        return self.picture.resize(self.size, Image.Resampling.LANCZOS)

    def _draw_axes(self) -> None:
        frames = len(self.volumes)
        for ml in np.arange(0, self.highest + self.step / 2, self.step):
            y = self._position(0, ml)[1]
            self.pen.line([(self.left, y), (self.right, y)], GRID, FINE)
            self._write(self.left - 6 * FINE, y, f"{ml:g}", "rm")
        duration = frames if self.frame_time is None else 1000 * self.frame_time * frames
        for fraction in (0, 0.25, 0.5, 0.75, 1):
            x = self._position(fraction * frames, 0)[0]
            self._write(x, self.bottom + 6 * FINE, f"{fraction * duration:.0f}", "ma" if fraction < 1 else "ra")
        unit = "frames" if self.frame_time is None else "ms"
        self._write((self.left + self.right) / 2, self.picture.height - 4 * FINE, unit, "md")

    def _mark(self, frame: int, name: str, above: bool) -> None:
        x, y = self._position(frame, self.volumes[frame])
        self.pen.ellipse([x - 5 * FINE, y - 5 * FINE, x + 5 * FINE, y + 5 * FINE], INK)
        self._write(x + 8 * FINE, y + (-4 if above else 4) * FINE, name, "lb" if above else "lt")

    def _position(self, frame: float, ml: float) -> tuple[float, float]:
        x = self.left + (self.right - self.left) * frame / len(self.volumes)
        return x, self.bottom - (self.bottom - self.top) * ml / self.highest

    def _write(self, x: float, y: float, text: str, anchor: str) -> None:
        self.pen.text((x, y), text, INK, self.font, anchor)


def _round_grey(level: int) -> int:
    return min(255, (level + GREY_STEP // 2) // GREY_STEP * GREY_STEP)


def _smooth(levels: np.ndarray) -> Image.Image:
    """Resize the slices of one row smoothly to the size in which they are shown."""
    zoom = TILE / levels.shape[0]
    return Image.fromarray(levels).resize((round(levels.shape[1] * zoom), TILE), Image.Resampling.BICUBIC)
