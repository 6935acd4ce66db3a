"""The numbers that are measured of a heart, by name: what each is called, its unit, and what it tells of."""

from dataclasses import dataclass

from cardiodit.evaluation.consistency import MEASURES
from cardiodit.evaluation.metric import CONSISTENCY, FUNCTION
from cardiodit.evaluation.plausibility import RULES

SIDES = {"lv": "LV", "rv": "RV"}
OF_A_VENTRICLE = {
    "edv_ml": ("end-diastolic volume", "mL"),
    "esv_ml": ("end-systolic volume", "mL"),
    "sv_ml": ("stroke volume", "mL"),
    "ef_percent": ("ejection fraction", "%"),
    "peak_ejection_ml_s": ("peak ejection rate", "mL/s"),
    "peak_filling_ml_s": ("peak filling rate", "mL/s"),
    "peak_ejection_edv_s": ("peak ejection rate over its EDV", "1/s"),
    "peak_filling_edv_s": ("peak filling rate over its EDV", "1/s"),
}
CURVE_TITLES = {"lv_volume_ml": "LV volume over the beat", "rv_volume_ml": "RV volume over the beat"}


@dataclass(frozen=True)
class Quantity:
    name: str
    title: str
    unit: str
    group: str


def _all() -> dict[str, Quantity]:
    found = [
        Quantity(f"{side}_{name}", f"{SIDES[side]} {title}", unit, FUNCTION)
        for side in SIDES
        for name, (title, unit) in OF_A_VENTRICLE.items()
    ]
    found.append(Quantity("lv_mass_g", "LV mass", "g", FUNCTION))
    found.append(Quantity("wall_thickening_percent", "LV wall thickening", "%", FUNCTION))
    for name, measure in MEASURES.items():
        title = f"{_words(name)}, {measure.axis}"
        found.append(Quantity(name, title, "mm" if name.endswith("_mm") else "", CONSISTENCY))
    return {quantity.name: quantity for quantity in found}


def _words(name: str) -> str:
    return name.removesuffix("_mm").replace("_", " ").capitalize()


QUANTITIES = _all()
_RULES = {
    "lv_ef_percent": "Plausible LV ejection fraction",
    "rv_ef_percent": "Plausible RV ejection fraction",
    "stroke_volume_ratio": "Plausible RV over LV stroke volume",
    "cycle_gap": "Plausible closing of the beat",
    "wall_thickening_percent": "Plausible LV wall thickening",
    "lv_body_share": "LV cavity in one body",
    "ring_leak_share": "LV wall a closed ring",
}
RULE_TITLES = {name: f"{_RULES[name]} ({rule.low:g} to {rule.high:g})" for name, rule in RULES.items()}
