"""Every metric beside what it says between real and real."""

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import floor_of
from cardiodit.evaluation.metrics.frechet import frechet_distance


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


def test_few_samples_set_the_number() -> None:
    assert floor_of(frechet_distance, volumes(40, 2), volumes(7, 3)).volumes == 7


def test_samples_as_good_as_real_ones_lie_on_the_floor_and_others_above() -> None:
    real = volumes(80, 4)
    good = floor_of(frechet_distance, real, volumes(80, 5))
    assert good.low < good.matched < good.high
    assert good.value > 0  # what the number of volumes alone makes
    bad = floor_of(frechet_distance, real, volumes(80, 6, 1.0))
    assert bad.matched > bad.high
    assert bad.matched - bad.value == pytest.approx(3, rel=0.3)  # a shift of 1 in 3 features
    assert bad.value == good.value  # of the same real volumes


def test_a_known_metric_has_known_means() -> None:
    """Difference of means: over all draws, the floor's is about zero and the other one about the shift."""
    real, synthetic = volumes(30, 7), volumes(15, 8, 2.0)
    found = floor_of(lambda a, b: float(b.mean() - a.mean()), real, synthetic, repeats=200)
    assert found.value == pytest.approx(0, abs=0.05)
    assert found.matched == pytest.approx(synthetic.mean() - real.mean(), abs=0.05)
    assert found.low < found.value < found.high


def test_few_draws_have_no_range() -> None:
    real, synthetic = volumes(20, 11), volumes(20, 12)
    few, enough = (floor_of(frechet_distance, real, synthetic, repeats=repeats) for repeats in (19, 20))
    assert few.value > 0 and (few.low, few.high) == (None, None)
    assert enough.low < enough.value < enough.high


def test_neither_order_nor_time_matter_but_the_seed_does() -> None:
    real, synthetic = volumes(20, 9), volumes(20, 10)
    first = floor_of(frechet_distance, real, synthetic)
    assert floor_of(frechet_distance, real[::-1], np.roll(synthetic, 3, axis=0)) == first
    assert floor_of(frechet_distance, real, synthetic, seed=1) != first


def test_it_needs_two_halves() -> None:
    with pytest.raises(CardioDiTError, match="at least 4 real"):
        floor_of(frechet_distance, volumes(3, 0), volumes(9, 1))
    with pytest.raises(CardioDiTError, match="repeats=0"):
        floor_of(frechet_distance, volumes(9, 0), volumes(9, 1), repeats=0)
