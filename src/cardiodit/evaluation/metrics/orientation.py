"""Orientation and contrast of a labelled heart: which way it lies, and whether blood is brighter than muscle.

Volumes, shares and distances of neighbours are the same in a mirror. Label maps `(H, W, D, T)` have RV 1, myocardium 2,
LV 3 and slices from base to apex; pictures show H from left to right and W from bottom to top.
"""

import math
from collections.abc import Sequence

import numpy as np

from cardiodit.evaluation.metrics.function import LV, MYO, RV, leak_share
from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import ORIENTATION
from cardiodit.imaging.geometry import Geometry

OPPOSITE = 90  # degrees from the left of the picture, beyond which the RV is on its right
MOST = 0.5  # share of a set's hearts, above which a note is written
RV_LEAK = "rv_ring_leak_share"

register_quantities(
    [
        Quantity("rv_direction_deg", "Direction of the RV from the LV (0: left of the picture, 90: up)", "°"),
        Quantity("lv_taper", "LV taper from the first slice to the last"),
        Quantity("ring_leak_share", "LV outline that is not myocardium"),
        Quantity("blood_contrast", "Blood minus myocardium, in units of [-1, 1]"),
    ],
    group=ORIENTATION,
)


def orientation(labels: np.ndarray, geometry: Geometry, cine: np.ndarray | None = None) -> dict[str, float]:
    """Return the numbers of one heart; those that have nothing to measure are left out.

    Direction and taper are measured in the frame with the largest left cavity. The taper is the cavity of the first
    half of its slices minus that of the second, over both: positive if it narrows towards the last slice.

    Args:
        cine: the image, for its contrast.
    """
    largest = labels[..., int((labels == LV).sum(axis=(0, 1, 2)).argmax())]
    found = {
        "rv_direction_deg": _direction(largest, geometry),
        "lv_taper": _taper((largest == LV).sum(axis=(0, 1))),
        "ring_leak_share": leak_share(labels),
        RV_LEAK: leak_share(labels, RV),
    }
    if cine is not None:
        blood, muscle = cine[labels == LV], cine[labels == MYO]
        if len(blood) and len(muscle):
            found["blood_contrast"] = float(blood.mean(dtype=np.float64) - muscle.mean(dtype=np.float64))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _direction(labels: np.ndarray, geometry: Geometry) -> float:
    """Return the angle from the left cavity's centre to the right one's, in degrees; NaN if one is missing."""
    height, width = (1.0, 1.0) if geometry.spacing is None else geometry.spacing[:2]
    centres = [
        np.argwhere(labels == label)[:, :2].mean(axis=0) if (labels == label).any() else None for label in (LV, RV)
    ]
    if centres[0] is None or centres[1] is None:
        return math.nan
    to_right, up = (centres[1] - centres[0]) * (height, width)
    return math.degrees(math.atan2(up, -to_right))


def _taper(areas: np.ndarray) -> float:
    """Return the difference of both halves of the slices that contain the cavity, over their sum; NaN for one slice."""
    slices = np.flatnonzero(areas)
    if not len(slices) or slices[0] == slices[-1]:
        return math.nan
    held = areas[slices[0] : slices[-1] + 1].astype(np.float64)
    half = len(held) // 2
    first, second = held[:half].sum(), held[-half:].sum()
    return float((first - second) / (first + second))


def notes_on_orientation(name: str, hearts: Sequence[dict[str, float | None]]) -> list[str]:
    """Return notes on a set most of whose hearts are not as a short-axis cine is stored and labelled here."""
    checks = (
        ("rv_direction_deg", lambda n: abs(n["rv_direction_deg"]) > OPPOSITE, "the right ventricle is on the right of "
         "the picture: they are mirrored, or LV and RV are exchanged in the labels"),
        ("lv_taper", lambda n: n["lv_taper"] < 0, "the left cavity widens from the first slice to the last: they run "
         "from apex to base"),
        (RV_LEAK, lambda n: n[RV_LEAK] < n["ring_leak_share"], "the label RV, not LV, is enclosed by myocardium: check "
         "the label order (mask_order)"),
        ("blood_contrast", lambda n: n["blood_contrast"] < 0, "blood is darker than myocardium: the contrast is "
         "inverted, or this is no bright-blood sequence"),
    )  # fmt: skip
    notes = []
    for key, is_odd, what in checks:
        known = [numbers for numbers in hearts if numbers.get(key) is not None]
        odd = sum(map(is_odd, known))
        if known and odd > MOST * len(known):
            notes.append(f"In {odd} of {len(known)} {name} volumes {what}.")
    return notes
