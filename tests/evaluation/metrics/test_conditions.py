"""Measured against requested numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics.registry import Score, Scoring, choose_metrics, compute_metrics
from cardiodit.evaluation.volume_sets import Item, VolumeSet
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Preprocessing

STATS = VolumeStats((1, 1, 1, 1), None, None, (-1.0, 1.0), None)
METRICS = [each for each in choose_metrics() if each.name.startswith("condition_")]


def scoring_of(asked: list[dict], measured: list[float | None]) -> Scoring:
    items = [Item(str(i), "synthetic", Path(f"{i}.nii"), asked=row) for i, row in enumerate(asked)]
    found = [Measured(str(i), STATS, {}, {"lv_ef_percent": value}, {}, None) for i, value in enumerate(measured)]
    sets = MeasuredSet(VolumeSet("synthetic", items), items, found)
    return Scoring(sets, sets, Preprocessing(), 0, Workers(), Path())


def scores_of(asked: list[dict], measured: list[float | None]) -> tuple[dict[str, Score], list[str]]:
    scores, left_out = compute_metrics(METRICS, scoring_of(asked, measured))
    return {score.metric.name: score for score in scores}, left_out


def test_error_and_correlation_of_known_numbers() -> None:
    requests = [20.0, 40.0, 60.0, 70.0]
    scores, _ = scores_of([{"ef": value, "age": 70} for value in requests], [24.0, 38.0, 66.0, None])
    assert set(scores) == {"condition_error_lv_ef_percent", "condition_correlation_lv_ef_percent"}
    error, r = (scores[f"condition_{name}_lv_ef_percent"].result.estimate for name in ("error", "correlation"))
    assert error.value == pytest.approx(4) and error.low < 4 < error.high
    assert "3 requests from 20 to 60 %" in error.notes[0] and "1 samples were given" in error.notes[1]
    assert r.value == pytest.approx(np.corrcoef([20, 40, 60], [24, 38, 66])[0, 1])


def test_a_request_by_another_name_is_the_same_quantity() -> None:
    rows = [{"lv_ef_percent": 30.0}, {"lv_ef": 50.0}, {"ef": 60.0}, {}]
    scores, _ = scores_of(rows, [30.0, 50.0, 60.0, 10.0])
    assert scores["condition_error_lv_ef_percent"].result.estimate.value == 0
    assert scores["condition_correlation_lv_ef_percent"].result.estimate.value == pytest.approx(1)


def test_samples_without_requests_have_no_such_metric() -> None:
    assert scores_of([{}, {"diagnosis": "normal"}], [50.0, 60.0]) == ({}, [])


def test_a_correlation_needs_requests_that_differ() -> None:
    scores, left_out = scores_of([{"ef": 30.0}] * 4, [28.0, 31.0, 33.0, 29.0])
    assert list(scores) == ["condition_error_lv_ef_percent"] and "that differ" in left_out[0]


def test_the_order_of_the_samples_does_not_matter() -> None:
    scoring = scoring_of([{"ef": float(value)} for value in (20, 30, 45, 61)], [25.1, 29.3, 44.7, 70.2])
    turned = replace(
        scoring,
        synthetic=replace(
            scoring.synthetic, items=scoring.synthetic.items[::-1], measured=scoring.synthetic.measured[::-1]
        ),
    )
    values = [[score.result.estimate.value for score in compute_metrics(METRICS, one)[0]] for one in (scoring, turned)]
    assert values[0] == values[1]
