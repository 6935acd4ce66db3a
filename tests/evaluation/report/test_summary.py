"""The summary counts what the report contains."""

from pathlib import Path
from typing import Any

import pytest

from cardiodit.evaluation.report.markdown import model_index_yaml, table
from cardiodit.evaluation.report.page import write_page
from cardiodit.evaluation.report.summary import (
    FEWEST_JUDGED,
    OUTSIDE,
    SUSPICIOUS,
    WITHIN,
    WORSE,
    hearts_of,
    holm,
    summary,
    verdict,
)


def floored(better: str, matched: float | None, low: float | None = 1.0, high: float | None = 2.0) -> dict[str, Any]:
    return {"better": better, "value": 9.0, "floor": {"value": 1.5, "low": low, "high": high, "matched": matched}}


@pytest.mark.parametrize(
    "metric, expected",
    [
        (floored("lower", 1.5), WITHIN),
        (floored("lower", 2.0), WITHIN),
        (floored("lower", 2.1), WORSE),
        (floored("lower", 0.9), SUSPICIOUS),
        (floored("higher", 0.9), WORSE),
        (floored("higher", 2.1), SUSPICIOUS),
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


def test_nothing_is_judged_of_a_handful_of_hearts(report: dict[str, Any]) -> None:
    assert verdict(floored("lower", 2.1), hearts=FEWEST_JUDGED) == WORSE
    assert verdict(floored("lower", 2.1), hearts=FEWEST_JUDGED - 1) is None
    report["sets"] = {name: {**side, "subjects": 5} for name, side in report["sets"].items()}
    assert hearts_of(report) == 5
    text = words(report)
    assert "Too few hearts for a verdict: with 5 in the smaller set" in text
    assert "Worse than this range" not in text and "lie within" not in text


@pytest.mark.parametrize(("p_value", "expected"), [(0.04, WORSE), (0.05, WITHIN), (None, WORSE)])
def test_where_there_is_a_test_it_must_agree_with_the_floor(p_value: float | None, expected: str) -> None:
    assert verdict({**floored("lower", 2.1), "p_value": p_value}) == expected
    assert verdict({**floored("lower", 1.9), "p_value": 0.001}) == WITHIN


def test_better_than_real_is_suspicious_and_names_recall(report: dict[str, Any], tmp_path: Path) -> None:
    (frechet,) = [metric for metric in report["metrics"] if metric["name"] == "frechet"]
    frechet["floor"] |= {"low": 1.0, "high": 2.0, "matched": 0.5}
    text = words(report)
    assert "Suspicious, because better than real volumes against other real volumes: Fréchet distance" in text
    assert "too little variety, or copies of training volumes. Look at Recall, spatial: 0.700 (floor 0.880)." in text
    assert "suspicious: better than real vs. real" in metric_table(report, [frechet], tmp_path / "report.html")
    report["metrics"] = [frechet]
    assert "Recall, which would show it, was not computed." in words(report)


def test_precision_and_plausibility_are_shown_with_recall(report: dict[str, Any], tmp_path: Path) -> None:
    (recall,) = [metric for metric in report["metrics"] if metric["name"] == "recall"]
    recall["name"] = "recall_spatial"
    shown = {"precision_spatial": "distribution", "plausible_all": "plausibility", "ms_ssim": "diversity"}
    metrics = [{**recall, "name": name, "group": group, "title": name} for name, group in shown.items()]
    report["metrics"] = [*metrics, recall]
    page = metric_table(report, report["metrics"], tmp_path / "report.html")
    rows = {line.split(" | ")[0].strip("| "): line for line in table(report).splitlines() if line.startswith("| ")}
    assert page.count("with recall 0.71") == 2
    assert [", recall 0.71" in rows[name] for name in shown] == [True, True, False]
    assert "This says nothing about variety. Look at Recall, spatial: 0.7" in words(report)


def test_lines_under_former_names_are_not_shown_twice(report: dict[str, Any], tmp_path: Path) -> None:
    first = report["metrics"][0]
    report["metrics"].append({**first, "name": "former", "renamed": first["name"]})
    assert table(report).count(first["title"]) == 1
    assert metric_table(report, report["metrics"], tmp_path / "report.html").count(f">{first['title']}<") == 1
    assert "former" not in model_index_yaml(report)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.001, 0.2, 0.03], [True, False, False]),
        ([0.01, 0.02, 0.04], [True, True, True]),
        ([0.04, 0.04], [False, False]),
        ([], []),
    ],
)
def test_many_tests_are_corrected_by_holm(p_values: list[float], expected: list[bool]) -> None:
    assert holm(p_values) == expected


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
    assert "Corrected for the number of tests (Holm), 1 differs: LV end-diastolic volume." in text
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
