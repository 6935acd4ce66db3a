"""The order in which heart structures are numbered in label maps, which differs between cohorts."""

import re
from collections.abc import Mapping, Sequence

from cardiodit.errors import CardioDiTError

ACDC_ORDER = "RV=1 MYO=2 LV=3"
MNMS_ORDER = "LV=1 MYO=2 RV=3"
OURS = {"RV": 1, "MYO": 2, "LV": 3}  # ACDC's order, used throughout the package

ORDER = "mask_order"  # column of a manifest that states the label order of its heart masks
HEARTS = ("mask", "ed_mask", "es_mask")  # columns of heart masks, which `mask_order` applies to


def parse_order(order: str) -> dict[str, int]:
    """Parse "LV=1 MYO=2 RV=3" into {"LV": 1, "MYO": 2, "RV": 3}."""
    pairs = re.findall(r"(\w+)=(\d+)", order)
    parts = {part: int(value) for part, value in pairs}
    if set(parts) != set(OURS) or len(pairs) != 3 or len(set(parts.values()) - {0}) != 3:
        raise CardioDiTError(
            f"The label order {order!r} must name three numbers above 0, all different, such as {ACDC_ORDER!r}."
        )
    return parts


def order_of_row(row: Mapping[str, str], column: str) -> str | None:
    """Return the label order of the mask in a column; None if it is not a heart mask or the row gives no order."""
    return (row.get(ORDER) or None) if column in HEARTS else None


def check_orders(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Check that either all rows with heart masks give their label order or none does."""
    with_heart = [row for row in rows if any(row.get(column) for column in columns if column in HEARTS)]
    missing = sum(not row.get(ORDER) for row in with_heart)
    if 0 < missing < len(with_heart):
        raise CardioDiTError(
            f"{ORDER} is empty in {missing} of {len(with_heart)} rows with masks, so the right ventricle of some rows "
            f"could be the left ventricle of others. Fill it in every row, for example with {ACDC_ORDER!r}."
        )
