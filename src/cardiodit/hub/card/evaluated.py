"""What `cardiodit evaluate` found, put into the facts that a card is made of."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cardiodit.evaluation.report.markdown import number, table
from cardiodit.hub.card.owner_facts import Metric, OwnerFacts

LISTED = ("distribution", "diversity")  # groups of which the Hub lists every number; of others, one
LISTED_ALONE = "plausible_all"


def with_evaluation(facts: OwnerFacts, report: Mapping[str, Any]) -> OwnerFacts:
    """The report's table behind the owner's own words, and its main numbers among the metrics."""
    where = f"{report['protocol']['counts']['real']} real volumes ({report['sets']['real']['identity'][:12]})"
    measured = [
        Metric(name=metric["title"], value=float(number(metric["value"])), dataset=where, type=metric["name"])
        for metric in report["metrics"]
        if metric["value"] is not None and (metric["group"] in LISTED or metric["name"] == LISTED_ALONE)
    ]
    words = [facts.evaluation] if facts.evaluation else []
    return replace(
        facts, evaluation="\n\n".join([*words, table(report).strip()]), metrics=(*(facts.metrics or ()), *measured)
    )
