"""The classifier two-sample test: chance for equal distributions, and what a classifier that saw neither would say."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics import two_sample
from cardiodit.evaluation.metrics.estimate import checked_features
from cardiodit.evaluation.metrics.two_sample import BANDWIDTH, RIDGE, _centred, _ranks_correctly, c2st_auc

COUNT, FEATURES = 40, 60


def rows(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, FEATURES))


def test_equal_distributions_are_chance_on_average() -> None:
    """Also for sets of unequal size."""
    for count in (COUNT, COUNT // 3):
        found = [c2st_auc(rows(seed), rows(1000 + seed, count)) for seed in range(60)]
        values = np.array([estimate.value for estimate in found])
        assert values.mean() == pytest.approx(0.5, abs=3 * values.std() / 60**0.5)
        assert np.mean([e.low <= 0.5 <= e.high for e in found if e.low is not None and e.high is not None]) > 0.75


@pytest.mark.parametrize(("scale", "shift", "least"), [(1.0, 0.4, 0.9), (1.4, 0.0, 0.9), (1.0, 3.0, 0.999)])
def test_differences_of_mean_and_of_spread_are_seen(scale: float, shift: float, least: float) -> None:
    found = np.mean([c2st_auc(rows(seed), scale * rows(1000 + seed) + shift).value for seed in range(5)])
    assert found > least


def test_it_is_the_classifier_that_was_trained_without_the_pair() -> None:
    """Computed from the inverse of the whole kernel, as if every pair had been left out and predicted."""
    real, synthetic = rows(0, 7), rows(1, 5) + 0.3
    pooled = np.concatenate([real, synthetic])
    pooled /= pooled.std(axis=0)
    squared = ((pooled[:, None] - pooled[None]) ** 2).sum(axis=2)
    kernel = _centred(np.exp(-squared / (BANDWIDTH * np.median(squared[np.triu_indices(12, 1)]))))
    labels = np.concatenate([np.full(7, 5 / 12), np.full(5, -7 / 12)])
    found = _ranks_correctly(real, synthetic)
    for i in range(7):
        for j in range(7, 12):
            kept = [k for k in range(12) if k not in (i, j)]
            weights = np.linalg.solve(kernel[np.ix_(kept, kept)] + RIDGE * np.eye(10), labels[kept])
            scores = kernel[np.ix_([i, j], kept)] @ weights
            assert found[i, j - 7] == (scores[0] > scores[1])


def test_neither_order_nor_constant_features_matter_and_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = rows(0), rows(1) + 0.2
    value = c2st_auc(real, synthetic).value
    assert c2st_auc(real[::-1], synthetic).value == pytest.approx(value, abs=1e-9)
    assert c2st_auc(*(np.pad(each, ((0, 0), (0, 3))) for each in (real, synthetic))).value == pytest.approx(value)
    assert c2st_auc(real[:, :1] * 0, synthetic[:, :1] * 0).value == 0.5
    monkeypatch.setattr(two_sample, "MOST", 20)
    sampled = c2st_auc(real, synthetic)
    assert "Computed on 20 real and 20 synthetic volumes." in sampled.notes
    assert sampled.value == c2st_auc(*checked_features(real[::-1], synthetic)).value
