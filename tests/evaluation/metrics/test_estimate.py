"""Intervals by the jackknife, and what features must look like."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import checked_features, jackknife_interval


def without_each(values: np.ndarray) -> np.ndarray:
    return (values.sum() - values) / (len(values) - 1)


def test_of_a_mean_it_is_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert jackknife_interval(values.mean(), without_each(values)) == pytest.approx(tuple(expected))


def test_of_a_difference_of_means_it_is_welchs_interval() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 3, 9), rng.normal(0, 1, 25)
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    found = jackknife_interval(
        first.mean() - second.mean(), without_each(first), second.mean() - without_each(second), level=0.9
    )
    assert found == pytest.approx(tuple(expected))


def test_what_no_volume_changes_has_no_width() -> None:
    assert jackknife_interval(2.0, np.full(5, 2.0), np.full(4, 2.0)) == (2.0, 2.0)


def test_features_become_float64_and_stay_what_they_were() -> None:
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
