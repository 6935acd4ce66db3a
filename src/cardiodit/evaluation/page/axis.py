"""From numbers to places in a picture, with ticks at round numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.numbers import fixed, readable

STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Axis:
    """A straight axis.

    Args:
        low, high: the numbers at its ends.
        start, end: where these are, in the picture's units; an axis that points up ends above its start.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Round numbers within the axis, and how they are written."""
        rough = (self.high - self.low) / most
        exponent = math.floor(math.log10(rough))
        power = 10.0**exponent
        step = next(step * power for step in STEPS if step * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, (step / power == 2.5) - exponent)
        return [(i * step, _written(i * step, decimals)) for i in range(first, last + 1)]


def axis_over(values: Iterable[float], start: float, end: float, *, with_zero: bool = False, margin: float = 0) -> Axis:
    """An axis that holds all values, with a share of their range to spare at both ends."""
    held = [*values, *([0.0] if with_zero else [])]
    low, high = min(held, default=0.0), max(held, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        reach = abs(low) / 2 or 0.5
        return Axis(low - reach, high + reach, start, end)
    spare = margin * (high - low)
    lowest = low if with_zero and low == 0 else low - spare
    return Axis(lowest, high if with_zero and high == 0 else high + spare, start, end)


def ticks_below(axis: Axis, top: float, most: int = 5) -> Markup:
    """The labels of an axis that runs to the right, under its line at `top`."""
    marks = [
        joined(
            [
                tag("line", class_="tick", x1=axis.at(value), x2=axis.at(value), y1=top, y2=top + 4),
                tag("text", text, x=axis.at(value), y=top + 15, text_anchor="middle"),
            ]
        )
        for value, text in axis.ticks(most)
    ]
    return joined([tag("line", class_="line", x1=axis.start, x2=axis.end, y1=top, y2=top), *marks])


def _written(value: float, decimals: int) -> str:
    return fixed(value, decimals) if decimals <= 5 and abs(value) < 1e7 else readable(value, 2)
