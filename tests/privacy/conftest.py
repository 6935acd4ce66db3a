"""Small cohorts of hearts, a small model that was trained on one of them, and its samples with planted copies."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cardiodit import CardioDiTPipeline
from cardiodit.imaging.manifest import prepare_case, read_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.privacy.planted import plant

SAVED = Path(__file__).parents[1] / "fixtures" / "saved" / "cardiodit-0.1"
SIZE = (32, 32, 3, 8)
STEPS = {"size": [32, 32, None], "frames": 8, "intensity": {"low": "p0.5", "high": "p99.5"}}
COPIES = ("exact", "gamma", "phase", "flip")


@pytest.fixture(scope="package")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifests of 24 training hearts, 30 held-out ones and 24 others, of whom a generator could make samples."""
    folder = tmp_path_factory.mktemp("cohorts")
    counts = {"training": 24, "held_out": 30, "others": 24}
    for seed, (name, count) in enumerate(counts.items()):
        write_cohort(folder / name, count, seed, SIZE)
    return {name: folder / name / "manifest.csv" for name in counts}


@pytest.fixture(scope="package")
def steps() -> Preprocessing:
    return Preprocessing.from_dict({**Preprocessing().to_dict(), **STEPS})


@pytest.fixture(scope="package")
def samples(cohorts: dict[str, Path], steps: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 hearts of nobody in the cohorts, and four copies of training hearts."""
    folder = tmp_path_factory.mktemp("samples")
    training, others = (
        [prepare_case(case, steps).volume for case in read_manifest(cohorts[name])] for name in ("training", "others")
    )
    for place, volume in enumerate(others[:20]):
        write_nifti(folder / f"other-{place:02d}.nii.gz", volume.voxels, volume.geometry)
    for place, (kind, volume) in enumerate(zip(COPIES, training)):
        copied = plant(kind, volume.voxels, others[-1].voxels, np.random.default_rng(place))
        write_nifti(folder / f"copy-{kind}.nii.gz", copied, volume.geometry)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small pipeline folder."""
    return Path(shutil.copytree(SAVED, tmp_path / "model"))


@pytest.fixture(scope="session")
def pipe() -> CardioDiTPipeline:
    return CardioDiTPipeline.from_pretrained(SAVED)
