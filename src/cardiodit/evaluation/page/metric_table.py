"""The table of metrics: value, interval, floor and a picture of the three, group by group."""

from collections.abc import Iterable, Mapping
from typing import Any

from cardiodit.evaluation.metrics.registry import GROUPS
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.metric_picture import metric_picture
from cardiodit.evaluation.page.numbers import MISSING, decimals_for, finite, fixed, readable, value_and_interval
from cardiodit.evaluation.page.numbers import with_unit as unit_of
from cardiodit.evaluation.page.verdict import WORDS, verdict

BETTER = {"lower": "↓ lower is better", "higher": "↑ higher is better", "near real": "≈ near real is better"}
HEADINGS = ("Metric", "Value", "At the floor’s number", "Floor", "On one axis")


def metric_table(metrics: Iterable[Mapping[str, Any]]) -> Markup:
    """Of all metrics; a sentence where there are none. Roles are written out: a narrow window has no table's layout."""
    metrics = list(metrics)
    if not metrics:
        return tag("p", "No metric was computed.")
    heads = [tag("th", heading, scope="col", role="columnheader") for heading in HEADINGS]
    bodies = [_group(name, [m for m in metrics if m["group"] == name]) for name in groups_in(metrics)]
    table = tag("table", tag("thead", tag("tr", *heads, role="row")), *bodies, class_="metrics", role="table")
    return joined([_legend(), table])


def groups_in(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The groups of metrics or distributions, in the page's order; unknown ones come last."""
    found = dict.fromkeys(entry["group"] for entry in entries)
    return sorted(found, key=lambda name: list(GROUPS).index(name) if name in GROUPS else len(GROUPS))


def group_title(name: str) -> str:
    return GROUPS.get(name, name.replace("_", " ").capitalize())


def _group(name: str, metrics: list[Mapping[str, Any]]) -> Markup:
    title = tag("th", group_title(name), scope="rowgroup", colspan=len(HEADINGS), role="rowheader")
    return tag("tbody", tag("tr", title, class_="group", role="row"), *map(_row, metrics), role="rowgroup")


def _row(metric: Mapping[str, Any]) -> Markup:
    value, interval = value_and_interval(metric["value"], metric["low"], metric["high"])
    level = f"{readable(round(100 * metric['level'], 1), 2)}%: " if interval and metric.get("level") else ""
    unit = metric.get("unit")
    return tag(
        "tr",
        tag("th", _name(metric), scope="row", role="rowheader"),
        _cell(HEADINGS[1], tag("b", unit_of(value, unit)), f"{level}{unit_of(interval, unit)}" if interval else None),
        *_beside_floor(metric),
        _cell(HEADINGS[4], metric_picture(metric), class_="picture"),
        role="row",
    )


def _name(metric: Mapping[str, Any]) -> Markup:
    said = [metric.get("method"), *(metric.get("notes") or ())]
    details = [tag("p", text) for text in said if text]
    return joined(
        [
            tag("span", metric["title"], class_="title"),
            tag("small", BETTER.get(metric["better"], metric["better"])),
            tag("details", tag("summary", "Method" + (" and notes" if metric.get("notes") else "")), *details)
            if details
            else None,
        ]
    )


def _beside_floor(metric: Mapping[str, Any]) -> list[Markup]:
    floor, unit = metric.get("floor"), metric.get("unit")
    if not floor:
        return [_cell(HEADINGS[2], MISSING), _cell(HEADINGS[3], MISSING)]
    said = verdict(metric)
    judged = tag("span", WORDS[said], class_=f"verdict {said}") if said else None
    number = f"n = {floor['volumes']}" if floor.get("volumes") else "all volumes"
    matched, value = (tag("b", unit_of(_as_floor(floor, floor.get(name)), unit)) for name in ("matched", "value"))
    return [_cell(HEADINGS[2], matched, number, judged), _cell(HEADINGS[3], value, _reach(floor))]


def _reach(floor: Mapping[str, Any]) -> str | None:
    low, high = (_as_floor(floor, floor.get(end)) for end in ("low", "high"))
    if low == MISSING and high == MISSING:
        return None
    if low == MISSING or high == MISSING:
        return f"up to {high}" if low == MISSING else f"from {low}"
    return f"{low} to {high}"


def _as_floor(floor: Mapping[str, Any], value: object) -> str:
    """With the digits that the floor's range has."""
    ends = finite(floor.get("low"), floor.get("high"))
    spread = abs(ends[1] - ends[0]) / 2 if len(ends) == 2 else 0.0
    return fixed(value, decimals_for(spread)) if spread and decimals_for(spread) < 6 else readable(value)


def _cell(label: str, *lines: str | None, class_: str | None = None) -> Markup:
    held = [line if isinstance(line, Markup) else tag("small", line) for line in lines if line]
    return tag("td", *held, data_label=label, class_=class_, role="cell")


def _legend() -> Markup:
    marks = {
        "synthetic dot": "value of all volumes, with its interval",
        "synthetic ring": "value at the floor’s number of volumes",
    }
    keys = [tag("span", _icon(tag("circle", class_=c, cx=8, cy=8, r=4.5)), t) for c, t in marks.items()]
    band = joined(
        [
            tag("rect", class_="real band", x=0, y=3, width=16, height=10, rx=2),
            tag("line", class_="real mark", x1=8, x2=8, y1=2, y2=14),
        ]
    )
    keys.append(tag("span", _icon(band), "floor: real against real, with its range"))
    return tag("p", *keys, class_="legend")


def _icon(drawing: Markup) -> Markup:
    return tag("svg", drawing, class_="icon", viewBox="0 0 16 16", aria_hidden="true")
