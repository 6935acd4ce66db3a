"""Scenarios: what generating volumes costs with other steps, sizes, models, devices and places.

As in the "Latent Pollution" study (Seyfarth, Dar, Engelhardt 2024, arXiv:2407.14892), one axis varies at a time around
what the model does by default; a CSV holds all combinations.
"""

import calendar
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.html import render_page, write_page_file
from cardiodit.energy.electricity import (
    GRAMS_A_KILOMETRE,
    MANY,
    Electricity,
    Footprint,
    choose_electricity,
    format_duration,
    format_grams,
    format_kilometres,
)
from cardiodit.energy.forecast import Device, Work, forecast_work
from cardiodit.energy.meter import two_digits
from cardiodit.errors import CardioDiTError

CSV, PNG, PAGE = "scenarios.csv", "scenarios.png", "scenarios.html"
AXES = {
    "steps": "Denoising steps",
    "size": "Volume, in voxels",
    "width": "Width of the denoiser, relative to this model",
    "devices": "Devices",
    "country": "Electricity from",
}
MONTHS = tuple(calendar.month_name)[1:]
FRECHET = "frechet"
BAR, ROW, LEFT, RIGHT, HEAD = 360, 24, 210, 470, 46  # pixels of the picture


@dataclass(frozen=True)
class Cost:
    """Operations of a model at one size.

    Args:
        size: size of a volume in words.
        step: one denoising step.
        decoding: turning latents into a volume.
    """

    size: str
    step: Work
    decoding: Work


@dataclass(frozen=True)
class Scenario:
    """One way to generate volumes.

    Args:
        model, steps, size, width, devices, country: the choices.
        kwh: of one volume, at the hardware.
        grams, low, high: g CO2-equivalent of one volume, and its range.
        hours: duration of 10,000 volumes.
        frechet: Fréchet distance that an evaluation of this model with these steps measured.
    """

    model: str
    steps: int
    size: str
    width: float
    devices: int
    country: str
    kwh: float
    grams: float
    low: float
    high: float
    hours: float
    frechet: float | None = None

    @property
    def kilometres(self) -> float:
        """By car, for 10,000 volumes."""
        return MANY * self.grams / GRAMS_A_KILOMETRE


@dataclass(frozen=True)
class Choices:
    """The values along each axis; the first of each is the default.

    Args:
        steps: numbers of denoising steps.
        costs: operations by width of the denoiser, and for each width by size.
        devices: numbers of devices.
        places: electricity.
        passes: how often the denoiser runs in a step.
    """

    steps: Sequence[int]
    costs: Mapping[float, Sequence[Cost]]
    devices: Sequence[int]
    places: Sequence[Electricity]
    passes: int = 1


@dataclass(frozen=True)
class Evaluated:
    """A Fréchet distance that `cardiodit evaluate` measured.

    Args:
        model, steps: how the samples were generated.
        frechet: the distance.
        grams: of a sample, as it was measured when it was generated; None if it was not recorded.
    """

    model: str
    steps: int
    frechet: float
    grams: float | None


def all_scenarios(
    model: str, choices: Choices, device: Device, evaluations: Sequence[Evaluated] = ()
) -> list[Scenario]:
    """Return all combinations, the default first."""
    known = {each.steps: each.frechet for each in reversed(evaluations) if each.model == model}
    default_width, default_size = next(iter(choices.costs)), next(iter(choices.costs.values()))[0].size
    found = []
    for width, costs in choices.costs.items():
        for cost, steps, count, place in product(costs, choices.steps, choices.devices, choices.places):
            forecast = forecast_work(cost.step * (steps * choices.passes) + cost.decoding, device, count)
            grams, low, high = map(two_digits, Footprint(forecast.energy, place).grams)
            is_evaluated = (width, cost.size) == (default_width, default_size)
            hours = two_digits(MANY * forecast.seconds / 3600)
            made = (model, steps, cost.size, width, count, place.place, two_digits(forecast.energy.kwh))
            found.append(Scenario(*made, grams, low, high, hours, known.get(steps) if is_evaluated else None))
    return found


def along(scenarios: Sequence[Scenario], axis: str) -> list[Scenario]:
    """Return the scenarios that differ from the default along one axis only."""
    default, others = scenarios[0], [name for name in AXES if name != axis]
    found = [s for s in scenarios if all(getattr(s, name) == getattr(default, name) for name in others)]
    if axis in ("steps", "devices", "width"):
        return sorted(found, key=lambda scenario: getattr(scenario, axis))
    return sorted(found, key=lambda scenario: scenario.grams)


def read_evaluation(path: Path) -> Evaluated:
    """Return the Fréchet distance of a report, and how its samples were generated."""
    from cardiodit.evaluation.report import read_report

    report = read_report(path)
    synthetic = report["sets"]["synthetic"]
    made = synthetic.get("made_by") or {}
    if "num_inference_steps" not in made or "model" not in made:
        raise CardioDiTError(f"{path} does not say by which model and in how many steps its samples were generated.")
    value = next(
        (m["value"] for m in report["metrics"] if m["name"].startswith(FRECHET) and m["value"] is not None), None
    )
    if value is None:
        raise CardioDiTError(f"{path} has no Fréchet distance.")
    grams = (synthetic.get("energy") or {}).get("co2_grams")
    return Evaluated(str(made["model"]), int(made["num_inference_steps"]), float(value), grams)


def at_equal_quality(scenarios: Sequence[Scenario], target: float | None = None) -> tuple[float, list[Scenario]] | None:
    """Return a Fréchet distance and the cheapest evaluated scenario of each model that reaches it.

    Args:
        scenarios: of one or several models.
        target: the distance; default: the smallest one that all evaluated models reach.
    """
    evaluated: dict[str, list[Scenario]] = {}
    defaults = {s.model: s for s in reversed(scenarios)}
    for s in scenarios:
        default = defaults[s.model]
        if s.frechet is not None and (s.devices, s.country) == (default.devices, default.country):
            evaluated.setdefault(s.model, []).append(s)
    if not evaluated:
        return None
    target = max(min(s.frechet or 0.0 for s in found) for found in evaluated.values()) if target is None else target
    reached = [[s for s in found if s.frechet is not None and s.frechet <= target] for found in evaluated.values()]
    return target, sorted((min(found, key=lambda s: s.grams) for found in reached if found), key=lambda s: s.grams)


# --- What is written ---


def tables(scenarios: Sequence[Scenario], months: Sequence[float] | None = None) -> list[tuple[str, list[list[str]]]]:
    """Return a title and rows for each axis: the choice, grams a volume, and time and distance of 10,000 volumes."""
    found = []
    for axis, title in AXES.items():
        rows = along(scenarios, axis)
        if len(rows) > 1 or axis == "steps":
            found.append(
                (title, [_row(f"{getattr(s, axis):g}" if axis == "width" else str(getattr(s, axis)), s) for s in rows])
            )
    if months:
        default = scenarios[0]
        by_month = [
            [month, format_grams(default.grams * factor, ""), "", format_kilometres(default.kilometres * factor), ""]
            for month, factor in zip(MONTHS, months, strict=True)
        ]
        found.append(("Month", by_month))
    return found


HEADINGS = ("", "CO2-equivalent a volume (range)", f"{MANY:,} volumes take", "which is by car", "Fréchet distance")


def _row(choice: str, s: Scenario) -> list[str]:
    grams = f"{format_grams(s.grams, '')} ({format_grams(s.low, '')} to {format_grams(s.high, '')})"
    frechet = "" if s.frechet is None else f"{s.frechet:.3g}"
    return [choice, grams, format_duration(3600 * s.hours), format_kilometres(s.kilometres), frechet]


def in_words(title: str, rows: Sequence[Sequence[str]], headings: Sequence[str] = HEADINGS) -> str:
    """Return a table as text."""
    lines = [[title, *headings[1:]], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_scenarios(
    folder: Path,
    scenarios: Mapping[str, Sequence[Scenario]],
    about: Sequence[str],
    months: Sequence[float] | None = None,
    target: float | None = None,
) -> list[Path]:
    """Write all combinations as CSV, and one axis at a time as page and picture.

    Args:
        scenarios: of each model.
        about: sentences for the page: device, method, source of the electricity.
        months: factors of January to December, if they are known.
        target: see `at_equal_quality`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / CSV) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        every = [s for found in scenarios.values() for s in found]
        writer = csv.DictWriter(stream, [*asdict(every[0]), "kilometres_of_10000"])
        writer.writeheader()
        writer.writerows({**asdict(s), "kilometres_of_10000": two_digits(s.kilometres)} for s in every)
    panels = [(model, title, rows) for model, found in scenarios.items() for title, rows in _bars(found, months)]
    _draw(folder / PNG, panels)
    page = render_page(
        Path(__file__).with_name("scenarios.html.j2"),
        styles=("scenarios.css",),
        scripts=(),
        title=f"What generating volumes with {' and '.join(scenarios)} costs the climate",
        about=about,
        headings=HEADINGS,
        models={
            model: list(zip(tables(found, months), _bars(found, months), strict=True))
            for model, found in scenarios.items()
        },
        equal=equal_quality_table(every, target),
        matrices={model: _matrix(found) for model, found in scenarios.items()},
        contents={},
    )
    write_page_file(page, folder / PAGE)
    return [folder / name for name in (CSV, PNG, PAGE)]


def equal_quality_table(scenarios: Sequence[Scenario], target: float | None = None) -> dict[str, Any] | None:
    """Return the cheapest way of each model to reach a Fréchet distance, for people; None without an evaluation."""
    found = at_equal_quality(scenarios, target)
    if found is None:
        return None
    rows = [[f"{s.model}, {s.steps} steps", *_row("", s)[1:]] for s in found[1]]
    missing = sorted({s.model for s in scenarios} - {s.model for s in found[1]})
    return {"title": f"At a Fréchet distance of at most {found[0]:.3g}", "rows": rows, "missing": missing}


def _bars(
    scenarios: Sequence[Scenario], months: Sequence[float] | None
) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """Return a title and bars for each table: label, grams and text."""
    panels = []
    for title, rows in tables(scenarios, months):
        axis = next((name for name, text in AXES.items() if text == title), None)
        grams = [s.grams for s in along(scenarios, axis)] if axis else [scenarios[0].grams * f for f in months or ()]
        panels.append((title, [(row[0], value, row[1]) for row, value in zip(rows, grams, strict=True)]))
    return panels


def _matrix(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """Return grams a volume by steps and country."""
    default = scenarios[0]
    cells = {
        (s.steps, s.country): s.grams
        for s in scenarios
        if (s.size, s.width, s.devices) == (default.size, default.width, default.devices)
    }
    steps, countries = sorted({step for step, _ in cells}), [s.country for s in along(scenarios, "country")]
    rows = [[country, *(format_grams(cells[step, country], "") for step in steps)] for country in countries]
    return {"headings": ["", *(f"{step} steps" for step in steps)], "rows": rows}


def _draw(path: Path, panels: Iterable[tuple[str, str, Sequence[tuple[str, float, str]]]]) -> None:
    """Draw horizontal bars of grams a volume, a panel for each axis; each panel has its own scale."""
    from PIL import Image, ImageDraw, ImageFont

    panels = list(panels)  # Pillow's font lacks × and µ
    height = sum(HEAD + ROW * len(bars) for _, _, bars in panels) + 40
    font, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    left = max(LEFT, *(round(font.getlength(label)) + 20 for _, _, bars in panels for label, _, _ in bars))
    picture = Image.new("RGB", (left + BAR + RIGHT - 160, height), "white")
    pen = ImageDraw.Draw(picture)
    y = 10
    for model, title, bars in panels:
        pen.text((14, y + 16), f"{model}: {title}", fill=(31, 35, 40), font=bold)
        y += HEAD
        longest = max(value for _, value, _ in bars) or 1.0
        for label, value, text in bars:
            end = left + max(1, round(BAR * value / longest))
            pen.text((left - 8, y + ROW // 2), label.replace("×", "x"), fill=(31, 35, 40), font=font, anchor="rm")
            pen.rectangle((left, y + 4, end, y + ROW - 5), fill=(0, 104, 168))
            pen.text((end + 8, y + ROW // 2), text.replace("µ", "u"), fill=(91, 98, 107), font=font, anchor="lm")
            y += ROW
    pen.text((14, y + 14), "CO2-equivalent a volume, forecast (range in brackets)", fill=(91, 98, 107), font=font)
    with atomic_file(path) as temporary:
        picture.save(temporary)


def places_of(names: Sequence[str], default: Electricity) -> list[Electricity]:
    """Return the electricity of countries, with the default first and its PUE for all."""
    others = [choose_electricity(name, default.pue) for name in names]
    return [default, *(each for each in others if each.place != default.place)]
