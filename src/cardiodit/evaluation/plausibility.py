"""Whether a heart can be one: each rule is counted for itself, in label maps (RV 1, myocardium 2, LV 3).

The limits are rules of thumb and wide on purpose. They are to catch hearts that cannot be, not hearts that are ill, and
segmenters err too: the share of real hearts that keep a rule belongs beside the share of generated ones.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cardiodit.evaluation.anatomy import largest_body_share, leak_share, wall_thickness_mm
from cardiodit.evaluation.function import LV, heart_function
from cardiodit.imaging.geometry import Geometry

CLOSED = "cycle_gap"  # the rule on one whole beat


@dataclass(frozen=True)
class Rule:
    """What a number must lie within, both ends included, and why."""

    description: str
    low: float
    high: float
    reason: str


RULES = {
    "lv_ef_percent": Rule(
        "ejection fraction of the left ventricle, in percent",
        10,
        85,
        "end-stage failure still ejects about a tenth; no adult's cavity all but vanishes, a hypertrophic one's nearly",
    ),
    "rv_ef_percent": Rule(
        "ejection fraction of the right ventricle, in percent", 10, 85, "as the left one's, which it feeds"
    ),
    "stroke_volume_ratio": Rule(
        "stroke volume of the right ventricle over the left one's",
        0.5,
        2.0,
        "what leaves one ventricle enters the other; only severe shunts and leaking valves, or lost slices, double it",
    ),
    CLOSED: Rule(
        "labels that change from the last frame to the first, over the largest change between two other frames",
        0,
        1.0,
        "the beat repeats: its last step is one of diastole, and no larger than those of ejection",
    ),
    "wall_thickening_percent": Rule(
        "how much thicker the left wall is at end-systole than at end-diastole, in percent",
        0,
        150,
        "muscle keeps its volume, so that around a smaller cavity it is thicker",
    ),
    "lv_body_share": Rule(
        "the left cavity's voxels in its largest body, in the frame where that is least",
        0.98,
        1.0,
        "the cavity is one; a few stray voxels are the segmenter's",
    ),
    "ring_leak_share": Rule(
        "how much of the left cavity's outline, slice by slice, is not muscle",
        0.0,
        0.05,
        "the wall is a closed ring but at the outflow, of which the highest slice may see a part",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One rule on one heart. A value that cannot be computed is NaN, and breaks the rule."""

    name: str
    value: float
    rule: Rule

    @property
    def is_plausible(self) -> bool:
        return self.rule.low <= self.value <= self.rule.high


def plausibility(labels: np.ndarray, geometry: Geometry, closes: bool = True) -> list[Finding]:
    """All rules on the label maps `(H, W, D, T)` of one heart, in the order of `RULES`.

    `closes` tells whether the cine is one whole beat, its last frame followed by the first; without, nobody asks for a
    closed one.
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
    """Whether a heart keeps all rules."""
    return all(finding.is_plausible for finding in findings)


def plausible_shares(hearts: Sequence[Sequence[Finding]]) -> dict[str, float]:
    """How many of some hearts keep each rule that was asked, as a share, and under `all` how many keep every one."""
    kept: dict[str, list[bool]] = {}
    for finding in (finding for findings in hearts for finding in findings):
        kept.setdefault(finding.name, []).append(finding.is_plausible)
    shares = {name: float(np.mean(each)) for name, each in kept.items()}
    return {**shares, "all": float(np.mean([is_plausible(findings) for findings in hearts]))}


def cycle_gap(labels: np.ndarray) -> float:
    """Voxels that change from the last frame to the first, over the most that change between two others; 0 at rest."""
    following = np.roll(labels, -1, axis=3)
    changes = (labels != following).sum(axis=(0, 1, 2))  # (T,), the last of them closes the circle
    inner, closing = int(changes[:-1].max(initial=0)), int(changes[-1])
    if closing == 0:
        return 0.0
    return closing / inner if inner else math.inf


def wall_thickening(labels: np.ndarray, geometry: Geometry, end_diastole: int, end_systole: int) -> float:
    """In percent, from one frame to another; NaN where no slice has a left cavity with a shape."""
    before = wall_thickness_mm(labels, geometry, end_diastole)
    after = wall_thickness_mm(labels, geometry, end_systole)
    return 100 * (after / before - 1) if before and after else math.nan
