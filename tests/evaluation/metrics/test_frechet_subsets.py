"""Distances of many subsets, computed the quick way, are those that are computed one by one."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.metrics.frechet_limit import TOLERATED, frechet_estimate, pair_of


def volumes(n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Rows with a spread that falls over the features, as those of networks do."""
    mixed = np.random.default_rng(seed).normal(size=(n, f)) / np.arange(1, f + 1)
    mixed[:, 0] += shift
    return scale * mixed


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
    pair = pair_of(real, synthetic)
    chosen = np.random.default_rng(31).permutation(len(real))[:30], np.arange(len(synthetic))[2:]
    for found, samples in ((pair, (real, synthetic)), (pair[chosen], (real[chosen[0]], synthetic[chosen[1]]))):
        assert found.distance() == pytest.approx(frechet_distance(*samples), rel=1e-5, abs=1e-12)


def test_the_limit_takes_singular_values_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what made a thousand volumes slow."""
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


def test_what_nobody_sees_is_a_share_of_the_spread() -> None:
    """Between near copies the distance itself is nothing; what may be lost is measured by the spread of the volumes."""
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
