"""The Fréchet distance of volumes at hand, against closed forms and SciPy's matrix root."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.frechet import (
    covariance_rank,
    frechet,
    frechet_distance,
    ledoit_wolf_intensity,
)


def volumes(n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Rows with a spread that falls over the features, as those of networks do."""
    mixed = np.random.default_rng(seed).normal(size=(n, f)) / np.arange(1, f + 1)
    mixed[:, 0] += shift
    return scale * mixed


def peak_memory(work: Callable[[], object]) -> int:
    work()  # what is imported late is not its own
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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


def test_it_takes_many_features_in_the_span_of_few_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix of features by features is ever made: 2048 features of few volumes are no work."""
    shapes: list[tuple[int, ...]] = []
    svd = np.linalg.svd

    def watched(matrix: np.ndarray, **settings: Any) -> np.ndarray:
        shapes.append(matrix.shape)
        return svd(matrix, **settings)

    monkeypatch.setattr(np.linalg, "svd", watched)
    frechet_distance(volumes(12, 2048, 17), volumes(10, 2048, 18))
    assert shapes == [(12, 10)]


def test_few_volumes_of_many_features_are_not_copied_again_and_again() -> None:
    """Of a thousand volumes with thousands of features, every copy is tens of MB."""
    real, synthetic = (volumes(150, 2048, seed).astype(np.float32) for seed in (36, 37))
    both = 2 * np.float64().nbytes * real.size
    assert peak_memory(lambda: frechet(real, synthetic)) < 0.4 * both
    assert peak_memory(lambda: frechet(real, synthetic, shrinkage=True)) < 1.8 * both


def test_one_volume_has_no_covariance() -> None:
    with pytest.raises(CardioDiTError, match="at least 2 synthetic volumes"):
        frechet_distance(np.ones((5, 3)), np.ones((1, 3)))
