"""Orders of labels: everybody numbers a heart's parts otherwise."""

import re

import numpy as np

from cardiodit.errors import CardioDiTError

ACDC_ORDER, MNMS_ORDER = "RV=1 MYO=2 LV=3", "LV=1 MYO=2 RV=3"
OURS = {"RV": 1, "MYO": 2, "LV": 3}  # ACDC's, as everywhere in the package


def reorder(labels: np.ndarray, order: str) -> np.ndarray:
    """Label maps (uint8) with RV 1, myocardium 2, LV 3, of label maps in an order such as "LV=1 MYO=2 RV=3"."""
    table = {0: 0, **{theirs: OURS[part] for part, theirs in parse_order(order).items()}}
    found = np.unique(labels)
    if unknown := [f"{value:g}" for value in found if float(value) not in table]:
        raise CardioDiTError(
            f"The label maps hold {', '.join(f'{value:g}' for value in found)}, and {', '.join(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not in the order {order!r} (background 0). Give their true order."
        )
    ours = np.zeros(max(table) + 1, np.uint8)
    for theirs, value in table.items():
        ours[theirs] = value
    return ours[labels.astype(np.int64)]


def parse_order(order: str) -> dict[str, int]:
    """{"LV": 1, "MYO": 2, "RV": 3} of "LV=1 MYO=2 RV=3"."""
    pairs = re.findall(r"(\w+)=(\d+)", order)
    parts = {part: int(value) for part, value in pairs}
    if set(parts) != set(OURS) or len(pairs) != 3 or len(set(parts.values()) - {0}) != 3:
        raise CardioDiTError(f"The order of labels {order!r} must name three numbers above 0, such as {ACDC_ORDER!r}.")
    return parts
