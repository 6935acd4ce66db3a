"""The extrapolated Fréchet distance and its interval against known distances, fast subsets against exact ones."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.metrics.frechet_limit import TOLERATED, effective_dimensions, frechet_estimate, pair_of


def volumes(n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Draw rows whose spread decreases over the features, as for networks."""
    mixed = np.random.default_rng(seed).normal(size=(n, f)) / np.arange(1, f + 1)
    mixed[:, 0] += shift
    return scale * mixed


def test_a_constant_network_has_no_distance() -> None:
    same = np.ones((9, 5))
    assert frechet_estimate(same, same).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("repetitions", "expected"), [(8, 6), pytest.param(30, 26, marks=pytest.mark.proof)])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.0, 0.4), (1.6, 1.5)])
def test_the_interval_contains_the_truth_at_its_level(
    scale: float, shift: float, repetitions: int, expected: int
) -> None:
    """n = 60, m = 80, f = 8: the truth is (scale − 1)² tr C + (scale · shift)²."""
    truth = (scale - 1) ** 2 * (1 / np.arange(1, 9) ** 2).sum() + (scale * shift) ** 2
    held, values, plain = 0, [], []
    for seed in range(repetitions):
        real, synthetic = volumes(60, 8, 1000 + seed), volumes(80, 8, 2000 + seed, scale, shift)
        estimate = frechet_estimate(real, synthetic, seed=seed)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
        values.append(estimate.value)
        plain.append(frechet_distance(real, synthetic))
    assert held >= expected
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
        pytest.param(300, np.arange(1, 513) ** -0.5, marks=pytest.mark.proof),  # 1/k
        (100, np.array([np.sqrt(768)] + [1.0] * 255)),  # one direction holds three quarters of it
    ],
)
def test_a_long_tail_of_directions_gets_no_interval_that_misses_the_truth(n: int, spread: np.ndarray) -> None:
    """Few effective dimensions, but a bias that is not linear in 1/n."""
    for seed in range(2):
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


# Subsets


def deficient(n: int, f: int, rank: int, seed: int) -> np.ndarray:
    return volumes(n, rank, seed) @ np.random.default_rng(0).normal(size=(rank, f))


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (volumes(40, 90, 21), volumes(30, 90, 22, 1.2)),  # few volumes of many features
        (volumes(90, 20, 21), volumes(70, 20, 22, 1.2)),  # many of few
        (volumes(90, 20, 21), volumes(12, 20, 22, 1.2)),  # many and few
        (np.maximum(volumes(60, 90, 23), 0), np.maximum(volumes(50, 90, 24), 0)),
        (deficient(40, 90, 7, 25), deficient(40, 90, 7, 26)),  # singular: the smallest variances are rounding errors
        (deficient(90, 20, 7, 25), deficient(90, 20, 7, 26)),
        (volumes(90, 8, 25) * ([1e4] + [1e-2] * 7), volumes(90, 8, 26) * ([1e-2] * 7 + [1e4])),  # opposite directions
        (volumes(40, 90, 27), volumes(40, 90, 27) + 1e-6 * volumes(40, 90, 28)),  # almost copies
        (volumes(40, 90, 29) + 1e4, volumes(40, 90, 30) + 1e4),
    ],
)
def test_the_fast_computation_gives_the_exact_distance(real: np.ndarray, synthetic: np.ndarray) -> None:
    """For all volumes and for subsets; far closer than the 1e-4 that a reader could notice."""
    pair = pair_of(real, synthetic)
    chosen = np.random.default_rng(31).permutation(len(real))[:30], np.arange(len(synthetic))[2:]
    for found, samples in ((pair, (real, synthetic)), (pair[chosen], (real[chosen[0]], synthetic[chosen[1]]))):
        assert found.distance() == pytest.approx(frechet_distance(*samples), rel=1e-5, abs=1e-12)


def test_singular_values_are_computed_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would make a thousand volumes slow."""
    taken: list[tuple[int, ...]] = []
    svd = np.linalg.svd

    def watched(matrix: np.ndarray, **settings: Any) -> np.ndarray:
        taken.append(matrix.shape)
        return svd(matrix, **settings)

    monkeypatch.setattr(np.linalg, "svd", watched)
    frechet_estimate(volumes(40, 90, 32), volumes(40, 90, 33))
    frechet_estimate(volumes(90, 20, 32), volumes(90, 20, 33))
    frechet_estimate(volumes(130, 100, 32), volumes(130, 100, 33))  # halves have fewer volumes than features
    assert not taken
    pair_of(deficient(90, 20, 7, 34), deficient(90, 20, 7, 35)).distance()
    assert taken


def test_the_tolerated_error_is_relative_to_the_spread() -> None:
    """Between near copies the distance is almost zero, so the tolerance is relative to the volumes' variance."""
    real, synthetic = deficient(90, 200, 7, 36), deficient(90, 200, 7, 36) + 1e-4 * volumes(90, 200, 37)
    spread = sum(rows.var(axis=0, ddof=1).sum() for rows in (real, synthetic))
    pair = pair_of(real, synthetic)
    assert abs(pair.distance(TOLERATED) - frechet_distance(real, synthetic)) <= TOLERATED * spread


def test_rows_are_summed_block_by_block() -> None:
    real, synthetic = (volumes(150, 2048, seed).astype(np.float32) for seed in (38, 39))
    tracemalloc.start()
    pair_of(real, synthetic)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 2 * np.float64().nbytes * real.size
