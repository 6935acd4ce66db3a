"""The lines on single hearts' numbers: true shifts, exact shares, and numbers that some hearts lack."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from cardiodit.evaluation.agreement import Facts
from cardiodit.evaluation.consistency import MEASURES
from cardiodit.evaluation.measuring import Measured
from cardiodit.evaluation.number_scores import number_scores, plausibility_scores, reconstruction_scores
from cardiodit.evaluation.plausibility import RULES
from cardiodit.evaluation.quantities import QUANTITIES, RULE_TITLES

FACTS = Facts((1, 1, 1, 1), None, None, (-1.0, 1.0), None)


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
    assert metric.floor.value < metric.floor.high < 7 and len(left_out) == 1
    assert distribution["comparison"]["difference"] == pytest.approx(7)
    assert distribution["real"] == values.tolist()


def test_hearts_that_lack_a_number_are_counted() -> None:
    real = [heart(lv_edv_ml=100 + i, frame_gap=0.1 * i) for i in range(4)]
    synthetic = [heart(lv_edv_ml=None if i == 0 else 90.0 + i, frame_gap=None) for i in range(4)]
    metrics, _, left_out = number_scores(real, synthetic)
    assert [metric.name for metric in metrics] == ["wasserstein_lv_edv_ml"]
    assert "0 real and 1 synthetic volumes do not have this number." in metrics[0].estimate.notes
    assert left_out[0] == "Frame gap, temporal: 0 real and 4 synthetic volumes do not have it."
    assert "LV peak ejection rate, " in left_out[1] and "Rates need a known frame time" in left_out[1]


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


def test_reconstructions_have_students_interval() -> None:
    values = [30.0, 31.0, 33.5, 29.0]
    (metric,) = reconstruction_scores([heart(reconstruction_psnr=value) for value in values])
    interval = ttest_1samp(values, 0).confidence_interval()
    assert metric.estimate.value == np.mean(values) and metric.better == "higher"
    assert (metric.estimate.low, metric.estimate.high) == pytest.approx((interval.low, interval.high))
    assert reconstruction_scores([heart(), heart()]) == []


def test_every_number_and_every_rule_has_a_title() -> None:
    assert set(MEASURES) <= set(QUANTITIES) and set(RULE_TITLES) == set(RULES)
