"""The Fréchet distance, against closed forms, SciPy's matrix root, and simulated volumes whose distance is known."""

from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation import frechet as module
from cardiodit.evaluation.frechet import (
    covariance_rank,
    effective_dimensions,
    frechet,
    frechet_distance,
    frechet_estimate,
    ledoit_wolf_intensity,
)


def volumes(n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Rows with a spread that falls over the features, as those of networks do."""
    mixed = np.random.default_rng(seed).normal(size=(n, f)) / np.arange(1, f + 1)
    mixed[:, 0] += shift
    return scale * mixed


def by_matrix_root(mean_1: np.ndarray, c1: np.ndarray, mean_2: np.ndarray, c2: np.ndarray) -> float:
    return float(np.square(mean_1 - mean_2).sum() + np.trace(c1 + c2) - 2 * np.trace(sqrtm(c1 @ c2)).real)


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


@pytest.mark.parametrize(("n", "m"), [(60, 50), (60, 13), (9, 50)])
def test_it_is_what_a_matrix_root_gives(n: int, m: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(12, 12)))[0]
    real, synthetic = volumes(n, 12, 0), volumes(m, 12, 1, 1.4, 0.5) @ turn
    expected = by_matrix_root(*moments(real), *moments(synthetic))
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-6)


def test_of_two_volumes_each_it_is_known_in_closed_form() -> None:
    """Both covariances have rank one: (C₁C₂)^½ has the trace |a·b|."""
    a, b, far = np.array([3.0, 0, 4]), np.array([0.0, 2, 2]), np.array([1.0, 1, 1])
    real, synthetic = np.stack([a, -a]), far + np.stack([b, -b])
    expected = far @ far + 2 * (a @ a + b @ b - 2 * abs(a @ b))
    assert frechet_distance(real, synthetic) == pytest.approx(expected)


def test_a_multiple_and_a_shift_have_closed_forms() -> None:
    real = volumes(7, 40, 2)  # fewer volumes than features
    trace = real.var(axis=0, ddof=1).sum()
    result = frechet(real - real.mean(axis=0), 3 * (real - real.mean(axis=0)) + 2)
    assert result.means == pytest.approx(40 * 4)
    assert result.spreads == pytest.approx(4 * trace)
    assert result.shrinkage is None
    assert "7 volumes with 40 features spread along 6 directions" in result.notes[0]


def test_it_is_zero_of_the_same_and_the_same_both_ways_and_turned() -> None:
    real, synthetic = volumes(20, 30, 3), volumes(25, 30, 4, 1.2, 1)
    assert frechet_distance(real, real[::-1]) == pytest.approx(0, abs=1e-12)
    forward = frechet_distance(real, synthetic)
    assert frechet_distance(synthetic, real) == pytest.approx(forward)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(30, 30)))[0]
    assert frechet_distance(real @ turn + 5, synthetic @ turn + 5) == pytest.approx(forward)


def test_singular_is_what_lacks_a_direction_however_many_the_volumes() -> None:
    whole, same = volumes(300, 6, 19), np.full((300, 2), 0.1)
    mixed = whole @ np.random.default_rng(20).normal(size=(6, 9))
    assert [covariance_rank(rows) for rows in (whole, np.hstack([whole, same]), mixed, whole[:4])] == [6, 6, 6, 3]
    assert frechet(whole, whole[::2]).notes == ()
    notes = frechet(mixed, np.hstack([whole[::3], whole[::3, :3] ** 2])).notes
    assert [note.split(":")[0] for note in notes] == ["The real covariance is singular"]
    assert "300 volumes with 9 features spread along 6 directions" in notes[0]


def test_float16_is_not_computed_in_float16() -> None:
    real, synthetic = volumes(40, 6, 6).astype(np.float16), volumes(40, 6, 7, 1.3).astype(np.float16)
    expected = by_matrix_root(*moments(real.astype(np.float64)), *moments(synthetic.astype(np.float64)))
    assert frechet_distance(real, synthetic) == pytest.approx(expected)


def test_shrinkage_is_that_of_ledoit_and_wolf_term_by_term() -> None:
    features = volumes(15, 6, 8)
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / 15
    target = np.trace(covariance) / 6 * np.eye(6)
    noise = sum(np.square(np.outer(x, x) - covariance).sum() for x in centred) / 15**2
    expected = noise / np.square(covariance - target).sum()
    assert 0 < expected < 1
    assert ledoit_wolf_intensity(features) == pytest.approx(expected)
    wide = np.concatenate([features, np.zeros((15, 20))], axis=1)  # by way of the other product
    narrow_target = np.trace(covariance) / 26
    spread = np.square(covariance).sum() - 26 * narrow_target**2
    assert ledoit_wolf_intensity(wide) == pytest.approx(noise / spread)


def test_shrunk_covariances_meet_as_they_would_by_a_matrix_root() -> None:
    real, synthetic = volumes(10, 16, 9), volumes(30, 16, 10, 1.5, 1)
    result = frechet(real, synthetic, shrinkage=True)
    assert result.shrinkage is not None

    def shrunk(features: np.ndarray, intensity: float) -> tuple[np.ndarray, np.ndarray]:
        mean, covariance = moments(features)
        return mean, (1 - intensity) * covariance + intensity * np.trace(covariance) / 16 * np.eye(16)

    expected = by_matrix_root(*shrunk(real, result.shrinkage[0]), *shrunk(synthetic, result.shrinkage[1]))
    assert result.distance == pytest.approx(expected)
    assert "Ledoit" in result.notes[0]


def test_a_constant_network_has_no_distance() -> None:
    same = np.ones((9, 5))
    assert frechet_distance(same, same) == 0
    assert frechet(same, same, shrinkage=True).distance == 0
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


def deficient(n: int, f: int, rank: int, seed: int) -> np.ndarray:
    return volumes(n, rank, seed) @ np.random.default_rng(0).normal(size=(rank, f))


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (volumes(40, 90, 21), volumes(30, 90, 22, 1.2)),  # few volumes of many features
        (volumes(90, 20, 21), volumes(70, 20, 22, 1.2)),  # many of few
        (volumes(90, 20, 21), volumes(12, 20, 22, 1.2)),  # many and few
        (np.maximum(volumes(60, 90, 23), 0), np.maximum(volumes(50, 90, 24), 0)),
        (deficient(40, 90, 7, 25), deficient(40, 90, 7, 26)),  # singular: squares of nothing are rounding
        (deficient(90, 20, 7, 25), deficient(90, 20, 7, 26)),
        (volumes(90, 8, 25) * ([1e4] + [1e-2] * 7), volumes(90, 8, 26) * ([1e-2] * 7 + [1e4])),  # across each other
        (volumes(40, 90, 27), volumes(40, 90, 27) + 1e-6 * volumes(40, 90, 28)),  # all but copies
        (volumes(40, 90, 29) + 1e4, volumes(40, 90, 30) + 1e4),
    ],
)
def test_the_quick_way_gives_the_exact_distance(real: np.ndarray, synthetic: np.ndarray) -> None:
    """Of all, and of subsets: far nearer than the 1e-4 that a reader could see."""
    pair = module._pair(*module._around_their_mean(real, synthetic))
    chosen = np.random.default_rng(31).permutation(len(real))[:30], np.arange(len(synthetic))[2:]
    for found, samples in ((pair, (real, synthetic)), (pair[chosen], (real[chosen[0]], synthetic[chosen[1]]))):
        assert found.distance == pytest.approx(frechet_distance(*samples), rel=1e-5, abs=1e-12)


def test_the_limit_takes_singular_values_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what made a thousand volumes slow."""
    taken: list[tuple[int, ...]] = []
    svd = np.linalg.svd

    def watched(matrix: np.ndarray, **settings: Any) -> np.ndarray:
        taken.append(matrix.shape)
        return svd(matrix, **settings)

    monkeypatch.setattr(module.np.linalg, "svd", watched)
    frechet_estimate(volumes(40, 90, 32), volumes(40, 90, 33))
    frechet_estimate(volumes(90, 20, 32), volumes(90, 20, 33))
    assert not taken
    frechet_estimate(deficient(90, 20, 7, 34), deficient(90, 20, 7, 35))
    assert taken


def test_dimensions_are_counted_by_their_spread() -> None:
    rng = np.random.default_rng(16)
    assert effective_dimensions(rng.normal(size=(500, 10))) == pytest.approx(10, rel=0.1)
    assert effective_dimensions(rng.normal(size=(500, 10)) * ([10.0] * 3 + [0.01] * 7)) == pytest.approx(3, rel=0.1)


def test_it_takes_many_features_in_the_span_of_few_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix of features by features is ever made: 2048 features of few volumes are no work."""
    shapes: list[tuple[int, ...]] = []
    svd = np.linalg.svd

    def watched(matrix: np.ndarray, **settings: Any) -> np.ndarray:
        shapes.append(matrix.shape)
        return svd(matrix, **settings)

    monkeypatch.setattr(module.np.linalg, "svd", watched)
    frechet_distance(volumes(12, 2048, 17), volumes(10, 2048, 18))
    assert shapes == [(12, 10)]


def test_one_volume_has_no_covariance() -> None:
    with pytest.raises(CardioDiTError, match="at least 2 synthetic volumes"):
        frechet_distance(np.ones((5, 3)), np.ones((1, 3)))
