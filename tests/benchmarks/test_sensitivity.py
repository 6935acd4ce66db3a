"""The broken generators are broken as they say, and the table counts what an evaluation notices."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.metrics.function import heart_function

SIZE = (32, 32, 5, 10)


@pytest.fixture(scope="module")
def script(load_script: Any) -> ModuleType:
    return load_script("sensitivity")


@pytest.fixture(scope="module")
def sets(script: ModuleType) -> dict[str, list[Any]]:
    """Samples of every generator, from four hearts."""
    hearts, training = script.phantoms(2, 4, SIZE), script.phantoms(1, 4, SIZE)
    return {name: change(hearts, training, np.random.default_rng(0)) for name, change in script.BREAKS.items()}


def test_every_generator_keeps_the_grid_and_changes_something(script: ModuleType, sets: dict[str, list[Any]]) -> None:
    ideal = sets["ideal 1"]
    assert len(sets) >= 28
    for name, hearts in sets.items():
        assert len(hearts) == len(ideal), name
        for heart in hearts:
            assert heart.image.shape == heart.labels.shape == SIZE, name
            assert np.abs(heart.image).max() <= 1 and set(np.unique(heart.labels)) <= {0, 1, 2, 3}, name
        if name.startswith("ideal"):
            continue
        changed = [
            not np.array_equal(one.image, other.image)
            or not np.array_equal(one.labels, other.labels)
            or one.geometry != other.geometry
            for one, other in zip(hearts, ideal, strict=True)
        ]
        assert any(changed), name


def test_some_of_them_in_numbers(sets: dict[str, list[Any]]) -> None:
    ideal = sets["ideal 1"]
    half = sets["half of the motion"]
    for before, after in zip(ideal, half, strict=True):
        fractions = [heart_function(heart.labels, heart.geometry).lv.ef for heart in (before, after)]
        assert 0.2 < fractions[1] / fractions[0] < 0.9
    still = sets["static"][0]
    assert np.ptp(still.image, axis=3).max() == 0
    spread = [
        np.var([heart.image for heart in sets[n]], axis=0).sum()
        for n in ("ideal 1", "too little variety (× 0.7 around the mean)")
    ]
    assert spread[1] / spread[0] == pytest.approx(0.49, rel=1e-3)
    cut = sets["beat cut at 70%"][0]
    assert np.array_equal(cut.image[..., -1], ideal[0].image[..., 6])


def metric(name: str, group: str, matched: float, p_value: float | None = None) -> dict[str, Any]:
    floor = {"value": 1.5, "low": 1.0, "high": 2.0, "matched": matched, "volumes": None}
    return {"name": name, "title": name, "group": group, "better": "lower", "floor": floor, "p_value": p_value}


def test_the_table_counts_verdicts_and_names_evidence(script: ModuleType) -> None:
    comparison = {"p_value": 0.001, "wasserstein": 6.0, "floor_high": 2.0}
    report = {
        "metrics": [
            metric("frechet_spatial", "distribution", 1.5),
            metric("mmd_rbf_spatial", "distribution", 4.0),
            metric("recall_spatial", "distribution", 0.9),
            metric("wasserstein_lv_systole_percent", "timing", 6.0, 0.001),
            metric("wasserstein_lv_edv_ml", "function", 3.0, 0.3),
            {**metric("kid_spatial", "distribution", 4.0), "renamed": "mmd_rbf_spatial"},
        ],
        "distributions": [
            {"name": "lv_systole_percent", "title": "Systole", "comparison": comparison},
            {"name": "lv_edv_ml", "title": "EDV", "comparison": {**comparison, "p_value": 0.3}},
        ],
        "protocol": {"counts": {"real": 20, "synthetic": 20}, "notes": []},
        "sets": {},
    }
    found = script.judge(report)
    assert found["verdicts"] == [3, 5] and found["verdicts_0_1"] == [2, 4] and found["suspicious"] == 1
    assert (found["differing"], found["differing_0_1"]) == (1, 0)
    assert found["evidence"] == ["Systole", "mmd_rbf_spatial"]
    assert "| broken | 2 of 4 | 3 of 5 | 0 | 1 | 1 | Systole; mmd_rbf_spatial |" in script.table({"broken": found})
