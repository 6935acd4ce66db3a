"""The volume of a ventricle over one beat, drawn as cardiologists know it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.pictures import COLOURS

PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (222, 222, 222)
FINE = 3  # drawn so much larger and then made smaller, so that lines are smooth
LV = 3


def write_curve(path: Path, volumes_ml: Sequence[float], frame_time: float | None = None) -> None:
    """`draw_curve` as a PNG file."""
    with atomic_file(path) as temporary:
        draw_curve(volumes_ml, frame_time).save(temporary)


def draw_curve(
    volumes_ml: Sequence[float], frame_time: float | None = None, size: tuple[int, int] = (480, 300)
) -> Image.Image:
    """The left ventricle's volume in each frame, with EDV, ESV and EF; over ms where the frame time is known."""
    return _Curve(np.asarray(volumes_ml, dtype=float), frame_time, size).draw()


class _Curve:
    def __init__(self, volumes: np.ndarray, frame_time: float | None, size: tuple[int, int]) -> None:
        self.volumes, self.frame_time, self.size = volumes, frame_time, size
        self.largest, self.smallest = int(volumes.argmax()), int(volumes.argmin())
        width, height = size[0] * FINE, size[1] * FINE
        self.left, self.right, self.top, self.bottom = 52 * FINE, width - 14 * FINE, 34 * FINE, height - 40 * FINE
        self.step = round_step(volumes.max())
        self.highest = self.step * (volumes.max() // self.step + 1)
        self.picture = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.picture)
        self.font = ImageFont.load_default(13 * FINE)

    def draw(self) -> Image.Image:
        self._axes()
        closed = [*self.volumes, self.volumes[0]]  # the beat begins again
        self.pen.line([self._place(t, ml) for t, ml in enumerate(closed)], COLOURS[LV], 3 * FINE, joint="curve")
        self._mark(self.largest, "ED", above=True)
        self._mark(self.smallest, "ES", above=False)
        edv, esv = self.volumes[self.largest], self.volumes[self.smallest]
        fraction = 100 * (1 - esv / edv) if edv > 0 else 0.0
        heading = f"left ventricle in mL   EDV {edv:.0f}   ESV {esv:.0f}   EF {fraction:.0f} %"
        self._write(self.left, 8 * FINE, heading, "la")
        return self.picture.resize(self.size, Image.Resampling.LANCZOS)

    def _axes(self) -> None:
        frames = len(self.volumes)
        for ml in np.arange(0, self.highest + self.step / 2, self.step):
            y = self._place(0, ml)[1]
            self.pen.line([(self.left, y), (self.right, y)], GRID, FINE)
            self._write(self.left - 6 * FINE, y, f"{ml:g}", "rm")
        duration = frames if self.frame_time is None else 1000 * self.frame_time * frames
        for share in (0, 0.25, 0.5, 0.75, 1):
            x = self._place(share * frames, 0)[0]
            self._write(x, self.bottom + 6 * FINE, f"{share * duration:.0f}", "ma" if share < 1 else "ra")
        unit = "frames" if self.frame_time is None else "ms"
        self._write((self.left + self.right) / 2, self.picture.height - 4 * FINE, unit, "md")

    def _mark(self, frame: int, name: str, above: bool) -> None:
        x, y = self._place(frame, self.volumes[frame])
        self.pen.ellipse([x - 5 * FINE, y - 5 * FINE, x + 5 * FINE, y + 5 * FINE], INK)
        self._write(x + 8 * FINE, y + (-4 if above else 4) * FINE, name, "lb" if above else "lt")

    def _place(self, frame: float, ml: float) -> tuple[float, float]:
        x = self.left + (self.right - self.left) * frame / len(self.volumes)
        return x, self.bottom - (self.bottom - self.top) * ml / self.highest

    def _write(self, x: float, y: float, text: str, anchor: str) -> None:
        self.pen.text((x, y), text, INK, self.font, anchor)


def round_step(highest: float) -> float:
    """A round distance of grid lines, so that there are about five."""
    rough = max(float(highest), 1e-6) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    return float(power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)))
