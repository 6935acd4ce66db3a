"""The summary counts what the report holds, and says no more."""

import re
from typing import Any

import pytest

from cardiodit.evaluation.page.metric_table import metric_table
from cardiodit.evaluation.page.summary import summary
from cardiodit.evaluation.page.verdict import BETTER, OUTSIDE, WITHIN, WORSE, verdict


def floored(better: str, matched: float | None, low: float | None = 1.0, high: float | None = 2.0) -> dict[str, Any]:
    return {"better": better, "value": 9.0, "floor": {"value": 1.5, "low": low, "high": high, "matched": matched}}


@pytest.mark.parametrize(
    "metric, expected",
    [
        (floored("lower", 1.5), WITHIN),
        (floored("lower", 2.0), WITHIN),
        (floored("lower", 2.1), WORSE),
        (floored("lower", 0.9), BETTER),
        (floored("higher", 0.9), WORSE),
        (floored("higher", 2.1), BETTER),
        (floored("near real", 0.9), OUTSIDE),
        (floored("near real", 2.1), OUTSIDE),
        (floored("near real", 1.1), WITHIN),
        (floored("lower", 0.1, low=None), WITHIN),
        (floored("lower", 2.1, low=None), WORSE),
        (floored("higher", 2.1, low=None), None),
        (floored("near real", 1.5, low=None), None),
        (floored("lower", None), None),
        ({**floored("lower", 9.0), "floor": None}, None),
    ],
)
def test_a_metric_is_judged_at_the_floors_number(metric: dict[str, Any], expected: str | None) -> None:
    assert verdict(metric) == expected


def words(report: dict[str, Any]) -> str:
    return re.sub(r"<[^>]+>", " ", summary(report)).replace("&lt;", "<")


def test_it_counts(report: dict[str, Any]) -> None:
    report["distributions"][0]["comparison"]["p_value"] = 0.001
    for other in report["distributions"][1:]:
        other["comparison"]["p_value"] = 0.5
    text = words(report)
    judged = [verdict(metric) for metric in report["metrics"]]
    assert f"Of {sum(map(bool, judged))} metrics with a floor, {judged.count(WITHIN)} lie where real" in text
    assert "Recall, spatial" in text and "EF: Wasserstein" in text
    assert "Of 5 distributions, 1 differs between real and synthetic with p < 0.05: LV end-diastolic volume." in text
    kept = [all(volume["plausible"].values()) for volume in report["volumes"]]
    assert f"{sum(kept[9:])} of 9 (" in text and f"{sum(kept[:9])} of 9 (" in text
    assert "random weights" in text and "Few volumes (9 real, 9 synthetic)" in text
    assert "Critic: it was not asked for." in text


def test_it_is_silent_on_what_is_not_there(report: dict[str, Any]) -> None:
    for metric in report["metrics"]:
        metric["floor"] = None
    for volume in report["volumes"]:
        volume["plausible"] = None
    report["distributions"] = []
    report["protocol"] |= {"features": {"spatial": {"name": "cinema"}}, "left_out": []}
    report["protocol"]["counts"] = {"real": 300, "synthetic": 300}
    assert summary(report).count("<li>") == 1 and "No metric has a floor" in words(report)


def test_many_names_are_a_number(report: dict[str, Any]) -> None:
    report["metrics"] = [{**report["metrics"][5], "title": f"metric {i}"} for i in range(30)]
    assert "metric 7; and 22 more." in words(report) and "metric 8" not in words(report)


def test_every_metric_is_in_the_table_with_its_numbers(report: dict[str, Any]) -> None:
    table = metric_table(report["metrics"])
    for metric in report["metrics"]:
        assert metric["title"] in table
    assert table.index("Distribution") < table.index("Diversity") < table.index("Plausibility")
    assert "95%: 0.41 to 0.91" in table and "worse than real against real" in table
    assert "9.10%" in table and "up to 7.50" in table and "No autoencoder." in table
    unknown = {**report["metrics"][0], "group": "energy_use"}
    assert metric_table([unknown, report["metrics"][3]]).index("Energy use") > 0
    assert "No metric was computed" in metric_table([])
