"""One metric on one axis: above the line its value with interval, below it the floor and the value it is held to."""

from collections.abc import Mapping
from typing import Any

from cardiodit.evaluation.page.axis import Axis, axis_over
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.numbers import finite, is_number, readable

WIDTH, HEIGHT = 230, 50
LEFT, RIGHT = 8, 222
LINE, ABOVE, BELOW = 20, 10, 30  # heights of the axis and of what lies above and below it


def metric_picture(metric: Mapping[str, Any]) -> Markup:
    """Nothing where there is no value."""
    if not is_number(metric["value"]):
        return Markup()
    axis = _axis(metric)
    return tag(
        "svg",
        tag("line", class_="line", x1=axis.start, x2=axis.end, y1=LINE, y2=LINE),
        _floor(axis, metric.get("floor")),
        _value(axis, metric),
        _end(axis.low, LEFT - 6, "start"),
        _end(axis.high, RIGHT + 6, "end"),
        class_="metric",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=_in_words(metric),
    )


def _axis(metric: Mapping[str, Any]) -> Axis:
    floor = metric.get("floor") or {}
    ends = [floor.get(name) for name in ("value", "low", "high", "matched")]
    values = finite(metric["value"], metric["low"], metric["high"], *ends)
    if metric["better"] == "higher" and min(values) >= 0 and max(values) <= 1:
        return Axis(0, 1, LEFT, RIGHT)
    return axis_over(values, LEFT, RIGHT, with_zero=metric["better"] != "near real", margin=0.06)


def _value(axis: Axis, metric: Mapping[str, Any]) -> Markup:
    ends = [axis.at(end) for end in finite(metric["low"], metric["high"])]
    place = axis.at(float(metric["value"]))
    return joined(
        [
            tag("path", class_="whisker", d=_whisker(*ends)) if len(ends) == 2 else None,
            tag("circle", class_="synthetic dot", cx=place, cy=ABOVE, r=4.5),
        ]
    )


def _whisker(low: float, high: float) -> str:
    top, bottom = ABOVE - 4, ABOVE + 4
    return f"M{low:.1f} {top}V{bottom}M{high:.1f} {top}V{bottom}M{low:.1f} {ABOVE}H{high:.1f}"


def _floor(axis: Axis, floor: Mapping[str, Any] | None) -> Markup:
    if not floor:
        return Markup()
    parts: list[Markup] = []
    if finite(floor.get("low"), floor.get("high")):
        low, high = (
            axis.at(floor[end]) if is_number(floor.get(end)) else place
            for end, place in (("low", axis.start), ("high", axis.end))
        )
        width = max(2.0, high - low)
        parts.append(tag("rect", class_="real band", x=low, y=BELOW - 5, width=width, height=10, rx=2))
    for value in finite(floor.get("value")):
        place = axis.at(value)
        parts.append(tag("line", class_="real mark", x1=place, x2=place, y1=BELOW - 6, y2=BELOW + 6))
    for value in finite(floor.get("matched")):
        parts.append(tag("circle", class_="synthetic ring", cx=axis.at(value), cy=BELOW, r=4))
    return joined(parts)


def _end(value: float, place: float, anchor: str) -> Markup:
    return tag("text", readable(value), x=place, y=HEIGHT - 3, text_anchor=anchor)


def _in_words(metric: Mapping[str, Any]) -> str:
    words = [f"{metric['title']}: {readable(metric['value'])}"]
    if len(ends := finite(metric["low"], metric["high"])) == 2:
        words.append(f"interval {readable(ends[0])} to {readable(ends[1])}")
    if floor := metric.get("floor"):
        words.append(f"floor {readable(floor.get('value'))}")
        words.append(f"at the floor's number of volumes {readable(floor.get('matched'))}")
    return ", ".join(words)
