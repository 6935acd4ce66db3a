"""Findings of one detector: copies among samples, and training patients near samples, overall and by subgroup."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardiodit.evaluation.metrics.estimate import Estimate, jackknife_interval
from cardiodit.privacy.attacks import Authenticity, NamedAttack
from cardiodit.privacy.statistics import (
    DISCOVERIES,
    GROUPS,
    LEVEL,
    Attack,
    Excess,
    benjamini_hochberg,
    excess_of_copies,
    excess_of_patients,
    published_rule,
    share_near,
    tail_p_values,
)

FEWEST_IN_GROUP = 10  # patients of a subgroup that is reported
RAREST = 0.1  # share of training patients that counts as the rarest


@dataclass(frozen=True)
class Distances:
    """Distances that a detector measured.

    Args:
        held_out: `(training volumes, held-out patients)`.
        samples: `(training volumes, samples)`.
        held_out_to_samples: `(held-out patients, samples)`.
        own: distance of each training volume to its nearest one of another patient.
        rarity: distance of each training volume to the mean of all.
    """

    held_out: np.ndarray
    samples: np.ndarray
    held_out_to_samples: np.ndarray
    own: np.ndarray
    rarity: np.ndarray


@dataclass(frozen=True)
class Findings:
    """The result of one detector, ready for the report, with what the audit needs again.

    Args:
        p_values: of each sample (`tail_p_values`).
        is_copy: whether each sample is named as a copy.
        nearest: number of the training volume nearest to each sample.
        distances: of each sample to it.
        threshold: of the distance of a sample, below which at most 5% of held-out patients are.
    """

    report: dict[str, Any]
    p_values: np.ndarray
    is_copy: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    threshold: float


def findings_of(
    distances: Distances, patients: Sequence[str], groups: Mapping[str, Sequence[str]], seed: int = 0
) -> Findings:
    """Compare samples with held-out patients.

    Args:
        patients: patient of each training volume.
        groups: for each column, such as "label", the group of each training volume; empty if unknown.
    """
    names, place = np.unique(np.array(patients), return_inverse=True)
    nearest = distances.samples.argmin(axis=0)
    to_samples, to_held_out = distances.samples.min(axis=0), distances.held_out.min(axis=0)
    p_values = tail_p_values(to_held_out, to_samples)
    is_copy = benjamini_hochberg(p_values)
    copies = excess_of_copies(to_held_out, to_samples, place[nearest], seed=seed)
    by_patient = [_by_patient(each, place, len(names)) for each in (distances.held_out, distances.samples)]
    reproduced = excess_of_patients(by_patient[0], by_patient[1], seed=seed)
    published = published_rule(by_patient[0], by_patient[1])
    rank = max(1, int(LEVEL * (len(to_held_out) + 1)))
    threshold = float(np.partition(to_held_out, rank - 1)[rank - 1])
    report = {
        "published_rule": {
            "patients": float(published.patients.mean()),
            "copies": float(published.copies.mean()),
            "threshold": published.threshold,
            "expected_of_a_generator_that_copies_nobody": published.expected,
        },
        "copies": {**_excess(copies), "threshold": threshold},
        "patients": _excess(reproduced),
        "named_copies": int(is_copy.sum()),
        "named_patients": len(np.unique(place[nearest[is_copy]])),
        "false_discovery_rate": DISCOVERIES,
        "subgroups": _subgroups(distances, by_patient, place, groups, published.threshold, seed),
    }
    return Findings(report, p_values, is_copy, nearest, to_samples, threshold)


def _by_patient(distances: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """Return the smallest distance of each patient's volumes."""
    nearest = np.full((count, distances.shape[1]), np.inf, distances.dtype)
    np.minimum.at(nearest, place, distances)
    return nearest


def _subgroups(
    distances: Distances,
    by_patient: Sequence[np.ndarray],
    place: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    threshold: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Compare shares within groups of training patients, at the threshold of all."""
    count = len(by_patient[0])
    rarity = np.zeros(count)
    np.maximum.at(rarity, place, distances.rarity)
    rarest = np.argsort(-rarity, kind="stable")[: max(FEWEST_IN_GROUP, round(RAREST * count))]
    chosen = {("rarity", f"the {len(rarest)} patients least like the average"): rarest}
    for column, values in groups.items():
        each = dict(zip(place.tolist(), values, strict=True))
        for value in sorted(set(values) - {""}):
            chosen[column, value] = np.array([i for i in range(count) if each[i] == value])
    found = []
    for (column, value), rows in chosen.items():
        if len(rows) < FEWEST_IN_GROUP:
            continue
        drawn = min(each.shape[1] for each in by_patient)
        null, observed = (share_near(each[rows], threshold, drawn) for each in by_patient)
        spread = _spread(by_patient, rows, threshold, seed)
        entry = {"column": column, "value": value, "patients": len(rows), "observed": observed, "null": null}
        found.append({**entry, "excess": estimate(spread)})
    return found


def _spread(both: Sequence[np.ndarray], rows: np.ndarray, threshold: float, seed: int) -> Estimate:
    """Return the excess of a subgroup with its interval, by the jackknife over groups of columns."""
    rng = np.random.default_rng([seed, len(rows)])

    def excess(kept: Sequence[np.ndarray]) -> float:
        held_out, samples = (each[rows] for each in kept)
        drawn = min(each.shape[1] for each in kept)
        return share_near(samples, threshold, drawn) - share_near(held_out, threshold, drawn)

    value, left_out = excess(both), []
    for axis in range(2):
        columns = rng.permutation(both[axis].shape[1])
        parts = np.array_split(columns, min(GROUPS, len(columns)))
        reduced = [[np.delete(e, part, axis=1) if i == axis else e for i, e in enumerate(both)] for part in parts]
        left_out.append(np.array([excess(each) for each in reduced]))
    low, high = jackknife_interval(value, *left_out)
    return Estimate(value, low, high, method="jackknife over groups of held-out patients and samples")


def estimate(value: Estimate) -> dict[str, Any]:
    known = {"value": value.value, "low": value.low, "high": value.high, "method": value.method}
    return {**known, "notes": list(value.notes)} if value.notes else known


def _excess(found: Excess) -> dict[str, Any]:
    return {**asdict(found), "excess": estimate(found.excess), "true_level": list(found.true_level)}


def attack_report(attack: NamedAttack, detector: str | None = None) -> dict[str, Any]:
    kept = {"name": attack.name, "title": attack.title, "needs": attack.needs, "noise_level": attack.level}
    return {**kept, "detector": detector, **_attack(attack.result)}


def authenticity_report(found: Authenticity) -> dict[str, Any]:
    return {"samples": found.samples, "held_out": found.held_out, **_attack(found.attack)}


def _attack(attack: Attack) -> dict[str, Any]:
    return {
        "auc": estimate(attack.auc),
        "found_at": {f"{rate:g}": estimate(found) for rate, found in attack.rates.items()},
        "members": attack.members,
        "others": attack.others,
    }
