"""The lines on features: at their floor for one distribution, above it for two, and left out with a reason."""

from collections.abc import Sequence

import numpy as np
import pytest

from cardiodit.evaluation import critic
from cardiodit.evaluation.coverage import coverage_metrics
from cardiodit.evaluation.estimate import Estimate
from cardiodit.evaluation.feature_scores import feature_scores, names_of_scores, typicality
from cardiodit.evaluation.floor import beside_floor
from cardiodit.evaluation.frechet import frechet, frechet_distance
from cardiodit.evaluation.report.summary import verdict


def normal(seed: int, n: int, f: int = 6) -> np.ndarray:
    return np.random.default_rng([seed]).normal(size=(n, f))


def scores(real: np.ndarray, synthetic: np.ndarray) -> dict:
    metrics, left_out = feature_scores("spatial", real, synthetic)
    assert not left_out
    return {metric.name.removesuffix("_spatial"): metric for metric in metrics}


def test_equal_distributions_lie_at_the_floor() -> None:
    found = scores(normal(0, 80), normal(1, 80))
    assert list(found) == ["frechet", "kid", "mmd_prdit", "precision", "recall", "density", "coverage"]
    for metric in found.values():
        assert metric.floor.volumes == 40
        spread = metric.floor.high - metric.floor.low
        assert abs(metric.floor.matched - metric.floor.value) < spread, metric.name


def test_a_shift_shows_above_the_floor_in_every_distance() -> None:
    found = scores(normal(0, 80), normal(1, 80) + 1.5)
    for name in ("frechet", "kid", "mmd_prdit"):
        assert found[name].better == "lower" and found[name].floor.matched > found[name].floor.high
    for name in ("precision", "recall", "coverage"):
        assert found[name].better == "higher" and found[name].floor.matched < found[name].floor.low


def test_floors_are_those_of_the_metrics_themselves() -> None:
    real, synthetic = normal(0, 30), normal(1, 24) + 0.5
    found = scores(real, synthetic)
    direct = beside_floor(frechet_distance, real, synthetic)
    assert (found["frechet"].floor.value, found["frechet"].floor.matched) == (direct.floor, direct.matched)
    recall = beside_floor(lambda a, b: coverage_metrics(a, b).recall, real, synthetic)
    assert (found["recall"].floor.value, found["recall"].floor.matched) == (recall.floor, recall.matched)


def test_a_singular_covariance_is_told_with_its_shrunk_value() -> None:
    real, synthetic = normal(0, 12, 40), normal(1, 12, 40)
    metric = scores(real, synthetic)["frechet"]
    notes = " ".join(metric.estimate.notes)
    assert "covariance is singular: 12 volumes with 40 features" in notes and "shrunk (Ledoit and Wolf 2004)" in notes
    expected = frechet(real, synthetic, shrinkage=True)
    assert metric.to_dict()["shrunk"] == {
        "value": expected.distance,
        "at_hand": frechet_distance(real, synthetic),
        "real": expected.shrinkage[0],
        "synthetic": expected.shrinkage[1],
    }


def test_a_feature_that_never_moves_makes_many_volumes_singular_too() -> None:
    real, synthetic = (np.hstack([normal(seed, 60), np.ones((60, 1))]) for seed in (0, 1))
    found = scores(real, synthetic)
    assert found["frechet"].shrunk is not None and "7 features spread along 6" in found["frechet"].estimate.notes[0]
    assert all(metric.shrunk is None for name, metric in found.items() if name != "frechet")
    assert scores(real[:, :6], synthetic[:, :6])["frechet"].to_dict()["shrunk"] is None


def test_the_critic_has_a_floor_of_its_own_kind_and_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many critics for the floor as for the value, and no range out of two draws."""
    monkeypatch.setattr(critic, "LOOK_EVERY", 5)
    monkeypatch.setattr(critic, "PATIENCE", 1)
    asked: list[tuple[int, list[int]]] = []
    distance = critic.critic_distance

    def watched(real: np.ndarray, synthetic: np.ndarray, *, seeds: Sequence[int]) -> Estimate:
        asked.append((len(real), list(seeds)))
        return distance(real, synthetic, seeds=seeds)

    monkeypatch.setattr(critic, "critic_distance", watched)
    metrics, left_out = feature_scores("spatial", normal(0, 40, 2), normal(1, 40, 2) + 3, seed=4, critic=True)
    (metric,) = [metric for metric in metrics if metric.name == "critic_spatial"]
    assert not left_out and asked == [(40, [4, 5, 6])] + [(20, [4, 5, 6])] * 4
    assert metric.floor.volumes == 20 and metric.floor.matched > metric.floor.value
    assert (metric.floor.low, metric.floor.high) == (None, None) and verdict(metric.to_dict()) is None
    assert "The floor is the mean of 2 draws, too few for a range: nothing is judged by it." in metric.estimate.notes
    assert metric.estimate.notes[1].startswith("By seed: ") and metric.estimate.notes[1].count(",") == 2


def test_each_score_is_told_before_it_is_computed() -> None:
    told: list[str] = []
    feature_scores("spatial", normal(0, 12), normal(1, 12), tell=told.append)
    assert told == [f"{name}, spatial" for name in names_of_scores(critic=False)]
    assert told[0] == "Fréchet distance, spatial" and names_of_scores(critic=True)[len(told) :] == ["Critic"]


def test_what_few_volumes_do_not_allow_is_said() -> None:
    metrics, left_out = feature_scores("spatial", normal(0, 3), normal(1, 3), critic=True)
    assert [metric.name for metric in metrics] == ["frechet_spatial", "kid_spatial", "mmd_prdit_spatial"]
    assert all(metric.floor is None and "No floor" in metric.estimate.notes[-1] for metric in metrics)
    assert [sentence.split(",")[0] for sentence in left_out] == ["Precision", "Critic"]


def test_typicality_in_numbers() -> None:
    real = np.arange(5.0)[:, None]
    own, others = typicality(real, np.array([[1.0], [10.0]]))
    # Means over the three nearest: 2, 4/3, 4/3, 4/3, 2; the median is 4/3.
    assert own == pytest.approx([1.5, 1, 1, 1, 1.5])
    assert others == pytest.approx([(0 + 1 + 1) / 3 / (4 / 3), 7 / (4 / 3)])
    same = typicality(np.ones((3, 2)), np.ones((2, 2)))
    assert [values.tolist() for values in same] == [[1, 1, 1], [1, 1]]
