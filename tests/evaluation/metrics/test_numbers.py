"""Comparisons of two distributions of one number, against SciPy and simulations, and the metrics made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest, ttest_1samp

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics.numbers import compare, compare_tables, wasserstein, welch_interval
from cardiodit.evaluation.metrics.plausibility import RULES
from cardiodit.evaluation.metrics.registry import Score, Scoring, choose_metrics, compute_metrics
from cardiodit.evaluation.volume_sets import REAL, SYNTHETIC, VolumeSet
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Intensity, Preprocessing


def draws(seed: int, *sizes: int) -> list[np.ndarray]:
    random = np.random.default_rng([seed])
    return [random.normal(50, 10, size) for size in sizes]


@pytest.mark.parametrize("sizes", [(20, 20), (7, 31), (2, 5)])
def test_the_distance_is_scipys(sizes: tuple[int, int]) -> None:
    first, second = draws(0, *sizes)
    assert wasserstein(first, second) == pytest.approx(stats.wasserstein_distance(first, second))
    ties = np.round(first / 10), np.round(second / 10)
    assert wasserstein(*ties) == pytest.approx(stats.wasserstein_distance(*ties))


def test_the_interval_is_scipys() -> None:
    first, second = draws(1, 12, 40)
    expected = stats.ttest_ind(second, 3 * first, equal_var=False).confidence_interval(0.95)
    assert welch_interval(3 * first, second) == pytest.approx((expected.low, expected.high))
    assert welch_interval(np.ones(3), np.full(4, 3.0)) == (2.0, 2.0)


def test_a_shift_is_the_distance_and_the_difference() -> None:
    real = draws(2, 30)[0]
    found = compare(real, real + 25)
    assert found.wasserstein == pytest.approx(25) and found.difference == pytest.approx(25)
    assert (found.real.count, found.real.mean, found.real.sd) == pytest.approx((30, real.mean(), real.std(ddof=1)))
    assert found.synthetic.sd == pytest.approx(found.real.sd)
    assert found.p_value == 1 / 2000
    assert found.floor < found.floor_high < 10


def test_equal_values_have_a_distance_of_zero() -> None:
    real = draws(3, 25)[0]
    found = compare(real, real)
    assert (found.wasserstein, found.difference, found.p_value) == (0, 0, 1)
    assert found.floor > 0


def test_a_different_spread_is_detected_despite_equal_means() -> None:
    real = stats.norm.ppf((np.arange(60) + 0.5) / 60)
    found = compare(real, 0.4 * real)
    assert found.difference == pytest.approx(0) and found.interval[0] < 0 < found.interval[1]
    assert found.p_value < 0.01 and found.wasserstein > found.floor_high


def test_a_seed_gives_the_same_numbers() -> None:
    first, second = draws(4, 15, 18)
    once = compare(first, second, seed=5, draws=99)
    assert compare(first, second, seed=5, draws=99) == once
    assert compare(first, second, seed=6, draws=99) != once


def test_the_floor_is_the_distance_between_two_real_samples() -> None:
    """It agrees with fresh samples of the same distribution within 10%, and decreases with more samples."""
    real = draws(5, 2000)[0]
    random = np.random.default_rng([6])
    fresh = [stats.wasserstein_distance(random.normal(50, 10, 2000), random.normal(50, 10, 50)) for _ in range(300)]
    few = compare(real, draws(7, 50)[0], draws=300)
    assert few.floor == pytest.approx(np.mean(fresh), rel=0.1)
    assert compare(real, draws(7, 400)[0], draws=100).floor < few.floor / 2


def test_p_values_are_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng([8])
    values = [compare(random.gamma(2, 5, 12), random.gamma(2, 5, 20), seed=i, draws=99).p_value for i in range(300)]
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_a_difference_is_usually_found() -> None:
    random = np.random.default_rng([9])
    values = [compare(random.normal(0, 1, 30), random.normal(1, 1, 30), seed=i, draws=99).p_value for i in range(50)]
    assert np.mean(np.array(values) <= 0.05) > 0.85


def test_the_interval_contains_the_difference_at_its_level() -> None:
    random = np.random.default_rng([10])
    intervals = [welch_interval(random.normal(50, 15, 50), random.normal(47, 6, 12)) for _ in range(2000)]
    held = np.mean([low <= -3 <= high for low, high in intervals])
    assert held == pytest.approx(0.95, abs=0.015)


def test_tables_are_compared_column_by_column() -> None:
    real = [{"ef": 50.0 + i, "rate": 3.0 + i, "mass": None} for i in range(4)]
    synthetic = [{"ef": 60.0 + i, "rate": float("nan") if i == 1 else 3.0, "mass": 1.0} for i in range(4)]
    found = compare_tables(real, synthetic)
    assert list(found) == ["ef"]
    assert found["ef"] == compare([50, 51, 52, 53], [60, 61, 62, 63])


@pytest.mark.parametrize("bad", [[1.0], [], [[1.0, 2.0]]])
def test_a_distribution_needs_values(bad: list) -> None:
    with pytest.raises(CardioDiTError, match="at least 2"):
        compare([1.0, 2.0], bad)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CardioDiTError, match="1 of the 3 real values"):
        compare([1.0, float("nan"), 2.0], [1.0, 2.0])


# Metrics


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


def test_numbers_missing_in_the_same_hearts_share_a_sentence() -> None:
    real, synthetic = [heart(lv_edv_ml=100.0 + i) for i in range(3)], [heart(lv_edv_ml=1.0, lv_mass_g=1.0)] * 3
    synthetic = [replace(volume, numbers={**volume.numbers, "slice_dice": 0.5}) for volume in synthetic]
    _, left_out = scores(real, synthetic, "function consistency")
    expected = "LV mass; Slice dice, through-plane: 3 real and 0 synthetic volumes do not have this number."
    assert left_out == [expected]


def test_shares_have_exact_intervals_and_those_of_real_hearts_as_floor() -> None:
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
