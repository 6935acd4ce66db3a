"""Altered copies of every kind are found at a threshold that 5% of unseen hearts reach."""

import numpy as np
import pytest

from cardiodit.evaluation.volume_sets import open_real
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging import Intensity, Preprocessing
from cardiodit.imaging.phantom import write_cohort
from cardiodit.privacy.detectors import PIXELS, DetectorConfig
from cardiodit.privacy.planted import INTENSITY, KINDS, PLAIN, WARPED, kinds_for, plant, sensitivity
from cardiodit.privacy.search import Embedded, References, embed_all
from cardiodit.privacy.statistics import LEVEL

COPIED = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The share found of each kind; the threshold comes from hearts that the training set does not hold."""
    config, folder = DetectorConfig(PIXELS), tmp_path_factory.mktemp("planted")
    steps, rows = Preprocessing(intensity=Intensity("p0.5", "p99.5")), folder / "rows"
    counts = {"training": 12, "held_out": 19, "others": COPIED}
    for seed, (name, count) in enumerate(counts.items()):
        write_cohort(folder / name, count, seed, (48, 48, 3, 8))
    items = {name: open_real(folder / name / "manifest.csv").items for name in counts}
    described = {
        name: [
            each
            for each in embed_all(items[name], steps, config, rows, Workers(), name != "training")
            if isinstance(each, Embedded)
        ]
        for name in items
    }
    patients = [item.case.subject for item in items["training"] if item.case is not None]
    references = References.of(described["training"], patients)
    held_out = described["held_out"]
    nearest = references.distances(lambda i: held_out[i].rows(), len(held_out)).min(axis=1)
    threshold = float(np.sort(nearest)[int(LEVEL * (len(held_out) + 1)) - 1])
    report = sensitivity(config, references, threshold, items["training"][:COPIED], items["others"], steps, Workers())
    return {kind["kind"]: kind for kind in report}


def test_every_kind_of_the_list_is_planted(found: dict[str, dict]) -> None:
    assert set(found) == set(KINDS) == set(kinds_for(is_cine=True))
    assert {"phase", "reversed", "frames"} == set(KINDS) - set(kinds_for(is_cine=False))
    assert all(kind["planted"] == COPIED and kind["low"] <= kind["found"] <= kind["high"] for kind in found.values())


@pytest.mark.parametrize(("groups", "least"), [((PLAIN, INTENSITY), 0.95), ((WARPED,), 0.85)])
def test_copies_are_found(found: dict[str, dict], groups: tuple[str, ...], least: float) -> None:
    shares = {name: kind["found"] for name, kind in found.items() if kind["group"] in groups}
    assert np.mean(list(shares.values())) >= least, shares


def test_a_copy_stays_in_range_and_depends_on_its_generator_alone() -> None:
    rng = np.random.default_rng(0)
    voxels, other = rng.uniform(-1, 1, (2, 24, 24, 4, 8)).astype(np.float32)
    for name in KINDS:
        first, again = (plant(name, voxels, other, np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(first, again) and first.dtype == np.float32 and np.abs(first).max() <= 1
        assert first.shape[:3] == voxels.shape[:3]
        assert name == "exact" or not np.array_equal(first, voxels)
