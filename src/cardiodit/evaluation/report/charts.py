"""SVG charts of the report: distributions, curves over the beat, and metrics beside their floor.

Python computes coordinates and texts; the macros in charts.svg.j2 draw them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.html import templates
from cardiodit.evaluation.report.numbers import (
    finite,
    fixed,
    is_number,
    mean_and_sd,
    p_value,
    readable,
    value_and_interval,
    with_unit,
)

KINDS = ("real", "synthetic")
TICK_STEPS = (1, 2, 2.5, 5, 10)

# The mirrored histogram: ends of its axis, height of the mirror line, height of the tallest bar.
HISTOGRAM_LEFT, HISTOGRAM_RIGHT, MIRROR, TALLEST = 12, 308, 102, 62
MOST_STROKES = 100  # more volumes are not drawn one by one, because the strokes would run into each other
FEWEST_BINS, MOST_BINS = 6, 28

CURVES_LEFT, CURVES_RIGHT, CURVES_TOP, CURVES_BOTTOM = 46, 430, 24, 200
MOST_CURVES = 60  # of more curves, only the range of the middle 80% is drawn

METRIC_LEFT, METRIC_RIGHT = 8, 222
ABOVE_AXIS, BELOW_AXIS = 10, 30  # heights of the value and of the floor in a metric chart


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Args:
        low, high: values at its ends.
        start, end: coordinates of its ends; an axis that points up ends above its start.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return a value's coordinate, clipped to the axis."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Return round numbers on the axis with their labels."""
        rough = (self.high - self.low) / most
        exponent = math.floor(math.log10(rough))
        power = 10.0**exponent
        step = next(step * power for step in TICK_STEPS if step * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, (step / power == 2.5) - exponent)
        values = [i * step for i in range(first, last + 1)]
        return [(v, fixed(v, decimals) if decimals <= 5 and abs(v) < 1e7 else readable(v, 2)) for v in values]


def axis_over(values: Iterable[float], start: float, end: float, *, with_zero: bool = False, margin: float = 0) -> Axis:
    """Return an axis that holds all values, extended at both ends by `margin` times their range."""
    values = [*values, *([0.0] if with_zero else [])]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        reach = abs(low) / 2 or 0.5
        return Axis(low - reach, high + reach, start, end)
    margin *= high - low
    lowest = low if with_zero and low == 0 else low - margin
    return Axis(lowest, high if with_zero and high == 0 else high + margin, start, end)


def histogram_figure(distribution: Mapping[str, Any]) -> str:
    """Draw mirrored histograms, real above and synthetic below one axis, with the numbers as caption."""
    sets = {kind: np.array(finite(*distribution[kind])) for kind in KINDS}
    sides, axis = [], None
    if any(map(len, sets.values())):
        edges = bin_edges(np.concatenate(list(sets.values())))
        spreads = [end for values in sets.values() for end in _spread(values)]
        axis = axis_over([*edges, *spreads], HISTOGRAM_LEFT, HISTOGRAM_RIGHT)
        shares = {kind: np.histogram(values, edges)[0] / max(1, len(values)) for kind, values in sets.items()}
        tallest = max(float(share.max()) for share in shares.values())
        sides = [_histogram_side(kind, sets[kind], shares[kind] / tallest, edges, axis) for kind in KINDS]
    return _draw("histogram", distribution, sides, axis, MIRROR, _describe_distribution(distribution, sets))


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Return edges `(bins + 1,)` by Freedman and Diaconis (1981), width 2·IQR·n^(-1/3), within limits."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        reach = abs(low) / 2 or 0.5
        return np.linspace(low - reach, high + reach, FEWEST_BINS)
    first_quartile, third_quartile = np.percentile(values, [25, 75])
    width = 2 * (third_quartile - first_quartile) * len(values) ** (-1 / 3)
    bins = (high - low) / width if width > 0 else MOST_BINS
    return np.linspace(low, high, int(np.clip(np.ceil(bins), FEWEST_BINS, MOST_BINS)) + 1)


def _histogram_side(
    kind: str, values: np.ndarray, heights: np.ndarray, edges: np.ndarray, axis: Axis
) -> dict[str, Any]:
    up = -1 if kind == "real" else 1
    bars = [  # rectangles on the mirror line, one unit apart
        f"M{axis.at(left) + 0.5:.1f} {MIRROR}V{MIRROR + up * height * TALLEST:.1f}H{axis.at(right) - 0.5:.1f}V{MIRROR}Z"
        for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True)
        if height > 0
    ]
    strokes = [f"M{axis.at(float(value))} {MIRROR}v{up * 7}" for value in np.sort(values)]
    return {
        "kind": kind,
        "bars": "".join(bars),
        "strokes": "".join(strokes) if len(strokes) <= MOST_STROKES else "",
        "spread": [axis.at(end) for end in _spread(values)],
        "mean": axis.at(float(values.mean())) if len(values) else None,
        "mean_y": MIRROR + up * (TALLEST + 10),
        "name_y": MIRROR + up * (TALLEST + 26) + 4,
    }


def _spread(values: np.ndarray) -> list[float]:
    """Return one standard deviation below and above the mean; an empty list without values."""
    if not len(values):
        return []
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return [mean - sd, mean + sd]


def _describe_distribution(distribution: Mapping[str, Any], sets: Mapping[str, np.ndarray]) -> list[str]:
    unit = distribution.get("unit") or ""
    real, synthetic = (
        f"{mean_and_sd(sets[kind], unit)} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{len(sets[kind])})" for kind in KINDS
    )
    sentences = [f"Real {real}; synthetic {synthetic}."]
    comparison = distribution.get("comparison")
    if not comparison:
        return [*sentences, "Not compared."]
    low, high = comparison.get("interval") or (None, None)
    difference, interval = value_and_interval(comparison.get("difference"), low, high)
    floor, floor_high = (readable(comparison.get(name), 2) for name in ("floor", "floor_high"))
    distance = with_unit(readable(comparison.get("wasserstein"), 2), unit)
    return [
        *sentences,
        f"Difference {with_unit(difference, unit)}{f' (95%: {interval})' if interval else ''}.",
        f"Wasserstein {distance}, floor {floor} (95th percentile {floor_high}); {p_value(comparison.get('p_value'))}.",
    ]


def curve_figure(curve: Mapping[str, Any]) -> str:
    """Draw curves over the beat, real beside synthetic on one scale: each volume a thin line, the median a thick one.

    The horizontal axis is the share of the beat, because beats and frames last differently long.
    """
    sets = {  # curves without a gap, each (T,)
        kind: [np.array(row, np.float64) for row in curve[kind] if row and all(map(is_number, row))] for kind in KINDS
    }
    if not any(sets.values()):
        return _draw("curves", curve, [], None, None, ["There are no curves to show."])
    upright = axis_over(np.concatenate([row for rows in sets.values() for row in rows]), CURVES_BOTTOM, CURVES_TOP)
    is_one_beat = curve.get("is_one_beat", True)
    cycle = "the beat" if is_one_beat else "the cine, whose beat is repeated to fill the frames"
    panels = [_curve_panel(kind, sets[kind], curve, cycle, upright) for kind in KINDS]
    if max(map(len, sets.values())) <= MOST_CURVES:
        key = "Thin lines: single volumes. Thick line: median."
    else:
        key = f"Thick line: median. Sets of more than {MOST_CURVES} volumes are drawn as the range of their middle 80%."
    caption = f"Horizontal axis: % of {cycle}. {key}"
    return _draw("curves", curve, panels, Axis(0, 100, CURVES_LEFT, CURVES_RIGHT), upright, [caption])


def _curve_panel(
    kind: str, rows: list[np.ndarray], curve: Mapping[str, Any], cycle: str, upright: Axis
) -> dict[str, Any]:
    panel = {"kind": kind, "name": f"{kind}, n = {len(rows)}", "thin": "", "band": "", "median": ""}
    if not rows:
        return panel | {"text": f"{curve['title']}, {kind}: none"}
    lengths = [len(row) for row in rows]
    stack = np.stack([row for row in rows if len(row) == max(set(lengths), key=lengths.count)])  # the usual length
    if len(rows) <= MOST_CURVES:
        panel["thin"] = "".join(_line(row, upright) for row in rows)
    else:
        low, high = np.percentile(stack, [10, 90], axis=0)  # (T,) each
        panel["band"] = f"{_line(high, upright)}L{_line(low, upright, backwards=True)[1:]}Z"
    median = np.median(stack, axis=0)
    highest, lowest = (
        f"{with_unit(readable(float(median[frame])), curve.get('unit'))}, at {100 * int(frame) / len(median):.0f}%"
        for frame in (median.argmax(), median.argmin())
    )
    text = f"{curve['title']}, {kind}, {len(rows)} curves: the median has its highest value, {highest} of {cycle} and "
    return panel | {"median": _line(median, upright), "text": f"{text}its lowest, {lowest}."}


def _line(row: np.ndarray, upright: Axis, backwards: bool = False) -> str:
    """Return the path of a curve. Frame t of T lies at t/T of the beat: after the last one, the first comes again."""
    along = Axis(0, 100, CURVES_LEFT, CURVES_RIGHT)
    points = [f"{along.at(100 * t / len(row))} {upright.at(float(y))}" for t, y in enumerate(row)]
    return "M" + "L".join(reversed(points) if backwards else points)


def metric_chart(metric: Mapping[str, Any]) -> str:
    """Draw a metric on one axis: above the line its value and interval, below it the floor and the matched value."""
    if not is_number(metric["value"]):
        return ""
    floor = metric.get("floor") or {}
    interval, reach = finite(metric["low"], metric["high"]), finite(floor.get("low"), floor.get("high"))
    values = [*finite(metric["value"], floor.get("value"), floor.get("matched")), *interval, *reach]
    if metric["better"] == "higher" and min(values) >= 0 and max(values) <= 1:
        axis = Axis(0, 1, METRIC_LEFT, METRIC_RIGHT)
    else:
        with_zero = metric["better"] != "near real"
        axis = axis_over(values, METRIC_LEFT, METRIC_RIGHT, with_zero=with_zero, margin=0.06)
    texts = [f"{metric['title']}: {readable(metric['value'])}"]
    marks: dict[str, Any] = {
        "value": axis.at(metric["value"]),
        "floor": [axis.at(value) for value in finite(floor.get("value"))],
        "matched": [axis.at(value) for value in finite(floor.get("matched"))],
        "whisker": "",
        "band": None,
    }
    if len(interval) == 2:
        (left, right), (top, bottom) = map(axis.at, interval), (ABOVE_AXIS - 4, ABOVE_AXIS + 4)
        marks["whisker"] = f"M{left} {top}V{bottom}M{right} {top}V{bottom}M{left} {ABOVE_AXIS}H{right}"
        texts.append(f"interval {readable(interval[0])} to {readable(interval[1])}")
    if floor:
        texts.append(f"floor {readable(floor.get('value'))}")
        texts.append(f"at the floor's sample size {readable(floor.get('matched'))}")
    if reach:  # a floor with one end reaches to the other end of the axis
        left = axis.at(floor["low"]) if is_number(floor.get("low")) else METRIC_LEFT
        right = axis.at(floor["high"]) if is_number(floor.get("high")) else METRIC_RIGHT
        marks["band"] = (left, max(2.0, round(right - left, 1)))
    return _draw("metric", marks, readable(axis.low), readable(axis.high), ", ".join(texts))


def _draw(macro: str, *arguments: Any) -> str:
    return getattr(templates(Path(__file__).parent).get_template("charts.svg.j2").module, macro)(*arguments)
