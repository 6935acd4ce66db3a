"""Curves over the beat: each volume a thin line, their median a thick one, real beside synthetic on one scale.

Beats of different hearts, and frames of different cines, last differently long: the axis is the share of the beat.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cardiodit.evaluation.page.axis import Axis, axis_over, ticks_below
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.numbers import is_number, readable, with_unit

WIDTH, HEIGHT = 440, 228
LEFT, RIGHT, TOP, BOTTOM = 46, 430, 24, 200
DRAWN = 60  # lines; of more curves, the range of the middle 80% is drawn
KINDS = ("real", "synthetic")
ALONG = Axis(0, 100, LEFT, RIGHT)


def curve_figure(curve: Mapping[str, Any]) -> Markup:
    """Two panels, and what they show in words."""
    sets = {kind: _complete(curve[kind]) for kind in KINDS}
    if not any(sets.values()):
        return tag("figure", tag("h4", curve["title"]), tag("figcaption", tag("p", "There are no curves to show.")))
    upright = axis_over(np.concatenate([np.concatenate(rows) for rows in sets.values() if rows]), BOTTOM, TOP)
    panels = [_panel(kind, sets[kind], curve, upright) for kind in KINDS]
    caption = tag("figcaption", tag("p", f"Across: % of {_whole(curve)}. {_drawn(sets)}"))
    title = tag("h4", curve["title"], " ", tag("small", curve.get("unit") or ""))
    return tag("figure", title, tag("div", *panels, class_="panels"), caption, class_="curves")


def _complete(rows: Sequence[Sequence[float | None]]) -> list[np.ndarray]:
    """Curves without a gap, each `(T,)`."""
    return [np.array(row, np.float64) for row in rows if row and all(map(is_number, row))]


def _whole(curve: Mapping[str, Any]) -> str:
    """What 100% is."""
    return "the beat" if curve.get("is_one_beat", True) else "the cine, whose beat is repeated to fill the frames"


def _panel(kind: str, rows: list[np.ndarray], curve: Mapping[str, Any], upright: Axis) -> Markup:
    median = _middle(rows)
    return tag(
        "svg",
        _grid(upright),
        ticks_below(ALONG, BOTTOM + 4),
        _thin(kind, rows, upright),
        tag("path", class_=f"{kind} median", d=_line(median, upright)) if len(median) else None,
        tag("text", f"{kind}, n = {len(rows)}", class_=f"{kind} name", x=RIGHT, y=TOP - 8, text_anchor="end"),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=_in_words(kind, median, len(rows), curve),
    )


def _grid(upright: Axis) -> Markup:
    return joined(
        joined(
            [
                tag("line", class_="grid", x1=LEFT, x2=RIGHT, y1=upright.at(value), y2=upright.at(value)),
                tag("text", text, x=LEFT - 6, y=upright.at(value) + 4, text_anchor="end"),
            ]
        )
        for value, text in upright.ticks()
    )


def _thin(kind: str, rows: list[np.ndarray], upright: Axis) -> Markup:
    if len(rows) <= DRAWN:
        return tag("path", class_=f"{kind} thin", d="".join(_line(row, upright) for row in rows))
    low, high = np.percentile(_alike(rows), [10, 90], axis=0)  # (T,) each
    outline = f"{_line(high, upright)}L{_line(low, upright, backwards=True)[1:]}Z"
    return tag("path", class_=f"{kind} band", d=outline)


def _line(row: np.ndarray, upright: Axis, backwards: bool = False) -> str:
    """Frame t of T lies at t/T of the beat: the last one is a step away from its end, which is its beginning again."""
    points = [f"{ALONG.at(100 * t / len(row)):.1f} {upright.at(float(y)):.1f}" for t, y in enumerate(row)]
    return "M" + "L".join(reversed(points) if backwards else points)


def _alike(rows: list[np.ndarray]) -> np.ndarray:
    """Curves `(n, T)` of as many frames as most have."""
    lengths = [len(row) for row in rows]
    usual = max(set(lengths), key=lengths.count)
    return np.stack([row for row in rows if len(row) == usual])


def _middle(rows: list[np.ndarray]) -> np.ndarray:
    return np.median(_alike(rows), axis=0) if rows else np.zeros(0)


def _drawn(sets: Mapping[str, list[np.ndarray]]) -> str:
    if max(map(len, sets.values())) <= DRAWN:
        return "Thin: each volume. Thick: the median."
    return f"Thick: the median. Sets of more than {DRAWN} show the middle 80% of their volumes in place of each."


def _in_words(kind: str, median: np.ndarray, count: int, curve: Mapping[str, Any]) -> str:
    if not len(median):
        return f"{curve['title']}, {kind}: none"
    most, least = (with_unit(readable(float(end)), curve.get("unit")) for end in (median.max(), median.min()))
    return (
        f"{curve['title']}, {kind}, {count} curves: the median has its highest value, {most}, at "
        f"{_percent(median.argmax(), median)} of {_whole(curve)} and its lowest, {least}, at "
        f"{_percent(median.argmin(), median)}."
    )


def _percent(frame: np.integer, curve: np.ndarray) -> str:
    return f"{100 * int(frame) / len(curve):.0f}%"
