"""Metrics on numbers of single hearts: true shifts, exact shares, and numbers that some hearts lack."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics.plausibility import RULES
from cardiodit.evaluation.metrics.registry import Score, Scoring, choose_metrics, compute_metrics
from cardiodit.evaluation.volume_sets import REAL, SYNTHETIC, VolumeSet
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Intensity, Preprocessing

STATS = VolumeStats((1, 1, 1, 1), None, None, (-1.0, 1.0), None)


def heart(plausible: dict[str, bool] | None = None, **numbers: float | None) -> Measured:
    return Measured("", STATS, {}, numbers, {}, plausible)


def scores(real: list[Measured], synthetic: list[Measured], group: str) -> tuple[dict[str, Score], list[str]]:
    sets: list[Any] = [
        MeasuredSet(VolumeSet(name, []), [], volumes) for name, volumes in ((REAL, real), (SYNTHETIC, synthetic))
    ]
    scoring = Scoring(*sets, Preprocessing(intensity=Intensity("p0.5", "p99.5")), 0, Workers(), Path())
    chosen = [metric for metric in choose_metrics() if metric.group in group.split()]
    found, left_out = compute_metrics(chosen, scoring)
    return {score.metric.name: score for score in found}, left_out


def test_a_shift_is_the_distance() -> None:
    values = np.random.default_rng(0).normal(60, 5, 20)
    real, synthetic = ([heart(lv_ef_percent=value + shift) for value in values] for shift in (0, 7))
    found, left_out = scores(real, synthetic, "function consistency")
    (score,) = found.values()
    assert (score.metric.name, score.metric.unit, score.metric.group) == ("wasserstein_lv_ef_percent", "%", "function")
    result = score.result
    assert result.estimate.value == pytest.approx(7) and result.floor and result.distribution and not left_out
    assert result.floor.matched == result.estimate.value and result.floor.value < result.floor.high < 7
    assert result.distribution["comparison"]["difference"] == pytest.approx(7)
    assert result.distribution["real"] == values.tolist()


def test_hearts_that_lack_a_number_are_counted() -> None:
    real = [heart(lv_edv_ml=100 + i, frame_gap=0.1 * i) for i in range(4)]
    synthetic = [heart(lv_edv_ml=None if i == 0 else 90.0 + i, frame_gap=None) for i in range(4)]
    found, left_out = scores(real, synthetic, "function consistency")
    assert list(found) == ["wasserstein_lv_edv_ml"]
    notes = found["wasserstein_lv_edv_ml"].result.estimate.notes
    assert "0 real and 1 synthetic volumes do not have this number." in notes
    assert left_out == ["Frame gap, temporal: 0 real and 4 synthetic volumes do not have this number."]


def test_unknown_rates_are_reported_and_rates_that_were_not_measured_are_not() -> None:
    hearts = [heart(lv_edv_ml=100.0 + i, lv_peak_ejection_ml_s=None, lv_peak_filling_ml_s=None) for i in range(4)]
    (sentence,) = scores(hearts, hearts, "function")[1]
    assert sentence.startswith("LV peak ejection rate; LV peak filling rate: no volume has this number. Rates need a")
    not_a_beat = [heart(lv_edv_ml=100.0 + i) for i in range(4)]
    assert not scores(not_a_beat, not_a_beat, "function")[1]


def test_numbers_that_the_same_hearts_lack_share_a_sentence() -> None:
    real, synthetic = [heart(lv_edv_ml=100.0 + i) for i in range(3)], [heart(lv_edv_ml=1.0, lv_mass_g=1.0)] * 3
    synthetic = [replace(volume, numbers={**volume.numbers, "slice_dice": 0.5}) for volume in synthetic]
    _, left_out = scores(real, synthetic, "function consistency")
    expected = "LV mass; Slice dice, through-plane: 3 real and 0 synthetic volumes do not have this number."
    assert left_out == [expected]


def test_shares_are_exact_beside_the_real_ones() -> None:
    kept = dict.fromkeys(RULES, True)
    broken = {**kept, "cycle_gap": False}
    found, _ = scores([heart(kept)] * 9 + [heart(broken)], [heart(kept)] * 6 + [heart(broken)] * 2, "plausibility")
    assert set(found) == {f"plausible_{name}" for name in ("all", *RULES)}
    for name in ("all", "cycle_gap"):
        result, interval = found[f"plausible_{name}"].result, binomtest(6, 8).proportion_ci()
        assert result.estimate.value == 0.75 and result.floor and result.floor.value == 0.9
        assert (result.estimate.low, result.estimate.high) == pytest.approx((interval.low, interval.high))
    assert found["plausible_lv_ef_percent"].result.estimate.value == 1
    assert scores([heart(kept)], [heart()], "plausibility") == ({}, [])
    open_ended = {name: True for name in RULES if name != "cycle_gap"}
    names = set(scores([heart(open_ended)] * 2, [heart(open_ended)] * 2, "plausibility")[0])
    assert names == {f"plausible_{name}" for name in ("all", *open_ended)}


def test_reconstructions_have_students_interval() -> None:
    values = [30.0, 31.0, 33.5, 29.0]
    found, _ = scores([heart(reconstruction_psnr=value) for value in values], [heart()] * 2, "reconstruction")
    (score,) = found.values()
    interval, estimate = ttest_1samp(values, 0).confidence_interval(), score.result.estimate
    assert estimate.value == np.mean(values) and score.metric.better == "higher"
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    assert scores([heart(), heart()], [heart()] * 2, "reconstruction")[0] == {}
