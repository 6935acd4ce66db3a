"""Intervals, checks of features, and floors: what a metric gives between real and real volumes."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import checked_features, floor_of, jackknife_interval
from cardiodit.evaluation.metrics.frechet import frechet_distance


def without_each(values: np.ndarray) -> np.ndarray:
    return (values.sum() - values) / (len(values) - 1)


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert jackknife_interval(values.mean(), without_each(values)) == pytest.approx(tuple(expected))


def test_the_interval_of_a_difference_of_means_is_welchs() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 3, 9), rng.normal(0, 1, 25)
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    found = jackknife_interval(
        first.mean() - second.mean(), without_each(first), second.mean() - without_each(second), level=0.9
    )
    assert found == pytest.approx(tuple(expected))


def test_an_estimate_that_no_volume_changes_has_a_zero_interval() -> None:
    assert jackknife_interval(2.0, np.full(5, 2.0), np.full(4, 2.0)) == (2.0, 2.0)


def test_features_become_float64_with_the_same_values() -> None:
    given = np.ones((3, 2), np.float16)
    real, synthetic = checked_features(given, given)
    assert real.dtype == synthetic.dtype == np.float64
    assert np.array_equal(real, given)


def test_broken_rows_are_named() -> None:
    real, synthetic = np.zeros((5, 3)), np.zeros((20, 3))
    synthetic[4, 1], synthetic[7, 0] = np.nan, np.inf
    with pytest.raises(CardioDiTError, match=r"synthetic .* 2 of 20 rows \(from 0: 4, 7\)"):
        checked_features(real, synthetic)


@pytest.mark.parametrize(
    ("real", "synthetic", "message"),
    [
        ((5, 3), (5, 4), "3 features and synthetic ones 4"),
        ((1, 3), (5, 3), "at least 2 real volumes, and there are 1"),
        ((5,), (5, 3), "one row per volume"),
        ((5, 3), (5, 3, 1), "one row per volume"),
    ],
)
def test_wrong_shapes_are_explained(real: tuple[int, ...], synthetic: tuple[int, ...], message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        checked_features(np.zeros(real), np.zeros(synthetic))


# Floors


def volumes(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3)) + shift


def test_halves_are_disjoint_and_of_one_size() -> None:
    real, synthetic = volumes(21, 0), volumes(30, 1, 100.0)
    met: list[tuple[int, int, int]] = []

    def watch(first: np.ndarray, second: np.ndarray) -> float:
        met.append((len(first), len(second), len(np.unique(np.concatenate([first, second]), axis=0))))
        return 0.0

    assert floor_of(watch, real, synthetic, repeats=3).volumes == 10
    assert met == [(10, 10, 20)] * 6


def test_few_samples_limit_the_size_of_halves() -> None:
    assert floor_of(frechet_distance, volumes(40, 2), volumes(7, 3)).volumes == 7


def test_good_samples_lie_on_the_floor_and_others_above() -> None:
    real = volumes(80, 4)
    good = floor_of(frechet_distance, real, volumes(80, 5))
    assert good.low < good.matched < good.high
    assert good.value > 0  # from the number of volumes alone
    bad = floor_of(frechet_distance, real, volumes(80, 6, 1.0))
    assert bad.matched > bad.high
    assert bad.matched - bad.value == pytest.approx(3, rel=0.3)  # a shift of 1 in 3 features
    assert bad.value == good.value  # for the same real volumes


def test_a_known_metric_has_known_means() -> None:
    """For the difference of means, the floor is about zero and the matched value about the shift."""
    real, synthetic = volumes(30, 7), volumes(15, 8, 2.0)
    found = floor_of(lambda a, b: float(b.mean() - a.mean()), real, synthetic, repeats=200)
    assert found.value == pytest.approx(0, abs=0.05)
    assert found.matched == pytest.approx(synthetic.mean() - real.mean(), abs=0.05)
    assert found.low < found.value < found.high


def test_few_draws_give_no_range() -> None:
    real, synthetic = volumes(20, 11), volumes(20, 12)
    few, enough = (floor_of(frechet_distance, real, synthetic, repeats=repeats) for repeats in (19, 20))
    assert few.value > 0 and (few.low, few.high) == (None, None)
    assert enough.low < enough.value < enough.high


def test_the_floor_depends_on_the_seed_and_not_on_the_order() -> None:
    real, synthetic = volumes(20, 9), volumes(20, 10)
    first = floor_of(frechet_distance, real, synthetic)
    assert floor_of(frechet_distance, real[::-1], np.roll(synthetic, 3, axis=0)) == first
    assert floor_of(frechet_distance, real, synthetic, seed=1) != first


def test_a_floor_needs_two_halves() -> None:
    with pytest.raises(CardioDiTError, match="at least 4 real"):
        floor_of(frechet_distance, volumes(3, 0), volumes(9, 1))
    with pytest.raises(CardioDiTError, match="repeats=0"):
        floor_of(frechet_distance, volumes(9, 0), volumes(9, 1), repeats=0)
