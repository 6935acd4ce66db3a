"""The page's summary: where each metric lies relative to its floor, and what the numbers say in plain sentences."""

import math
from collections.abc import Mapping
from typing import Any

from cardiodit.evaluation.report.numbers import counted, is_number, readable

Report = Mapping[str, Any]
WITHIN, WORSE, BETTER, OUTSIDE = "within", "worse", "better", "outside"
DISTINCT = 0.05  # a p value below this counts as a difference
FEW = 30  # volumes in a set
MOST_NAMES = 8  # in a sentence


def verdict(metric: Mapping[str, Any]) -> str | None:
    """Compare a metric with its floor's range, both at the same number of volumes; None if too little is known.

    A floor may have one end only; the other side is then open.
    """
    floor = metric.get("floor") or {}
    matched, low, high = (floor.get(name, math.nan) for name in ("matched", "low", "high"))
    needed = {"lower": [high], "higher": [low]}.get(metric["better"], [low, high])
    if not all(map(is_number, [matched, *needed])):
        return None
    is_above = is_number(high) and float(matched) > float(high)
    is_below = is_number(low) and float(matched) < float(low)
    if not is_above and not is_below:
        return WITHIN
    if metric["better"] not in ("lower", "higher"):
        return OUTSIDE
    return WORSE if is_above == (metric["better"] == "lower") else BETTER


def summary(report: Report) -> list[str]:
    return [*_floors(report), *_distributions(report), *_plausibility(report), *_cautions(report)]


def _floors(report: Report) -> list[str]:
    titles: dict[str, list[str]] = {WITHIN: [], WORSE: [], BETTER: [], OUTSIDE: []}
    for metric in report["metrics"]:
        if judged := verdict(metric):
            titles[judged].append(metric["title"])
    count = sum(map(len, titles.values()))
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
    if titles[BETTER]:
        sentences.append(
            f"Better than real volumes against other real volumes: {_listed(titles[BETTER])}. Possible reasons are "
            "chance, too little diversity, or samples that copy training volumes."
        )
    return sentences


def _distributions(report: Report) -> list[str]:
    compared = [d for d in report["distributions"] if is_number((d.get("comparison") or {}).get("p_value"))]
    if not compared:
        return []
    distinct = [d["title"] for d in compared if d["comparison"]["p_value"] < DISTINCT]
    named = f": {_listed(distinct)}" if distinct else ""
    return [
        f"{len(distinct)} of {counted(len(compared), 'distribution')} {_verb(len(distinct), 'differ')} between real "
        f"and synthetic with p < {DISTINCT:g}{named}. About one in twenty differs by chance alone; the p values are "
        "not corrected for multiple tests."
    ]


def _plausibility(report: Report) -> list[str]:
    shares = []
    for kind in ("synthetic", "real"):
        judged = [v["plausible"] for v in report["volumes"] if v["set"] == kind and v.get("plausible")]
        if judged:
            kept = sum(all(rules.values()) for rules in judged)
            shares.append(f"{kept} of {len(judged)} ({readable(round(100 * kept / len(judged)))}%) {kind} volumes")
    return [f"All plausibility rules are met by {' and by '.join(shares)}."] if shares else []


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
