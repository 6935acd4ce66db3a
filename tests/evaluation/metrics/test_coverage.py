"""Precision, recall, density and coverage, against their definitions written out."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import binomtest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.coverage import Coverage, coverage_estimates, coverage_metrics
from cardiodit.evaluation.metrics.estimate import jackknife_interval


def gaussians(seed: int, n: int = 40, m: int = 30, f: int = 4, scale: float = 1.0, shift: float = 0.0) -> tuple:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, f)), rng.normal(size=(m, f)) * scale + shift


def radius(volume: int, kind: np.ndarray, k: int) -> float:
    others = [np.linalg.norm(kind[volume] - other) for i, other in enumerate(kind) if i != volume]
    return float(sorted(others)[k - 1])


def written_out(real: np.ndarray, synthetic: np.ndarray, k: int) -> Coverage:
    real_radius = [radius(i, real, k) for i in range(len(real))]
    synthetic_radius = [radius(j, synthetic, k) for j in range(len(synthetic))]

    def in_real(i: int, j: int) -> bool:
        return bool(np.linalg.norm(real[i] - synthetic[j]) <= real_radius[i])

    def in_synthetic(i: int, j: int) -> bool:
        return bool(np.linalg.norm(real[i] - synthetic[j]) <= synthetic_radius[j])

    n, m = range(len(real)), range(len(synthetic))
    return Coverage(
        precision=float(np.mean([any(in_real(i, j) for i in n) for j in m])),
        recall=float(np.mean([any(in_synthetic(i, j) for j in m) for i in n])),
        density=sum(in_real(i, j) for i in n for j in m) / (k * len(synthetic)),
        coverage=float(np.mean([any(in_real(i, j) for j in m) for i in n])),
    )


@pytest.mark.parametrize(("k", "scale", "shift"), [(5, 1.0, 0.0), (1, 0.5, 0.5), (3, 1.5, 1.0)])
def test_all_four_are_as_defined(k: int, scale: float, shift: float) -> None:
    real, synthetic = gaussians(k, scale=scale, shift=shift)
    assert astuple(coverage_metrics(real, synthetic, k)) == pytest.approx(astuple(written_out(real, synthetic, k)))


def test_the_jackknife_leaves_out_what_it_says() -> None:
    real, synthetic = gaussians(7, 15, 12, 2, shift=0.7)
    estimates = coverage_estimates(real, synthetic, 2)
    without_real = np.array([astuple(written_out(np.delete(real, i, 0), synthetic, 2)) for i in range(15)])
    without_synthetic = np.array([astuple(written_out(real, np.delete(synthetic, j, 0), 2)) for j in range(12)])
    density = estimates.density
    assert density.value == coverage_metrics(real, synthetic, 2).density
    low, high = jackknife_interval(density.value, without_real[:, 2], without_synthetic[:, 2])
    assert (density.low, density.high) == pytest.approx((max(low, 0), high))
    shares = ((0, 12, estimates.precision), (1, 15, estimates.recall), (3, 15, estimates.coverage))
    for column, counted, found in shares:
        low, high = jackknife_interval(found.value, without_real[:, column], without_synthetic[:, column])
        binomial = binomtest(round(found.value * counted), counted).proportion_ci()
        expected = max(min(low, binomial.low), 0), min(max(high, binomial.high), 1)
        assert (found.low, found.high) == pytest.approx(expected)


def test_a_set_beside_itself_is_covered_and_one_far_away_is_not() -> None:
    real, far = gaussians(8)
    same = coverage_metrics(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx((5 + 1) / 5)  # itself and five neighbours, on average
    assert astuple(coverage_metrics(real, far + 1000)) == (0, 0, 0, 0)


def test_a_collapsed_model_is_precise_and_covers_little() -> None:
    real, synthetic = gaussians(9, 60, 60, scale=0.05)
    found = coverage_metrics(real, synthetic)
    assert found.precision == 1
    assert found.recall < 0.1
    assert found.coverage < 0.7
    assert found.density > 1.5


def test_a_collapsed_model_with_outliers_is_not_precise() -> None:
    real, synthetic = gaussians(10, 60, 60, scale=6)
    found = coverage_metrics(real, synthetic)
    assert found.precision < 0.3
    assert found.recall > 0.9


def test_the_interval_holds_the_mean_share_as_often_as_it_says() -> None:
    """The truth is the mean over many draws at these numbers of volumes."""
    draws = [gaussians(500 + seed, 50, 50, shift=0.5) for seed in range(50)]
    estimates = [coverage_estimates(*draw) for draw in draws]
    many = [coverage_metrics(*gaussians(9000 + seed, 50, 50, shift=0.5)) for seed in range(300)]
    for name in ("precision", "recall", "density", "coverage"):
        truth = np.mean([getattr(metrics, name) for metrics in many])
        held = [getattr(e, name).low <= truth <= getattr(e, name).high for e in estimates]
        assert np.mean(held) >= 0.88, name


def test_none_of_forty_is_not_certainly_none() -> None:
    real, far = gaussians(11)
    estimates = coverage_estimates(real, far + 1000)
    assert estimates.precision.low == 0
    assert estimates.precision.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert estimates.recall.high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert estimates.density.high is None


def test_too_few_volumes_are_refused_or_get_no_interval() -> None:
    real, synthetic = gaussians(12, 40, 5)
    with pytest.raises(CardioDiTError, match=r"at least 6 volumes of each kind, and there are 40 real and 5 synth"):
        coverage_metrics(real, synthetic)
    assert coverage_metrics(real, synthetic, k=4)
    assert coverage_estimates(real, synthetic, k=4).precision.low is None
    with pytest.raises(CardioDiTError, match="k=0"):
        coverage_metrics(real, synthetic, k=0)
