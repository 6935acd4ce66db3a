"""Copies of training volumes, planted and absent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import betabinom

from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.evaluate import typicality
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics.copies import NEAR, distances_to_training
from cardiodit.evaluation.metrics.registry import Score, Scoring, choose_metrics, compute_metrics
from cardiodit.evaluation.report.summary import OUTSIDE, WITHIN, WORSE, verdict
from cardiodit.evaluation.volume_sets import Item, VolumeSet
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Preprocessing

STATS = VolumeStats((1, 1, 1, 1), None, None, (-1.0, 1.0), None)


def hearts(seed: int, count: int, dimensions: int = 8) -> np.ndarray:
    return np.random.default_rng([9, seed]).normal(size=(count, dimensions))


def measured_set(name: str, rows: np.ndarray) -> MeasuredSet:
    items = [Item(str(i), name, Path(f"{i}.nii")) for i in range(len(rows))]
    measured = [Measured(f"{name}{i:04}", STATS, {"spatial": row}, {}, {}, None) for i, row in enumerate(rows)]
    return MeasuredSet(VolumeSet(name, items), items, measured)


def scores(real: np.ndarray, synthetic: np.ndarray, training: np.ndarray) -> tuple[dict[str, Score], list[str]]:
    sets: list[Any] = [measured_set(*each) for each in (("real", real), ("synthetic", synthetic))]
    scoring = Scoring(*sets, Preprocessing(), 0, Workers(), Path(), measured_set("training", training))
    chosen = [each for each in choose_metrics() if each.group == "copies"]
    found, left_out = compute_metrics(chosen, scoring)
    return {score.metric.name.removesuffix("_spatial"): score for score in found}, left_out


def test_copies_with_faint_noise_are_at_no_distance_and_all_counted() -> None:
    training = hearts(0, 60)
    copies = training[:30] + 0.01 * hearts(1, 30)
    found, left_out = scores(hearts(2, 40), copies, training)
    distance, share = found["training_distance"], found["training_copies"]
    assert not left_out and distance.result.estimate.value < 0.05 and verdict(distance.to_dict()) == OUTSIDE
    assert share.result.estimate.value == 1 and verdict(share.to_dict()) == WORSE
    # The mean over three neighbours, which orders the samples on the page, does not show them.
    separation = [np.median(values) for values in distances_to_training(hearts(2, 40), copies, training)]
    usual, near = typicality(training, copies)
    assert separation[0] / separation[1] > 20 and np.median(usual) / np.median(near) < 2


def test_some_copies_show_in_their_share_but_not_in_the_median() -> None:
    training, honest = hearts(0, 60), hearts(3, 40)
    honest[:10] = training[:10] + 0.01 * hearts(1, 10)
    found, _ = scores(hearts(2, 40), honest, training)
    assert verdict(found["training_copies"].to_dict()) == WORSE
    assert found["training_copies"].result.estimate.value >= 0.25


def test_a_model_that_copies_nobody_is_blamed_as_rarely_as_the_floor_says() -> None:
    """The count is beta-binomial: at most 5% of honest models lie above the floor's 95th percentile."""
    training, judged, shares = hearts(0, 60, 3), [], []
    for seed in range(100):
        found, _ = scores(hearts(1000 + seed, 39, 3), hearts(2000 + seed, 30, 3), training)
        judged.append([verdict(score.to_dict()) for score in found.values()])
        shares.append(found["training_copies"].result.estimate.value)
    blamed = [sum(each[i] != WITHIN for each in judged) for i in (0, 1)]
    assert blamed[0] <= 12 and blamed[1] <= 10, blamed
    assert np.mean(shares) == pytest.approx(2 / 40, abs=0.02)
    floor = found["training_copies"].result.floor
    assert found["training_copies"].result.p_value == betabinom(30, 2, 38).sf(round(30 * shares[-1]) - 1)
    assert floor is not None and floor.high == betabinom(30, 2, 38).ppf(0.95) / 30 and floor.value == NEAR


def test_too_few_held_out_volumes_for_a_share_are_named() -> None:
    found, left_out = scores(hearts(2, 18), hearts(3, 20), hearts(0, 30))
    assert list(found) == ["training_distance"]
    assert left_out == [
        "Samples nearer to a training volume than 95% of real ones, spatial: It needs at least 19 real volumes, and "
        "there are 18."
    ]


def test_real_volumes_from_the_training_set_are_refused() -> None:
    training = hearts(0, 30)
    found, (reason,) = scores(training[:20], hearts(3, 20), training)
    assert not found and "--real must list volumes that the model was not trained on" in reason


def test_the_order_of_the_volumes_changes_nothing() -> None:
    real, samples, training = hearts(2, 24), hearts(3, 20), hearts(0, 30)
    before, after = (scores(real[::step], samples[::step], training[::step])[0] for step in (1, -1))
    for name, score in before.items():
        assert score.to_dict() == after[name].to_dict()
