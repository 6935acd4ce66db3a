"""Two distributions of one number: known answers, scipy's, and the level and coverage that are promised."""

import numpy as np
import pytest
from scipy import stats

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.numbers import compare, compare_tables, wasserstein, welch_interval


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


def test_the_same_values_are_no_further_apart_than_nothing() -> None:
    real = draws(3, 25)[0]
    found = compare(real, real)
    assert (found.wasserstein, found.difference, found.p_value) == (0, 0, 1)
    assert found.floor > 0


def test_a_spread_is_seen_where_the_means_agree() -> None:
    real = stats.norm.ppf((np.arange(60) + 0.5) / 60)
    found = compare(real, 0.4 * real)
    assert found.difference == pytest.approx(0) and found.interval[0] < 0 < found.interval[1]
    assert found.p_value < 0.01 and found.wasserstein > found.floor_high


def test_a_seed_gives_the_same_numbers() -> None:
    first, second = draws(4, 15, 18)
    once = compare(first, second, seed=5, draws=99)
    assert compare(first, second, seed=5, draws=99) == once
    assert compare(first, second, seed=6, draws=99) != once


def test_the_floor_is_what_two_real_samples_are_apart() -> None:
    """Of fresh samples of the same distribution, within 10%; and less with more samples."""
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


def test_a_difference_is_found_more_often_than_not() -> None:
    random = np.random.default_rng([9])
    values = [compare(random.normal(0, 1, 30), random.normal(1, 1, 30), seed=i, draws=99).p_value for i in range(50)]
    assert np.mean(np.array(values) <= 0.05) > 0.85


def test_the_interval_holds_the_difference_as_often_as_it_says() -> None:
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


def test_what_is_not_finite_is_not_compared() -> None:
    with pytest.raises(CardioDiTError, match="1 of the 3 real values"):
        compare([1.0, float("nan"), 2.0], [1.0, 2.0])
