"""What the numbers say in plain sentences, and nothing that they do not."""

from collections.abc import Iterable, Mapping
from typing import Any

from cardiodit.evaluation.page.markup import Markup, tag
from cardiodit.evaluation.page.numbers import counted, is_number, readable
from cardiodit.evaluation.page.verdict import BETTER, OUTSIDE, WITHIN, WORSE, verdict

Report = Mapping[str, Any]
DISTINCT = 0.05  # a p value below counts as a difference
FEW = 30  # volumes in a set
NAMED = 8  # in a sentence


def summary(report: Report) -> Markup:
    sentences = [*_floors(report), *_distributions(report), *_plausible(report), *_cautions(report)]
    return tag("ul", *(tag("li", sentence) for sentence in sentences), class_="summary")


def _floors(report: Report) -> list[str]:
    """How many metrics lie where real volumes against real ones do."""
    found: dict[str, list[str]] = {WITHIN: [], WORSE: [], BETTER: [], OUTSIDE: []}
    for metric in report["metrics"]:
        if said := verdict(metric):
            found[said].append(metric["title"])
    judged = sum(map(len, found.values()))
    if not judged:
        return ["No metric has a floor, so that none can be told from what real volumes score among themselves."]
    sentences = [
        f"Of {counted(judged, 'metric')} with a floor, {len(found[WITHIN])} "
        f"{'lies' if len(found[WITHIN]) == 1 else 'lie'} where real volumes against other real ones do, "
        "at the same number of volumes."
    ]
    worse = found[WORSE] + found[OUTSIDE]
    if worse:
        sentences.append(
            f"Worse than that, or unlike it: {_listed(worse)}. A floor's range is that of most draws, not of all: of "
            "many metrics, a few lie outside by chance."
        )
    if found[BETTER]:
        sentences.append(
            f"Better than real volumes against other real ones: {_listed(found[BETTER])}. That can be chance, "
            "too little variety, or samples that repeat the training volumes."
        )
    return sentences


def _distributions(report: Report) -> list[str]:
    compared = [d for d in report["distributions"] if is_number((d.get("comparison") or {}).get("p_value"))]
    if not compared:
        return []
    apart = [d["title"] for d in compared if d["comparison"]["p_value"] < DISTINCT]
    named = f": {_listed(apart)}" if apart else ""
    return [
        f"Of {counted(len(compared), 'distribution')}, {len(apart)} "
        f"{'differs' if len(apart) == 1 else 'differ'} between real and synthetic with p < {DISTINCT:g}{named}. "
        f"Chance alone makes about one in twenty differ; the p values are not corrected for their number."
    ]


def _plausible(report: Report) -> list[str]:
    shares = {kind: _share(v for v in report["volumes"] if v["set"] == kind) for kind in ("synthetic", "real")}
    told = [f"{share} {kind} volumes" for kind, share in shares.items() if share]
    return [f"Every rule of plausibility is kept by {' and by '.join(told)}."] if told else []


def _share(volumes: Iterable[Mapping[str, Any]]) -> str | None:
    kept = [all(volume["plausible"].values()) for volume in volumes if volume.get("plausible")]
    return f"{sum(kept)} of {len(kept)} ({readable(round(100 * sum(kept) / len(kept)))}%)" if kept else None


def _cautions(report: Report) -> list[str]:
    """What limits every sentence above."""
    said = []
    networks = {(net or {}).get("name") for net in (report["protocol"].get("features") or {}).values()}
    if "random" in networks:
        said.append(
            "Features come from a network with random weights, because no trained one was given: distances can be "
            "compared only with those of the same network, and a small one proves little."
        )
    counts = report["protocol"]["counts"]
    if min(counts.values()) < FEW:
        said.append(f"Few volumes ({_counts(counts)}): intervals are wide, and what they hide may be large.")
    if left_out := report["protocol"].get("left_out"):
        said.append(f"Left out: {' '.join(_ended(reason) for reason in left_out)}")
    return said


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")
