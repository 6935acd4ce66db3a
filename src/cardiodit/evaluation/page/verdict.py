"""Where a metric lies beside its floor: both at the same number of volumes, or nothing is said."""

import math
from collections.abc import Mapping
from typing import Any

from cardiodit.evaluation.page.numbers import is_number

WITHIN, WORSE, BETTER, OUTSIDE = "within", "worse", "better", "outside"
WORDS = {
    WITHIN: "as real against real",
    WORSE: "worse than real against real",
    BETTER: "better than real against real",
    OUTSIDE: "unlike real against real",
}


def verdict(metric: Mapping[str, Any]) -> str | None:
    """Of the value at equal numbers and the floor's range; None where too little is known to judge.

    A floor may reach one way only: then nothing is beyond its other end.
    """
    floor = metric.get("floor") or {}
    matched, low, high = (floor.get(name, math.nan) for name in ("matched", "low", "high"))
    needed = {"lower": [high], "higher": [low]}.get(metric["better"], [low, high])
    if not all(map(is_number, [matched, *needed])):
        return None
    is_above = is_number(high) and float(matched) > float(high)
    is_below = is_number(low) and float(matched) < float(low)
    if not is_above and not is_below:
        return WITHIN
    if metric["better"] not in ("lower", "higher"):
        return OUTSIDE
    return WORSE if is_above == (metric["better"] == "lower") else BETTER
