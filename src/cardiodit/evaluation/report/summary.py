"""The page's summary: where each metric lies relative to its floor, and what the numbers say in plain sentences."""

import math
from collections.abc import Mapping
from typing import Any

from cardiodit.energy.electricity import (
    GRAMS_A_KILOMETRE,
    MANY,
    Footprint,
    electricity_from_dict,
    format_grams,
    format_kilometres,
)
from cardiodit.evaluation.report.numbers import counted, is_number, readable
from cardiodit.evaluation.report.report_file import current_metrics

Report = Mapping[str, Any]
WITHIN, WORSE, SUSPICIOUS, OUTSIDE = "within", "worse", "suspicious", "outside"
# Hearts of each set below which nothing is judged: with fewer, the real set has about as few different halves as are
# drawn for a floor, and chance alone decides on which side of it a metric lies.
FEWEST_JUDGED = 8
DISTINCT = 0.05  # a p value below this counts as a difference
FEW = 30  # volumes in a set
MOST_NAMES = 8  # in a sentence


def hearts_of(report: Report) -> int:
    """Return the number of independent hearts in the smaller set: subjects, where they are known."""
    counts = report["protocol"]["counts"]
    return min(report["sets"].get(name, {}).get("subjects", count) for name, count in counts.items())


def verdict(metric: Mapping[str, Any], hearts: int = FEWEST_JUDGED) -> str | None:
    """Compare a metric with its floor's range, both at the same number of volumes; None if too little is known.

    A floor may have one end only; the other side is then open. Where there is a test, it must agree: small real sets
    make the range of a floor too narrow. To be better than real volumes against real ones is suspicious, no merit: it
    takes chance, too little variety, or copies.

    Args:
        hearts: in the smaller set; of a handful, nothing is judged.
    """
    if hearts < FEWEST_JUDGED:
        return None
    floor = metric.get("floor") or {}
    matched, low, high = (floor.get(name, math.nan) for name in ("matched", "low", "high"))
    needed = {"lower": [high], "higher": [low]}.get(metric["better"], [low, high])
    if not all(map(is_number, [matched, *needed])):
        return None
    is_above = is_number(high) and float(matched) > float(high)
    is_below = is_number(low) and float(matched) < float(low)
    is_by_chance = metric.get("p_value") is not None and float(metric["p_value"]) >= DISTINCT
    if is_by_chance or not (is_above or is_below):
        return WITHIN
    if metric["better"] not in ("lower", "higher"):
        return OUTSIDE
    return WORSE if is_above == (metric["better"] == "lower") else SUSPICIOUS


def summary(report: Report) -> list[str]:
    return [*_floors(report), *_distributions(report), *_plausibility(report), *_cautions(report)]


def _floors(report: Report) -> list[str]:
    titles: dict[str, list[str]] = {WITHIN: [], WORSE: [], SUSPICIOUS: [], OUTSIDE: []}
    metrics, hearts = current_metrics(report), hearts_of(report)
    for metric in metrics:
        if judged := verdict(metric, hearts):
            titles[judged].append(metric["title"])
    count = sum(map(len, titles.values()))
    if not count and hearts < FEWEST_JUDGED and any(map(verdict, metrics)):
        return [
            f"Too few hearts for a verdict: with {hearts} in the smaller set, chance decides on which side of a floor "
            f"a metric lies. It takes at least {FEWEST_JUDGED}, and about fifty to see more than gross faults."
        ]
    if not count:
        return ["No metric has a floor, so none can be compared with the score of real volumes against each other."]
    sentences = [
        f"{len(titles[WITHIN])} of {counted(count, 'metric')} with a floor {_verb(len(titles[WITHIN]), 'lie')} within "
        "the range of real volumes against other real volumes, at the same number of volumes."
    ]
    if worse := titles[WORSE] + titles[OUTSIDE]:
        sentences.append(
            f"Worse than this range, or outside it: {_listed(worse)}. The range covers most random splits, not all: "
            "with many metrics, a few lie outside by chance."
        )
    if titles[SUSPICIOUS]:
        sentences.append(
            f"Suspicious, because better than real volumes against other real volumes: {_listed(titles[SUSPICIOUS])}. "
            "No generator earns that: the reason is chance, too little variety, or copies of training volumes. "
            f"{_recall(report)}"
        )
    return sentences


def _recall(report: Report) -> str:
    """Return recall with its floor, which too little variety lowers."""
    found = []
    for metric in report["metrics"]:
        if metric["name"].startswith("recall"):
            floor = metric.get("floor") or {}
            beside = f" (floor {readable(floor['value'])})" if is_number(floor.get("value")) else ""
            value = floor["matched"] if is_number(floor.get("matched")) else metric["value"]
            found.append(f"{metric['title']}: {readable(value)}{beside}")
    return f"Look at {'; '.join(found)}." if found else "Recall, which would show it, was not computed."


def _distributions(report: Report) -> list[str]:
    compared = [d for d in report["distributions"] if is_number((d.get("comparison") or {}).get("p_value"))]
    if not compared:
        return []
    distinct = [d["title"] for d in compared if d["comparison"]["p_value"] < DISTINCT]
    named = f": {_listed(distinct)}" if distinct else ""
    certain = holm([d["comparison"]["p_value"] for d in compared])
    certainly = [d["title"] for d, is_certain in zip(compared, certain, strict=True) if is_certain]
    return [
        f"{len(distinct)} of {counted(len(compared), 'distribution')} {_verb(len(distinct), 'differ')} between real "
        f"and synthetic with p < {DISTINCT:g}{named}. About one in twenty differs by chance alone. Corrected for the "
        f"number of tests (Holm), {len(certainly) or 'none'} {_verb(len(certainly), 'differ')}"
        f"{f': {_listed(certainly)}' if certainly else ''}."
    ]


def holm(p_values: list[float]) -> list[bool]:
    """Return which of several tests still differ after Holm's correction (1979) for their number."""
    differs = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] >= DISTINCT / (len(p_values) - rank):
            break
        differs[i] = True
    return differs


def _plausibility(report: Report) -> list[str]:
    shares = []
    for kind in ("synthetic", "real"):
        judged = [v["plausible"] for v in report["volumes"] if v["set"] == kind and v.get("plausible")]
        if judged:
            kept = sum(all(rules.values()) for rules in judged)
            shares.append(f"{kept} of {len(judged)} ({readable(round(100 * kept / len(judged)))}%) {kind} volumes")
    if not shares:
        return []
    keeping = " and by ".join(shares)
    return [f"All plausibility rules are met by {keeping}. This says nothing about variety. {_recall(report)}"]


def _cautions(report: Report) -> list[str]:
    cautions = []
    networks = {(network or {}).get("name") for network in (report["protocol"].get("features") or {}).values()}
    if "random" in networks:
        cautions.append(
            "Features come from a network with random weights, because no trained network was given: distances can be "
            "compared only with distances of the same network, and a small one proves little."
        )
    counts = report["protocol"]["counts"]
    if min(counts.values()) < FEW:
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        cautions.append(f"Few volumes ({listed}): intervals are wide and may hide large differences.")
    if left_out := report["protocol"].get("left_out"):
        cautions.append(f"Left out: {' '.join(r if r.endswith(('.', '!', '?')) else f'{r}.' for r in left_out)}")
    return cautions


def _verb(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return "; ".join(names[:MOST_NAMES]) + (f"; and {more} more" if more > 0 else "")


def energy_sentences(samples: Mapping[str, Any] | None, evaluation: Footprint | None) -> list[str]:
    """Say what the samples and this evaluation cost the climate, as far as it is known.

    Args:
        samples: mean over the samples, as they recorded it.
        evaluation: what this evaluation used.
    """
    sentences = []
    if samples:
        low, high = (format_grams(end, "") for end in samples["co2_grams_range"])
        where = electricity_from_dict(samples["electricity"]).source if samples["electricity"] else "several places"
        sentences.append(
            f"Generating a volume took {samples['kwh']:g} kWh on average, {format_grams(samples['co2_grams'])} ({low} "
            f"to {high}); {MANY:,} volumes: {format_grams(MANY * samples['co2_grams'])}, "
            f"{format_kilometres(MANY * samples['co2_grams'] / GRAMS_A_KILOMETRE)} by car. Electricity: {where}."
        )
    if evaluation:
        sentences.append(f"This evaluation took {evaluation}. Measured: {evaluation.energy.method}.")
    return sentences
