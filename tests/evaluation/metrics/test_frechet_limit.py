"""The extrapolated Fréchet distance and its interval, against simulated volumes whose distance is known."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.metrics.frechet_limit import effective_dimensions, frechet_estimate


def volumes(n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Rows with a spread that falls over the features, as those of networks do."""
    mixed = np.random.default_rng(seed).normal(size=(n, f)) / np.arange(1, f + 1)
    mixed[:, 0] += shift
    return scale * mixed


def test_a_constant_network_has_no_distance() -> None:
    same = np.ones((9, 5))
    assert frechet_estimate(same, same).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.0, 0.4), (1.6, 1.5)])
def test_the_interval_holds_the_truth_as_often_as_it_says(scale: float, shift: float) -> None:
    """n = 60, m = 80, f = 8: the truth is (scale − 1)² tr C + (scale · shift)²."""
    truth = (scale - 1) ** 2 * (1 / np.arange(1, 9) ** 2).sum() + (scale * shift) ** 2
    repetitions, held, values, plain = 30, 0, [], []
    for seed in range(repetitions):
        real, synthetic = volumes(60, 8, 1000 + seed), volumes(80, 8, 2000 + seed, scale, shift)
        estimate = frechet_estimate(real, synthetic, seed=seed)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
        values.append(estimate.value)
        plain.append(frechet_distance(real, synthetic))
    assert held >= 0.86 * repetitions
    error = np.std(values) / np.sqrt(repetitions)
    assert abs(np.mean(values) - truth) < 3 * error  # no bias is left
    assert np.mean(plain) > np.mean(values)


def test_volumes_in_too_many_dimensions_get_no_interval() -> None:
    rng = np.random.default_rng(11)
    estimate = frechet_estimate(rng.normal(size=(40, 30)), rng.normal(size=(40, 30)))
    assert estimate.low is None
    assert estimate.high is None
    assert "not linear in 1/n" in estimate.notes[-1]


@pytest.mark.parametrize(
    ("n", "spread"),
    [
        (100, np.arange(1, 513) ** -0.75),  # variances 1/k^1.5
        (300, np.arange(1, 513) ** -0.5),  # 1/k
        (100, np.array([np.sqrt(768)] + [1.0] * 255)),  # one direction holds three quarters of it
    ],
)
def test_a_long_tail_of_directions_gets_no_interval_that_misses_the_truth(n: int, spread: np.ndarray) -> None:
    """Few effective dimensions, and yet a bias that is not linear in 1/n."""
    for seed in range(4 if n < 300 else 2):
        rng = np.random.default_rng([40, seed])
        real, synthetic = (rng.normal(size=(n, len(spread))) * spread for _ in range(2))
        estimate = frechet_estimate(real, synthetic, seed=seed)
        assert estimate.low is None or estimate.low <= 0 <= (estimate.high or 0)
        assert estimate.low is not None or "not linear in 1/n" in estimate.notes[-1]


def test_the_tail_of_either_sample_counts() -> None:
    rng = np.random.default_rng(41)
    short, long = (rng.normal(size=(100, 512)) * np.arange(1, 513) ** -slope for slope in (3.0, 0.75))
    for sets, kind in (((short, long), "synthetic"), ((long, short), "real")):
        estimate = frechet_estimate(*sets)
        assert estimate.low is None
        assert f"random halves of the 100 {kind} volumes" in estimate.notes[-1]


def test_few_volumes_are_not_extrapolated() -> None:
    real, synthetic = volumes(7, 4, 12), volumes(30, 4, 13)
    estimate = frechet_estimate(real, synthetic)
    assert estimate.value == frechet_distance(real, synthetic)
    assert estimate.low is None


def test_empty_features_change_nothing_and_a_seed_is_a_number() -> None:
    real, synthetic = volumes(30, 8, 14), volumes(30, 8, 15, 1.3)
    first = frechet_estimate(real, synthetic, seed=3)
    assert frechet_estimate(real, synthetic, seed=3) == first
    assert frechet_estimate(real, synthetic, seed=4).value != first.value
    padding = np.zeros((30, 200))  # now there are fewer volumes than features
    wide = frechet_estimate(np.hstack([real, padding]), np.hstack([synthetic, padding]), seed=3)
    assert (wide.value, wide.low) == pytest.approx((first.value, first.low))


def test_dimensions_are_counted_by_their_spread() -> None:
    rng = np.random.default_rng(16)
    assert effective_dimensions(rng.normal(size=(500, 10))) == pytest.approx(10, rel=0.1)
    assert effective_dimensions(rng.normal(size=(500, 10)) * ([10.0] * 3 + [0.01] * 7)) == pytest.approx(3, rel=0.1)
