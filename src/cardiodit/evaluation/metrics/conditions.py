"""How well samples meet the clinical conditions that they were given: measured against requested EF, EDV, ESV and mass.

The requests are in the samples' records (`samples.jsonl`); the measurements come from the same segmenter as those of
cardiac function. A condition is recognised by its name, such as `ef` or `lv_ef_percent`.
"""

from functools import partial

import numpy as np
from scipy import stats

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate
from cardiodit.evaluation.metrics.function import QUANTITIES
from cardiodit.evaluation.metrics.numbers import Quantity
from cardiodit.evaluation.metrics.registry import FUNCTION, HIGHER, LOWER, NOT_NEGATIVE, Scoring, metric

FEWEST = 3  # requests of which a correlation is known
LEVEL = 0.95
CONDITIONS_OF = {
    "lv_ef_percent": ("ef", "lv_ef", "lv_ef_percent"),
    "lv_edv_ml": ("edv", "lv_edv", "lv_edv_ml"),
    "lv_esv_ml": ("esv", "lv_esv", "lv_esv_ml"),
    "lv_mass_g": ("mass", "lv_mass", "lv_mass_g"),
    "rv_ef_percent": ("rv_ef", "rv_ef_percent"),
    "rv_edv_ml": ("rv_edv", "rv_edv_ml"),
    "rv_esv_ml": ("rv_esv", "rv_esv_ml"),
}  # by the quantity that is measured


def requested_and_measured(scoring: Scoring, quantity: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the requests of a quantity, their measurements, and the number of samples whose quantity is unknown."""
    pairs: list[tuple[float, float]] = []
    unknown = 0
    if not any(item.asked for item in scoring.synthetic.items):
        return np.zeros(0), np.zeros(0), 0
    for item, measured in zip(scoring.synthetic.items, scoring.synthetic.measured, strict=True):
        asked = [item.asked[name] for name in CONDITIONS_OF[quantity] if isinstance(item.asked.get(name), int | float)]
        value = measured.numbers.get(quantity)
        unknown += bool(asked) and value is None
        if asked and value is not None:
            pairs.append((float(asked[0]), value))
    pairs.sort()  # so that no result depends on the names of files
    first, second = np.array(pairs).reshape(-1, 2).T
    return first, second, unknown


def condition_error(scoring: Scoring, *, quantity: Quantity) -> Estimate | None:
    """Return the mean absolute error, with Student's interval."""
    asked, found, unknown = requested_and_measured(scoring, quantity.name)
    if not len(asked):
        return None
    errors = np.abs(found - asked)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(errors) - 1) * stats.sem(errors)) if len(errors) > 1 else None
    low, high = (None, None) if reach is None else (float(errors.mean()) - reach, float(errors.mean()) + reach)
    notes = [
        f"{len(asked)} requests from {asked.min():.4g} to {asked.max():.4g} {quantity.unit}; measured minus requested "
        f"is {np.mean(found - asked):.3g} on average, and the mean absolute error is "
        f"{100 * np.mean(errors / np.maximum(np.abs(asked), 1e-9)):.3g}% of the request."
    ]
    if unknown:
        notes.append(f"{unknown} samples were given this condition, but the number is unknown in them.")
    method = "mean absolute difference of the measured from the requested number"
    return Estimate(float(errors.mean()), low, high, LEVEL, method, tuple(notes))


def condition_correlation(scoring: Scoring, *, quantity: Quantity) -> Estimate | None:
    """Return Pearson's r of measured and requested numbers, with Fisher's interval."""
    asked, found, _ = requested_and_measured(scoring, quantity.name)
    if not len(asked):
        return None
    if len(asked) < FEWEST or np.ptp(asked) == 0 or np.ptp(found) == 0:
        raise CardioDiTError(f"A correlation needs at least {FEWEST} requests and measurements that differ.")
    r = float(np.clip(np.corrcoef(asked, found)[0, 1], -1, 1))
    low = high = None
    if len(asked) > FEWEST and abs(r) < 1:
        reach = stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(len(asked) - 3)
        low, high = (float(np.tanh(np.arctanh(r) + sign * reach)) for sign in (-1, 1))
    return Estimate(r, low, high, LEVEL, "Pearson's r of the measured and the requested numbers", ())


for _quantity in QUANTITIES:
    if _quantity.name in CONDITIONS_OF:
        _title = f"{_quantity.title}, measured against requested"
        metric(
            f"condition_error_{_quantity.name}",
            f"{_title}: mean absolute error",
            group=FUNCTION,
            better=LOWER,
            unit=_quantity.unit,
            bounds=NOT_NEGATIVE,
        )(partial(condition_error, quantity=_quantity))
        metric(
            f"condition_correlation_{_quantity.name}",
            f"{_title}: correlation",
            group=FUNCTION,
            better=HIGHER,
            bounds=(-1, 1),
        )(partial(condition_correlation, quantity=_quantity))
