"""The lines on single hearts' numbers: true shifts, exact shares, and numbers that some hearts lack."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.metrics.consistency import MEASURES
from cardiodit.evaluation.metrics.plausibility import RULES
from cardiodit.evaluation.number_scores import number_scores, plausibility_scores, reconstruction_scores
from cardiodit.evaluation.quantities import QUANTITIES, RULE_TITLES

FACTS = VolumeStats((1, 1, 1, 1), None, None, (-1.0, 1.0), None)


def heart(plausible: dict[str, bool] | None = None, **numbers: float | None) -> Measured:
    return Measured("", FACTS, {}, numbers, {}, plausible)


def test_a_shift_is_the_distance() -> None:
    values = np.random.default_rng(0).normal(60, 5, 20)
    metrics, distributions, left_out = number_scores(
        [heart(lv_ef_percent=value) for value in values], [heart(lv_ef_percent=value + 7) for value in values]
    )
    (metric,), (distribution,) = metrics, distributions
    assert (metric.name, metric.unit, metric.group) == ("wasserstein_lv_ef_percent", "%", "function")
    assert metric.estimate.value == pytest.approx(7) and metric.floor.matched == metric.estimate.value
    assert metric.floor.value < metric.floor.high < 7 and not left_out
    assert distribution["comparison"]["difference"] == pytest.approx(7)
    assert distribution["real"] == values.tolist()


def test_hearts_that_lack_a_number_are_counted() -> None:
    real = [heart(lv_edv_ml=100 + i, frame_gap=0.1 * i) for i in range(4)]
    synthetic = [heart(lv_edv_ml=None if i == 0 else 90.0 + i, frame_gap=None) for i in range(4)]
    metrics, _, left_out = number_scores(real, synthetic)
    assert [metric.name for metric in metrics] == ["wasserstein_lv_edv_ml"]
    assert "0 real and 1 synthetic volumes do not have this number." in metrics[0].estimate.notes
    assert left_out[0] == "Frame gap, temporal: 0 real and 4 synthetic volumes do not have it."
    assert len(left_out) == 1


def test_rates_that_nobody_knows_are_told_of_and_rates_that_nobody_asked_for_are_not() -> None:
    hearts = [heart(lv_edv_ml=100.0 + i, lv_peak_ejection_ml_s=None, lv_peak_filling_ml_s=None) for i in range(4)]
    _, _, (sentence,) = number_scores(hearts, hearts)
    assert sentence.startswith("LV peak ejection rate, LV peak filling rate: no volume has them. Rates need a known")
    of_no_whole_beat = [heart(lv_edv_ml=100.0 + i) for i in range(4)]
    assert not number_scores(of_no_whole_beat, of_no_whole_beat)[2]


def test_what_the_same_hearts_lack_is_told_in_one_sentence() -> None:
    real, synthetic = [heart(lv_edv_ml=100.0 + i) for i in range(3)], [heart(lv_edv_ml=1.0, lv_mass_g=1.0)] * 3
    synthetic = [replace(volume, numbers={**volume.numbers, "slice_dice": 0.5}) for volume in synthetic]
    _, _, left_out = number_scores(real, synthetic)
    assert left_out == ["LV mass; Slice dice, through-plane: 3 real and 0 synthetic volumes do not have them."]


def test_shares_are_exact_beside_the_real_ones() -> None:
    kept = dict.fromkeys(RULES, True)
    broken = {**kept, "cycle_gap": False}
    metrics = plausibility_scores([heart(kept)] * 9 + [heart(broken)], [heart(kept)] * 6 + [heart(broken)] * 2)
    found = {metric.name: metric for metric in metrics}
    assert set(found) == {f"plausible_{name}" for name in ("all", *RULES)}
    for name in ("all", "cycle_gap"):
        metric, interval = found[f"plausible_{name}"], binomtest(6, 8).proportion_ci()
        assert metric.estimate.value == 0.75 and metric.floor.value == 0.9
        assert (metric.estimate.low, metric.estimate.high) == pytest.approx((interval.low, interval.high))
    assert found["plausible_lv_ef_percent"].estimate.value == 1
    assert plausibility_scores([heart(kept)], [heart()]) == []
    open_ended = {name: True for name in RULES if name != "cycle_gap"}
    names = {metric.name for metric in plausibility_scores([heart(open_ended)] * 2, [heart(open_ended)] * 2)}
    assert names == {f"plausible_{name}" for name in ("all", *open_ended)}


def test_reconstructions_have_students_interval() -> None:
    values = [30.0, 31.0, 33.5, 29.0]
    (metric,) = reconstruction_scores([heart(reconstruction_psnr=value) for value in values])
    interval = ttest_1samp(values, 0).confidence_interval()
    assert metric.estimate.value == np.mean(values) and metric.better == "higher"
    assert (metric.estimate.low, metric.estimate.high) == pytest.approx((interval.low, interval.high))
    assert reconstruction_scores([heart(), heart()]) == []


def test_every_number_and_every_rule_has_a_title() -> None:
    assert set(MEASURES) <= set(QUANTITIES) and set(RULE_TITLES) == set(RULES)
