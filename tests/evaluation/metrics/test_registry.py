"""The registry and the metrics on features: order, floors, and reasons for what is left out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluate import typicality
from cardiodit.evaluation.metrics import Features, Result, critic, metric
from cardiodit.evaluation.metrics.coverage import coverage_metrics
from cardiodit.evaluation.metrics.estimate import Estimate, Floor, floor_of
from cardiodit.evaluation.metrics.frechet import frechet, frechet_distance
from cardiodit.evaluation.metrics.registry import GROUPS, Score, choose_metrics, compute_metrics
from cardiodit.evaluation.report.summary import verdict

DISTANCES = ("frechet", "mmd_rbf", "kid_polynomial", "mmd_prdit")
SHARES = ("precision", "recall", "density", "coverage")
CLASSIFIER = "c2st_auc"


class FeatureScoring:
    """A `Scoring` of given spatial features only."""

    def __init__(self, real: np.ndarray, synthetic: np.ndarray, seed: int = 0) -> None:
        self.given = (real, synthetic, seed)

    def features(self, kind: str) -> Features | None:
        return Features(kind, *self.given) if kind == "spatial" else None


def feature_scores(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, options: Sequence[str] = ()
) -> tuple[list[Score], list[str]]:
    chosen = [each for each in choose_metrics(options=options) if each.features]
    scoring: Any = FeatureScoring(real, synthetic, seed)
    return compute_metrics(chosen, scoring)


def normal(seed: int, n: int, f: int = 6) -> np.ndarray:
    return np.random.default_rng([seed]).normal(size=(n, f))


def scores(real: np.ndarray, synthetic: np.ndarray) -> dict:
    found, left_out = feature_scores(real, synthetic)
    assert not left_out
    return {score.metric.name.removesuffix("_spatial"): score for score in found}


def test_equal_distributions_lie_at_the_floor() -> None:
    found = scores(normal(0, 80), normal(1, 80))
    assert list(found) == [*DISTANCES, *SHARES, CLASSIFIER]
    for name, score in found.items():
        floor = score.result.floor
        assert floor.volumes == 40 and abs(floor.matched - floor.value) < floor.high - floor.low, name


def test_a_shift_shows_above_the_floor_in_every_distance() -> None:
    found = scores(normal(0, 80), normal(1, 80) + 1.5)
    for name in (*DISTANCES, CLASSIFIER):
        assert found[name].metric.better == "lower"
        assert found[name].result.floor.matched > found[name].result.floor.high
    for name in ("precision", "recall", "coverage"):
        assert found[name].metric.better == "higher"
        assert found[name].result.floor.matched < found[name].result.floor.low


def test_floors_are_those_of_the_metrics_themselves() -> None:
    real, synthetic = normal(0, 30), normal(1, 24) + 0.5
    found = scores(real, synthetic)
    direct = floor_of(frechet_distance, real, synthetic)
    assert found["frechet"].result.floor == direct
    recall = floor_of(lambda a, b: coverage_metrics(a, b).recall, real, synthetic)
    assert found["recall"].result.floor == recall


def test_a_singular_covariance_is_told_with_its_shrunk_value() -> None:
    real, synthetic = normal(0, 12, 40), normal(1, 12, 40)
    score = scores(real, synthetic)["frechet"]
    notes = " ".join(score.result.estimate.notes)
    assert "covariance is singular: 12 volumes with 40 features" in notes and "shrunk (Ledoit and Wolf 2004)" in notes
    expected = frechet(real, synthetic, shrinkage=True)
    assert score.to_dict()["shrunk"] == {
        "value": expected.distance,
        "at_hand": frechet_distance(real, synthetic),
        "real": expected.shrinkage[0],
        "synthetic": expected.shrinkage[1],
    }


def test_a_feature_that_never_moves_makes_many_volumes_singular_too() -> None:
    real, synthetic = (np.hstack([normal(seed, 60), np.ones((60, 1))]) for seed in (0, 1))
    found = scores(real, synthetic)
    assert found["frechet"].result.shrunk is not None
    assert any("7 features spread along 6" in note for note in found["frechet"].result.estimate.notes)
    assert all(score.result.shrunk is None for name, score in found.items() if name != "frechet")
    assert scores(real[:, :6], synthetic[:, :6])["frechet"].to_dict()["shrunk"] is None


def test_the_critic_has_a_floor_of_its_own_kind_and_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor uses as many critics as the value, and two draws give no range."""
    monkeypatch.setattr(critic, "CHECK_EVERY", 5)
    monkeypatch.setattr(critic, "PATIENCE", 1)
    asked: list[tuple[int, list[int]]] = []
    distance = critic.critic_distance

    def watched(real: np.ndarray, synthetic: np.ndarray, *, seeds: Sequence[int]) -> Estimate:
        asked.append((len(real), list(seeds)))
        return distance(real, synthetic, seeds=seeds)

    monkeypatch.setattr(critic, "critic_distance", watched)
    found, left_out = feature_scores(normal(0, 40, 2), normal(1, 40, 2) + 3, seed=4, options=["critic"])
    (score,) = [score for score in found if score.metric.name == "critic_spatial"]
    floor, notes = score.result.floor, score.result.estimate.notes
    assert not left_out and asked == [(40, [4, 5, 6])] + [(20, [4, 5, 6])] * 4
    assert floor is not None and floor.volumes == 20 and floor.matched > floor.value
    assert (floor.low, floor.high) == (None, None) and verdict(score.to_dict()) is None
    assert "The floor is the mean of 2 draws, too few for a range: nothing is judged by it." in notes
    assert notes[1].startswith("By seed: ") and notes[1].count(",") == 2


def test_metrics_that_need_more_volumes_are_left_out_with_a_reason() -> None:
    found, left_out = feature_scores(normal(0, 3), normal(1, 3), options=["critic"])
    assert [score.metric.name for score in found] == [f"{name}_spatial" for name in DISTANCES]
    for score in found:
        assert score.result.floor is None and "No floor" in score.result.estimate.notes[-1]
    assert [sentence.split(":")[0] for sentence in left_out] == [
        "Precision, recall, density and coverage, spatial",
        "Critic, spatial",
        "Classifier two-sample test, spatial",
    ]


def test_built_in_metrics_are_in_the_order_of_the_groups() -> None:
    groups = [each.group for each in choose_metrics()]
    assert groups == sorted(groups, key=list(GROUPS).index) and set(groups) == set(GROUPS)
    names = [each.name for each in choose_metrics(options=["critic"])]
    assert len(set(names)) == len(names) and names[8:11] == [
        "critic_spatial",
        "c2st_auc_spatial",
        "frechet_spatiotemporal",
    ]


OWN = """
from cardiodit.evaluation.metrics import metric

@metric("spread", "Spread", group="distribution", better="near real", on_features=True)
def spread(features):
    return features.synthetic.std() / features.real.std()

@metric("broken", "Broken", group="distribution", better="lower", on_features=True)
def broken(features):
    return {}["key"]

@metric("wrong", "Wrong", group="distribution", better="lower", on_features=True)
def wrong(features):
    return "text"

@metric("frechet", "Taken", group="distribution", better="lower", on_features=True)
def taken(features):
    return 0.0

def bare(features):
    return 0.0
"""


def test_own_metrics_come_last_in_their_group_and_their_errors_are_reported(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    chosen = choose_metrics([f"{tmp_path}/own.py:{name}" for name in ("spread", "broken", "wrong")])
    in_group = [each.name for each in chosen if each.group == "distribution"]
    assert in_group[-6::2] == ["spread_spatial", "broken_spatial", "wrong_spatial"]
    scoring: Any = FeatureScoring(normal(0, 12), 2 * normal(0, 12))
    found, left_out = compute_metrics([each for each in chosen if each.is_own], scoring)
    assert [(score.metric.name, score.result.estimate.value) for score in found] == [("spread_spatial", 2)]
    assert left_out == [
        "Broken, spatial: The metric failed: KeyError: 'key'",
        "Wrong, spatial: The metric returned str; expected a number, an Estimate, a Result or None.",
    ]
    assert not any(each.is_own for each in choose_metrics())


@pytest.mark.parametrize(
    "target, expected",
    [
        ("own.py:taken", 'the name "frechet_spatial" is taken'),
        ("own.py:bare", "is not a metric: put `@metric"),
        ("own.py:missing", "has no missing"),
        ("no_such_module_anywhere:name", "cannot be imported"),
        ("own.py", "expected module:name or file.py:name"),
    ],
)
def test_what_is_not_a_metric_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, expected: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CardioDiTError, match=expected):
        choose_metrics([target])


@pytest.mark.parametrize(
    "name, title, group, better, expected",
    [
        ("Bad name", "T", "distribution", "lower", "only lower-case letters"),
        ("m", " ", "distribution", "lower", "the title is empty"),
        ("m", "T", "beauty", "lower", 'group="beauty" is unknown; choose one of distribution'),
        ("m", "T", "distribution", "large", 'better="large" is unknown'),
    ],
)
def test_records_are_checked(name: str, title: str, group: str, better: str, expected: str) -> None:
    with pytest.raises(CardioDiTError, match=expected):
        metric(name, title, group=group, better=better)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 1), (0, 0, 1)),
        ((-1, None), (-1, -1, 2.3)),
        ((None, None), (-1.2, -1.4, 2.3)),
    ],
)
def test_values_intervals_and_floors_stay_within_the_range_of_the_metric(
    bounds: tuple[float | None, float | None], expected: tuple[float, float, float]
) -> None:
    def beyond(features: Features) -> Result:
        return Result(Estimate(-1.2, -1.4, 2.3), Floor(0.5, -1.1, 2.3, 0.4, None))

    record = replace(choose_metrics()[0], compute=beyond, bounds=bounds)
    scoring: Any = FeatureScoring(normal(0, 4), normal(1, 4))
    ((score,), _) = compute_metrics([record], scoring)
    estimate, floor = score.result.estimate, score.result.floor
    assert (estimate.value, estimate.low, estimate.high) == expected and floor is not None
    ends = [-1.1 if bounds[0] is None else max(-1.1, bounds[0]), 2.3 if bounds[1] is None else min(2.3, bounds[1])]
    assert (floor.low, floor.high) == tuple(ends)
    noted = [note for note in estimate.notes if "outside of the metric's range" in note]
    assert len(noted) == (bounds[0] is not None)


def test_every_metric_that_is_a_share_or_a_distance_has_a_range() -> None:
    unbounded = {
        each.name.rpartition("_spa")[0] or each.name for each in choose_metrics() if each.bounds == (None, None)
    }
    shifts = {"reconstruction_psnr", "reconstruction_lv_edv_shift_ml"}
    assert unbounded == {"mmd_rbf", "kid_polynomial", *shifts}  # unbiased estimates may be negative


def test_the_key_of_an_earlier_version_repeats_the_same_metric() -> None:
    found = scores(normal(0, 12), normal(1, 12))
    line, earlier = found["mmd_rbf"].to_dict(), found["mmd_rbf"].under_former_name()
    assert earlier == {**line, "name": "kid_spatial", "renamed": "mmd_rbf_spatial"}
    assert [name for name, score in found.items() if score.metric.former] == ["mmd_rbf"]


def test_typicality_in_numbers() -> None:
    real = np.arange(5.0)[:, None]
    own, others = typicality(real, np.array([[1.0], [10.0]]))
    # Means over the three nearest: 2, 4/3, 4/3, 4/3, 2; the median is 4/3.
    assert own == pytest.approx([1.5, 1, 1, 1, 1.5])
    assert others == pytest.approx([(0 + 1 + 1) / 3 / (4 / 3), 7 / (4 / 3)])
    same = typicality(np.ones((3, 2)), np.ones((2, 2)))
    assert [values.tolist() for values in same] == [[1, 1, 1], [1, 1]]
