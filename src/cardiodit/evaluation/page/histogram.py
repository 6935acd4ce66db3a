"""A distribution, real above and synthetic below one axis: mirrored histograms, and each volume as a tick if few."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cardiodit.evaluation.page.axis import Axis, axis_over, ticks_below
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.numbers import finite, mean_and_sd, p_value, readable, value_and_interval, with_unit

WIDTH, HEIGHT = 320, 226
LEFT, RIGHT = 12, 308
MIDDLE, TALLEST = 102, 62  # of the mirror, and of a bar
TICKED = 100  # volumes of a set; more of them run into each other
FEWEST_BINS, MOST_BINS = 6, 28
KINDS = ("real", "synthetic")


def histogram_figure(distribution: Mapping[str, Any]) -> Markup:
    """With its numbers as the caption, which are the picture's text, too."""
    sets = {kind: np.array(finite(*distribution[kind])) for kind in KINDS}
    words = _in_words(distribution, sets)
    drawing = _drawing(sets, f"{distribution['title']}. {' '.join(words)}") if _drawable(sets) else None
    caption = tag("figcaption", *(tag("p", sentence) for sentence in words))
    unit = tag("small", distribution["unit"]) if distribution.get("unit") else None
    return tag("figure", tag("h4", distribution["title"], " " if unit else None, unit), drawing, caption)


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges `(bins + 1,)` by Freedman and Diaconis, width 2·IQR·n^(-1/3), within limits."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        reach = abs(low) / 2 or 0.5
        return np.linspace(low - reach, high + reach, FEWEST_BINS)
    quarter, three = np.percentile(values, [25, 75])
    width = 2 * (three - quarter) * len(values) ** (-1 / 3)
    bins = (high - low) / width if width > 0 else MOST_BINS
    return np.linspace(low, high, int(np.clip(np.ceil(bins), FEWEST_BINS, MOST_BINS)) + 1)


def _drawable(sets: Mapping[str, np.ndarray]) -> bool:
    return any(len(values) for values in sets.values())


def _drawing(sets: Mapping[str, np.ndarray], text: str) -> Markup:
    edges = bin_edges(np.concatenate(list(sets.values())))
    axis = axis_over([*edges, *(end for values in sets.values() for end in _spread(values))], LEFT, RIGHT)
    shares = {kind: np.histogram(values, edges)[0] / max(1, len(values)) for kind, values in sets.items()}
    tallest = max(float(share.max()) for share in shares.values())
    sides = [_side(kind, sets[kind], shares[kind] / tallest, edges, axis) for kind in KINDS]
    return tag(
        "svg",
        *sides,
        tag("line", class_="line", x1=LEFT, x2=RIGHT, y1=MIDDLE, y2=MIDDLE),
        ticks_below(axis, HEIGHT - 22),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=text,
    )


def _side(kind: str, values: np.ndarray, heights: np.ndarray, edges: np.ndarray, axis: Axis) -> Markup:
    up = -1 if kind == "real" else 1
    parts = [
        tag("path", class_=f"{kind} bars", d=_bars(heights, edges, axis, up)),
        tag("text", kind, class_=f"{kind} name", x=RIGHT, y=MIDDLE + up * (TALLEST + 26) + 4, text_anchor="end"),
    ]
    if 0 < len(values) <= TICKED:
        parts.append(tag("path", class_=f"{kind} rug", d=_rug(values, axis, up)))
    if len(values):
        parts.append(_mean(kind, values, axis, MIDDLE + up * (TALLEST + 10)))
    return joined(parts)


def _bars(heights: np.ndarray, edges: np.ndarray, axis: Axis, up: int) -> str:
    """One path of rectangles that stand on the mirror, with a gap of one unit between them."""
    return "".join(
        f"M{axis.at(left) + 0.5:.1f} {MIDDLE}V{MIDDLE + up * height * TALLEST:.1f}H{axis.at(right) - 0.5:.1f}V{MIDDLE}Z"
        for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True)
        if height > 0
    )


def _rug(values: np.ndarray, axis: Axis, up: int) -> str:
    return "".join(f"M{axis.at(float(value)):.1f} {MIDDLE}v{up * 7}" for value in np.sort(values))


def _mean(kind: str, values: np.ndarray, axis: Axis, height: float) -> Markup:
    """A dot, and a standard deviation to both sides."""
    low, high = map(axis.at, _spread(values))
    return joined(
        [
            tag("line", class_=f"{kind} mark", x1=low, x2=high, y1=height, y2=height),
            tag("circle", class_=f"{kind} dot", cx=axis.at(float(values.mean())), cy=height, r=3.5),
        ]
    )


def _spread(values: np.ndarray) -> list[float]:
    """A standard deviation below and above the mean; nothing of no values."""
    if not len(values):
        return []
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return [mean - sd, mean + sd]


def _in_words(distribution: Mapping[str, Any], sets: Mapping[str, np.ndarray]) -> list[str]:
    unit = distribution.get("unit") or ""
    told = [
        f"{kind.capitalize()} {mean_and_sd(values, unit)} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{len(values)})"
        + (";" if kind == "real" else ".")
        for kind, values in sets.items()
    ]
    return [" ".join([told[0], told[1].replace("Synthetic", "synthetic")]), *_compared(distribution, unit)]


def _compared(distribution: Mapping[str, Any], unit: str) -> list[str]:
    comparison = distribution.get("comparison")
    if not comparison:
        return ["Not compared."]
    low, high = comparison.get("interval") or (None, None)
    difference, interval = value_and_interval(comparison.get("difference"), low, high)
    between = f" (95%: {interval})" if interval else ""
    floor, above = (readable(comparison.get(name), 2) for name in ("floor", "floor_high"))
    distance = with_unit(readable(comparison.get("wasserstein"), 2), unit)
    return [
        f"Difference {with_unit(difference, unit)}{between}.",
        f"Wasserstein {distance}, floor {floor}, 95% of it below {above}; {p_value(comparison.get('p_value'))}.",
    ]
