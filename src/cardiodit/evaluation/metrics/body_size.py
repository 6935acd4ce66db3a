"""Volumes and mass relative to body size, and heart rates, where manifests state them.

Samples of a folder have no body: only manifests of both sets with the columns `height` (cm) and `weight` (kg) can be
compared. The heart rate is that of the column `heart_rate`, or that of the file's frame time.
"""

import math
from collections.abc import Mapping

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import FUNCTION
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import Case

COLUMNS = ("height", "weight", "heart_rate")
RANGES = {"height": (40.0, 250.0, "cm"), "weight": (1.0, 400.0, "kg"), "heart_rate": (20.0, 300.0, "beats per minute")}
INDEXED = {
    "lv_edv_ml": ("lv_edv_index_ml_m2", "LV end-diastolic volume index", "mL/m²"),
    "lv_esv_ml": ("lv_esv_index_ml_m2", "LV end-systolic volume index", "mL/m²"),
    "lv_sv_ml": ("lv_sv_index_ml_m2", "LV stroke volume index", "mL/m²"),
    "lv_mass_g": ("lv_mass_index_g_m2", "LV mass index", "g/m²"),
    "rv_edv_ml": ("rv_edv_index_ml_m2", "RV end-diastolic volume index", "mL/m²"),
    "rv_esv_ml": ("rv_esv_index_ml_m2", "RV end-systolic volume index", "mL/m²"),
}

register_quantities(
    [
        Quantity("bsa_m2", "Body surface area", "m²"),
        *(Quantity(name, title, unit) for name, title, unit in INDEXED.values()),
        Quantity("heart_rate_bpm", "Heart rate", "1/min"),
    ],
    group=FUNCTION,
)


def body_surface_m2(height_cm: float, weight_kg: float) -> float:
    """Return √(height · weight / 3600) (Mosteller 1987)."""
    return math.sqrt(height_cm * weight_kg / 3600)


def body_numbers(
    case: Case, numbers: Mapping[str, float | None], geometry: Geometry, frames: int, closes: bool
) -> dict[str, float | None]:
    """Return body surface area, indexed volumes and mass, and heart rate of a manifest's volume, as far as known."""
    height, weight, rate = (_checked(case, column) for column in COLUMNS)
    found: dict[str, float | None] = {}
    if height is not None and weight is not None:
        area = body_surface_m2(height, weight)
        found["bsa_m2"] = area
        for name, (indexed, _, _) in INDEXED.items():
            if (value := numbers.get(name)) is not None:
                found[indexed] = value / area
    if rate is None and closes and geometry.frame_time:
        rate = 60 / (geometry.frame_time * frames)
    return found if rate is None else {**found, "heart_rate_bpm": rate}


def _checked(case: Case, column: str) -> float | None:
    value = case.number(column)
    low, high, unit = RANGES[column]
    if value is not None and not low <= value <= high:
        raise CardioDiTError(f"{column}={value:g} of {case.image} is not in {unit}; expected {low:g} to {high:g}.")
    return value
