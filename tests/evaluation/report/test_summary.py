"""The summary counts what the report contains."""

from pathlib import Path
from typing import Any

import pytest

from cardiodit.evaluation.report.page import write_page
from cardiodit.evaluation.report.summary import BETTER, OUTSIDE, WITHIN, WORSE, summary, verdict


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
def test_a_metric_is_compared_at_the_floors_sample_size(metric: dict[str, Any], expected: str | None) -> None:
    assert verdict(metric) == expected


def words(report: dict[str, Any]) -> str:
    return " ".join(summary(report))


def test_the_counts_of_a_summary(report: dict[str, Any]) -> None:
    report["distributions"][0]["comparison"]["p_value"] = 0.001
    for other in report["distributions"][1:]:
        other["comparison"]["p_value"] = 0.5
    text = words(report)
    judged = [verdict(metric) for metric in report["metrics"]]
    assert (
        f"{judged.count(WITHIN)} of {sum(map(bool, judged))} metrics with a floor lie within the range of real" in text
    )
    assert "Recall, spatial" in text and "EF: Wasserstein" in text
    assert "1 of 5 distributions differs between real and synthetic with p < 0.05: LV end-diastolic volume." in text
    kept = [all(volume["plausible"].values()) for volume in report["volumes"]]
    assert f"{sum(kept[9:])} of 9 (" in text and f"{sum(kept[:9])} of 9 (" in text
    assert "random weights" in text and "Few volumes (9 real, 9 synthetic)" in text
    assert "Critic: it was not asked for." in text


def test_missing_parts_are_not_mentioned(report: dict[str, Any]) -> None:
    for metric in report["metrics"]:
        metric["floor"] = None
    for volume in report["volumes"]:
        volume["plausible"] = None
    report["distributions"] = []
    report["protocol"] |= {"features": {"spatial": {"name": "cinema"}}, "left_out": []}
    report["protocol"]["counts"] = {"real": 300, "synthetic": 300}
    assert len(summary(report)) == 1 and "No metric has a floor" in words(report)


def test_long_lists_of_names_are_cut(report: dict[str, Any]) -> None:
    report["metrics"] = [{**report["metrics"][5], "title": f"metric {i}"} for i in range(30)]
    assert "metric 7; and 22 more." in words(report) and "metric 8" not in words(report)


def metric_table(report: dict[str, Any], metrics: list[dict[str, Any]], path: Path) -> str:
    write_page({**report, "metrics": metrics, "distributions": []}, {}, path)
    return path.read_text().partition('<section id="metrics">')[2].partition("</section>")[0]


def test_every_metric_is_in_the_table_with_its_numbers(report: dict[str, Any], tmp_path: Path) -> None:
    table = metric_table(report, report["metrics"], tmp_path / "report.html")
    for metric in report["metrics"]:
        assert metric["title"] in table
    assert table.index(">Distribution<") < table.index(">Diversity<") < table.index(">Plausibility<")
    assert "95%: 0.41 to 0.91" in table and "worse than real vs. real" in table
    assert "9.10%" in table and "up to 7.50" in table and "No autoencoder." in table


def test_unknown_groups_come_last(report: dict[str, Any], tmp_path: Path) -> None:
    unknown = {**report["metrics"][0], "group": "energy_use"}
    table = metric_table(report, [unknown, report["metrics"][3]], tmp_path / "report.html")
    assert 0 < table.index(">Distribution<") < table.index(">Energy use<")
    assert "No metric was computed" in metric_table(report, [], tmp_path / "report.html")
