"""Physiological plausibility: rules that label maps of a heart must keep (RV 1, myocardium 2, LV 3).

The limits are rules of thumb and wide on purpose: they are to catch impossible hearts, not diseased ones. Segmenters
make errors too, so that the share of real hearts that keep a rule belongs beside the share of generated ones.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import binomtest, fisher_exact

from cardiodit.evaluation.metrics.estimate import LEVEL, Estimate, Floor
from cardiodit.evaluation.metrics.function import LV, heart_function, largest_body_share, leak_share, wall_thickening
from cardiodit.evaluation.metrics.registry import HIGHER, PLAUSIBILITY, SHARE, Result, Scoring, metric
from cardiodit.imaging.geometry import Geometry

CLOSED = "cycle_gap"  # the rule that needs one whole beat
ALL_RULES = "all"


@dataclass(frozen=True)
class Rule:
    """Limits of a number, both ends included, and the reason for them."""

    title: str
    description: str
    low: float
    high: float
    reason: str


RULES = {
    "lv_ef_percent": Rule(
        "Plausible LV ejection fraction",
        "ejection fraction of the left ventricle, in percent",
        10,
        85,
        "end-stage failure still ejects about a tenth; no adult's cavity empties completely, though a hypertrophic one "
        "nearly does",
    ),
    "rv_ef_percent": Rule(
        "Plausible RV ejection fraction",
        "ejection fraction of the right ventricle, in percent",
        10,
        85,
        "as for the left ventricle, which it feeds",
    ),
    "stroke_volume_ratio": Rule(
        "Plausible RV over LV stroke volume",
        "stroke volume of the right ventricle over that of the left",
        0.5,
        2.0,
        "what leaves one ventricle enters the other; only severe shunts, leaking valves or lost slices double it",
    ),
    CLOSED: Rule(
        "Plausible closing of the beat",
        "labels that change from the last frame to the first, over the largest change between two other frames",
        0,
        1.0,
        "the beat repeats: its last step is one of diastole, and no larger than those of ejection",
    ),
    "wall_thickening_percent": Rule(
        "Plausible LV wall thickening",
        "thickening of the left ventricle's wall from end-diastole to end-systole, in percent",
        0,
        150,
        "myocardium keeps its volume, so that it is thicker around a smaller cavity",
    ),
    "lv_body_share": Rule(
        "LV cavity in one body",
        "share of the left cavity's voxels in its largest connected component, in the frame where it is least",
        0.98,
        1.0,
        "there is one cavity; a few stray voxels are the segmenter's",
    ),
    "ring_leak_share": Rule(
        "LV wall a closed ring",
        "share of the left cavity's outline, slice by slice, that is not myocardium",
        0.0,
        0.05,
        "the wall is a closed ring except at the outflow tract, which the most basal slice may show in part",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One rule applied to one heart. A value that cannot be computed is NaN, and breaks the rule."""

    name: str
    value: float
    rule: Rule

    @property
    def is_plausible(self) -> bool:
        return self.rule.low <= self.value <= self.rule.high


def _share_metric(scoring: Scoring, *, name: str) -> Result | None:
    """Return the share of synthetic hearts that keep a rule, beside that of real ones, which segmenters lower too."""
    kept = []
    for side in scoring.sets:
        rules = [volume.plausible or {} for volume in side.measured]
        if not all(rules) or (name != ALL_RULES and any(name not in each for each in rules)):
            return None
        kept.append([all(each.values()) if name == ALL_RULES else each[name] for each in rules])
    counts = [sum(each) for each in kept]
    (real_low, real_high), (low, high) = (
        binomtest(count, len(each)).proportion_ci(LEVEL) for count, each in zip(counts, kept, strict=True)
    )
    share = counts[1] / len(kept[1])
    notes = ["The floor is the share of real hearts, whose labels have errors too; Fisher's exact test must agree."]
    if name in RULES:
        description = RULES[name].description
        notes.insert(0, f"{description[0].upper()}{description[1:]}. Reason: {RULES[name].reason}.")
    method = "share of synthetic hearts; exact binomial interval (Clopper and Pearson)"
    return Result(
        Estimate(share, float(low), float(high), method=method, notes=tuple(notes)),
        Floor(counts[0] / len(kept[0]), float(real_low), float(real_high), share, None),
        p_value=float(fisher_exact([[k, len(each) - k] for k, each in zip(counts, kept)]).pvalue),
    )


metric("plausible_all", "Hearts that keep every rule", group=PLAUSIBILITY, better=HIGHER, bounds=SHARE)(
    partial(_share_metric, name=ALL_RULES)
)
for _name, _rule in RULES.items():
    metric(
        f"plausible_{_name}",
        f"{_rule.title} ({_rule.low:g} to {_rule.high:g})",
        group=PLAUSIBILITY,
        better=HIGHER,
        bounds=SHARE,
    )(partial(_share_metric, name=_name))


def plausibility(labels: np.ndarray, geometry: Geometry, closes: bool = True) -> list[Finding]:
    """Apply all rules to the label maps `(H, W, D, T)` of one heart, in the order of `RULES`.

    Args:
        closes: whether the cine is one whole beat, its last frame followed by the first; only then must the beat close.
    """
    heart = heart_function(labels, geometry)
    values = {
        "lv_ef_percent": heart.lv.ef,
        "rv_ef_percent": heart.rv.ef,
        "stroke_volume_ratio": heart.rv.sv / heart.lv.sv if heart.lv.sv else math.nan,
        CLOSED: cycle_gap(labels),
        "wall_thickening_percent": wall_thickening(labels, geometry, heart.lv.ed_frame, heart.lv.es_frame),
        "lv_body_share": largest_body_share(labels, LV),
        "ring_leak_share": leak_share(labels),
    }
    return [Finding(name, values[name], rule) for name, rule in RULES.items() if closes or name != CLOSED]


def is_plausible(findings: Iterable[Finding]) -> bool:
    """Return whether a heart keeps all rules."""
    return all(finding.is_plausible for finding in findings)


def plausible_shares(hearts: Sequence[Sequence[Finding]]) -> dict[str, float]:
    """Return the share of hearts that keep each rule and, as `all`, the share that keeps every rule."""
    kept: dict[str, list[bool]] = {}
    for finding in (finding for findings in hearts for finding in findings):
        kept.setdefault(finding.name, []).append(finding.is_plausible)
    shares = {name: float(np.mean(each)) for name, each in kept.items()}
    return {**shares, ALL_RULES: float(np.mean([is_plausible(findings) for findings in hearts]))}


def cycle_gap(labels: np.ndarray) -> float:
    """Return the voxels that change from the last frame to the first, over the most between two others; 0 at rest."""
    following = np.roll(labels, -1, axis=3)
    changes = (labels != following).sum(axis=(0, 1, 2))  # (T,), the last of them closes the circle
    inner, closing = int(changes[:-1].max(initial=0)), int(changes[-1])
    if closing == 0:
        return 0.0
    return closing / inner if inner else math.inf
