"""A CT against a preset's field of view: what training will crop, and what it will pad with air."""

from dataclasses import dataclass

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.intensity import Limit, parse_percentile
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.imaging.resampling import plan_axis
from cardiodit.imaging.volume import Volume

AXES = ("H", "W", "D")
# Those that crop or pad a still volume to a size of its own.
VIEWS = [n for n, p in PRESETS.items() if p.fit == "crop" and p.frames is None and None not in p.size]


@dataclass(frozen=True)
class View:
    """Voxels along H, W and D at the preset's spacing: those that the file has, and those that the preset takes."""

    found: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def cropped(self) -> list[str]:
        return [axis for axis, n, m in zip(AXES, self.found, self.wanted, strict=True) if n > m]

    @property
    def padded(self) -> list[str]:
        return [axis for axis, n, m in zip(AXES, self.found, self.wanted, strict=True) if n < m]

    def __str__(self) -> str:
        done = [
            f"{' and '.join(axes)} {what}"
            for axes, what in ((self.cropped, "cropped"), (self.padded, "padded with air"))
            if axes
        ]
        fate = ", ".join(done) or "as they are"
        return f"{sizes(self.found)} voxels: {fate}"


def view_of(volume: Volume, steps: Preprocessing) -> View:
    """What `steps` will make of a volume, along the axes that they turn it to."""
    turned = steps.order_of(volume).apply(volume)
    spacing = turned.geometry.spacing or (None, None, None)
    found = [
        plan_axis(n, s, target, None, resize=False).count
        for n, s, target in zip(turned.voxels.shape, spacing, steps.spacing, strict=True)
    ]
    return View(tuple(found), tuple(n for n in steps.size if n is not None))


def find_view(name: str) -> Preprocessing:
    if name not in VIEWS:
        raise CardioDiTError(f"{name!r} is no preset that crops or pads a CT; choose from {', '.join(VIEWS)}.")
    return PRESETS[name]


def in_words(name: str, steps: Preprocessing) -> str:
    """The field of view, as a report calls it."""
    spacing = [f"{value:g}" for value in steps.spacing if value is not None]
    of = f" of {' × '.join(spacing)} mm" if spacing else ", their size as in the file"
    axes = "; H goes to the left, W to the front, D to the head" if steps.orient else ""
    low, high = (_limit(limit, steps) for limit in (steps.intensity.low, steps.intensity.high))
    pooled = "" if steps.pool == 1 else f", then averaged to {sizes(tuple(n // steps.pool for n in steps.size if n))}"
    return f"{name}, {sizes(steps.size)} voxels{of}{axes}; intensities are cut at {low} and at {high}{pooled}"


def _limit(limit: Limit, steps: Preprocessing) -> str:
    if not isinstance(limit, str):
        return f"{limit:g} HU"
    if not limit.startswith("p"):
        return f"each file's {limit}"
    percentile, most = parse_percentile(limit)
    cap = "" if most is None else f" but at most {most:g} HU"
    return f"percentile {percentile:g} of each {steps.limits_of}{cap}"


def sizes(counts: tuple[int | None, ...]) -> str:
    return " × ".join(map(str, counts))
