"""The metrics on numbers of single hearts: function and consistency as distributions, plausibility as shares."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student_t

from cardiodit.evaluation.comparison import Comparison, compare
from cardiodit.evaluation.estimate import LEVEL, Estimate
from cardiodit.evaluation.function import FEWEST_FRAMES
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.metric import FUNCTION, HIGHER, LOWER, NEAR_REAL, PLAUSIBILITY, RECONSTRUCTION, Floor, Metric
from cardiodit.evaluation.plausibility import RULES
from cardiodit.evaluation.quantities import QUANTITIES, RULE_TITLES, Quantity

ALL_RULES = "all"
RECONSTRUCTED = {
    "psnr": ("PSNR of reconstructions", "dB", HIGHER),
    "ssim": ("SSIM of reconstructions", "", HIGHER),
    "l1": ("L1 of reconstructions", "", LOWER),
    "lv_ef_shift_percent": ("Shift of LV ejection fraction by reconstruction", "%", NEAR_REAL),
    "lv_ef_error_percent": ("Error of LV ejection fraction by reconstruction", "%", LOWER),
    "lv_edv_shift_ml": ("Shift of LV end-diastolic volume by reconstruction", "mL", NEAR_REAL),
}


def number_scores(
    real: Sequence[Measured], synthetic: Sequence[Measured], *, seed: int = 0
) -> tuple[list[Metric], list[dict[str, Any]], list[str]]:
    """The metrics, the distributions they are of, and a sentence for each number that too few volumes have."""
    metrics, distributions, unknown = [], [], []
    too_few: dict[tuple[int, int], list[str]] = {}  # by how many volumes lack them on each side
    for quantity in QUANTITIES.values():
        values = [_known(volumes, quantity.name) for volumes in (real, synthetic)]
        lacking = (len(real) - len(values[0]), len(synthetic) - len(values[1]))
        if not any(values):
            is_asked = any(quantity.name in volume.numbers for volume in (*real, *synthetic))
            unknown += [quantity.title] if quantity.group == FUNCTION and is_asked else []
            continue
        if min(map(len, values)) < 2:
            too_few.setdefault(lacking, []).append(quantity.title)
            continue
        comparison = compare(*values, seed=seed)
        metrics.append(_distance(quantity, comparison, lacking))
        distributions.append(_distribution(quantity, values, comparison))
    left_out = [
        f"{'; '.join(titles)}: {lacking[0]} real and {lacking[1]} synthetic volumes do not have "
        f"{'it' if len(titles) == 1 else 'them'}."
        for lacking, titles in too_few.items()
    ]
    if unknown and any(metric.group == FUNCTION for metric in metrics):
        left_out.append(
            f"{', '.join(unknown)}: no volume has them. Rates need a known frame time and at least {FEWEST_FRAMES} "
            "frames."
        )
    return metrics, distributions, left_out


def plausibility_scores(real: Sequence[Measured], synthetic: Sequence[Measured]) -> list[Metric]:
    """The share of synthetic hearts that keep each rule, beside the share of real ones, which segmenters lower, too."""
    if not all(measured.plausible for measured in (*real, *synthetic)):
        return []
    asked = set.intersection(*(set(measured.plausible or ()) for measured in (*real, *synthetic)))
    titles = {ALL_RULES: "Hearts that keep every rule", **{n: t for n, t in RULE_TITLES.items() if n in asked}}
    return [_share(name, title, real, synthetic) for name, title in titles.items()]


def reconstruction_scores(real: Sequence[Measured]) -> list[Metric]:
    """Means over the real volumes that were passed through the autoencoder."""
    metrics = []
    for name, (title, unit, better) in RECONSTRUCTED.items():
        values = _known(real, f"reconstruction_{name}")
        if len(values) < 2:
            continue
        reach = float(student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
        mean = float(np.mean(values))
        method = f"mean over {len(values)} real volumes passed through the autoencoder; Student's interval"
        estimate = Estimate(mean, mean - reach, mean + reach, method=method)
        metrics.append(Metric(f"reconstruction_{name}", title, RECONSTRUCTION, better, estimate, unit=unit))
    return metrics


def _known(volumes: Sequence[Measured], name: str) -> list[float]:
    return [value for volume in volumes if (value := volume.numbers.get(name)) is not None and np.isfinite(value)]


def _distance(quantity: Quantity, comparison: Comparison, lacking: Sequence[int]) -> Metric:
    low, high = comparison.interval
    unit = f" {quantity.unit}" if quantity.unit else ""
    notes = [
        f"Real {comparison.real.mean:.4g} ± {comparison.real.sd:.3g}, synthetic {comparison.synthetic.mean:.4g} ± "
        f"{comparison.synthetic.sd:.3g}{unit}; difference of the means {comparison.difference:.3g} "
        f"({low:.3g} to {high:.3g}); permutation test of the distance: p = {comparison.p_value:.3g}.",
        "The distance itself has no interval; the floor's high end is its 95th percentile between real and real.",
    ]
    if any(lacking):
        notes.append(f"{lacking[0]} real and {lacking[1]} synthetic volumes do not have this number.")
    estimate = Estimate(
        comparison.wasserstein,
        None,
        None,
        method="Wasserstein-1 distance between the distributions of one number a heart",
        notes=tuple(notes),
    )
    floor = Floor(comparison.floor, None, comparison.floor_high, comparison.wasserstein, None)
    name, title = f"wasserstein_{quantity.name}", f"{quantity.title}: Wasserstein distance"
    return Metric(name, title, quantity.group, LOWER, estimate, floor, quantity.unit)


def _distribution(quantity: Quantity, values: Sequence[list[float]], comparison: Comparison) -> dict[str, Any]:
    told = asdict(comparison)
    return {
        "name": quantity.name,
        "title": quantity.title,
        "unit": quantity.unit,
        "group": quantity.group,
        "real": values[0],
        "synthetic": values[1],
        "comparison": {**told, "interval": list(comparison.interval)},
    }


def _share(name: str, title: str, real: Sequence[Measured], synthetic: Sequence[Measured]) -> Metric:
    counts = [sum(_keeps(volume, name) for volume in volumes) for volumes in (real, synthetic)]
    (real_low, real_high), (low, high) = (
        binomtest(count, len(volumes)).proportion_ci(LEVEL)
        for count, volumes in zip(counts, (real, synthetic), strict=True)
    )
    share = counts[1] / len(synthetic)
    method = "share of synthetic hearts; exact binomial interval (Clopper and Pearson)"
    notes = ["The floor is the share of real hearts: their labels have faults, too."]
    if name in RULES:
        notes.insert(0, f"{_sentence(RULES[name].description)} Why: {RULES[name].reason}.")
    floor = Floor(counts[0] / len(real), float(real_low), float(real_high), share, None)
    estimate = Estimate(share, float(low), float(high), method=method, notes=tuple(notes))
    return Metric(f"plausible_{name}", title, PLAUSIBILITY, HIGHER, estimate, floor)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _keeps(volume: Measured, name: str) -> bool:
    rules = volume.plausible or {}
    return all(rules.values()) if name == ALL_RULES else rules[name]
