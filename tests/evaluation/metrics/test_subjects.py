"""Several volumes of one subject: an ideal generator is not judged worse because siblings resemble each other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.compatibility import VolumeStats
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics import frechet_limit, numbers
from cardiodit.evaluation.metrics.estimate import Estimate
from cardiodit.evaluation.metrics.registry import DRAWS, Score, Scoring, choose_metrics, compute_by_subject
from cardiodit.evaluation.report.summary import WORSE, verdict
from cardiodit.evaluation.volume_sets import Item, VolumeSet
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Preprocessing

STATS = VolumeStats((1, 1, 1, 1), None, None, (-1.0, 1.0), None)
PATIENTS, DIMENSIONS = 16, 4
JUDGED = ("frechet_spatial", "mmd_rbf_spatial", "kid_polynomial_spatial", "wasserstein_lv_ef_percent")


def measured_set(name: str, rows: np.ndarray, subjects: list[str]) -> MeasuredSet:
    items = [Item(str(i), name, Path(f"{i}.nii"), subject=subject) for i, subject in enumerate(subjects)]
    measured = [
        Measured(f"{name}{i:04}", STATS, {"spatial": row}, {"lv_ef_percent": 60 + 5 * float(row[0])}, {}, None)
        for i, row in enumerate(rows)
    ]
    return MeasuredSet(VolumeSet(name, items), items, measured)


def patients(seed: int, visits: int) -> MeasuredSet:
    """Patients with visits that resemble each other."""
    rng = np.random.default_rng([seed, visits])
    people = rng.normal(size=(PATIENTS, DIMENSIONS))
    rows = np.repeat(people, visits, axis=0) + 0.1 * rng.normal(size=(PATIENTS * visits, DIMENSIONS))
    return measured_set("real", rows, [f"p{i // visits}" for i in range(len(rows))])


def ideal_samples(seed: int, count: int) -> MeasuredSet:
    """Samples of the patients' own distribution, each a heart of its own."""
    rows = np.sqrt(1.01) * np.random.default_rng([seed, 99]).normal(size=(count, DIMENSIONS))
    return measured_set("synthetic", rows, [""] * count)


def judge(real: MeasuredSet, synthetic: MeasuredSet, names: Sequence[str] = JUDGED) -> dict[str, Score]:
    scoring = Scoring(real, synthetic, Preprocessing(), 0, Workers(), Path())
    scores, left_out = compute_by_subject([each for each in choose_metrics() if each.name in names], scoring)
    assert not left_out
    return {score.metric.name: score for score in scores}


def blamed(names: Sequence[str], generators: int, is_known: bool) -> dict[str, int]:
    """Return how many ideal generators each metric calls worse, with two visits of each patient."""
    counts = dict.fromkeys(names, 0)
    for seed in range(generators):
        real = patients(seed, 2)
        if not is_known:
            real = replace(real, items=[replace(item, subject="") for item in real.items])
        for name, score in judge(real, ideal_samples(seed, 2 * PATIENTS), names).items():
            counts[name] += verdict(score.to_dict()) == WORSE
    return counts


@pytest.mark.parametrize("generators", [10, pytest.param(40, marks=pytest.mark.proof)])
def test_ideal_generators_are_rarely_judged_worse_with_two_visits_of_each_patient(
    generators: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the value at infinitely many volumes, which takes long and is not judged."""
    monkeypatch.setattr(frechet_limit, "frechet_estimate", lambda real, *_, **__: Estimate(float(len(real))))
    monkeypatch.setattr(numbers, "DRAWS", 199)
    known = blamed(JUDGED, generators, is_known=True)
    assert max(known.values()) <= 0.1 * generators, known
    unknown = blamed(["frechet_spatial"], generators, is_known=False)
    assert unknown["frechet_spatial"] > 0.2 * generators, unknown  # what the subjects are for


def test_halves_and_counts_are_of_subjects() -> None:
    found = judge(patients(0, 3), ideal_samples(0, 40))
    for name, score in found.items():
        floor = score.result.floor
        assert floor is not None and floor.volumes == (None if name.startswith("wasserstein") else PATIENTS // 2)
        assert f"Mean over {DRAWS} random choices of one volume per subject." in score.result.estimate.notes
    compared = found["wasserstein_lv_ef_percent"].result.distribution
    assert compared is not None and compared["comparison"]["real"]["count"] == PATIENTS


def test_one_volume_per_subject_changes_nothing() -> None:
    named = judge(patients(1, 1), ideal_samples(1, 20))
    real = patients(1, 1)
    nameless = judge(replace(real, items=[replace(item, subject="") for item in real.items]), ideal_samples(1, 20))
    assert {name: score.to_dict() for name, score in named.items()} == {
        name: score.to_dict() for name, score in nameless.items()
    }


def test_the_choice_depends_on_the_contents_and_not_on_their_order() -> None:
    real, samples = patients(2, 2), ideal_samples(2, 20)
    order = np.random.default_rng(0).permutation(len(real.items))
    turned = replace(real, items=[real.items[i] for i in order], measured=[real.measured[i] for i in order])
    before, after = judge(real, samples), judge(turned, samples)
    assert {n: s.to_dict() for n, s in before.items()} == {n: s.to_dict() for n, s in after.items()}


def test_every_choice_has_one_volume_of_each_subject_and_all_are_used() -> None:
    scoring: Any = Scoring(patients(3, 2), ideal_samples(3, 20), Preprocessing(), 0, Workers(), Path())
    draws = scoring.draws()
    assert len(draws) == DRAWS
    for draw in draws:
        assert sorted(item.subject for item in draw.real.items) == sorted(f"p{i}" for i in range(PATIENTS))
        assert draw.synthetic is scoring.synthetic
    assert len({measured.content for draw in draws for measured in draw.real.measured}) > 1.6 * PATIENTS


def test_a_set_of_one_subject_is_computed_as_it_is() -> None:
    real = replace(patients(4, 1), items=[replace(item, subject="only") for item in patients(4, 1).items])
    assert not real.has_repeated_subjects and len(real.by_subject) == 1
