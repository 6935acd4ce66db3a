"""The copy detector is trained from the command line, resumes, and is a detector of `cardiodit audit`."""

import json
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import prepare_case, read_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.copy_detector import CopyDetector
from cardiodit.privacy.detectors import DetectorConfig, check_unseen, open_detector
from cardiodit.training import train_copy_detector

from ..conftest import train

PREPROCESSING = {"size": [16, 16, None], "frames": 4, "intensity": {"low": "p0.5", "high": "p99.5"}}
CONFIG = {
    "model": {"size": [4, 16, 16]},
    "data": {"preprocessing": PREPROCESSING},
    "training": {
        "train_batch_size": 4,
        "max_train_steps": 30,
        "validation_steps": 10,
        "checkpointing_steps": 10,
        "learning_rate": 1e-3,
        "report_to": "none",
    },
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("hearts")
    for seed, (name, count) in enumerate({"training": 8, "validation": 4}.items()):
        write_cohort(folder / name, count, seed, (16, 16, 2, 4))
    return [folder / name / "manifest.csv" for name in ("training", "validation")]


def test_it_learns_resumes_and_is_used_by_the_audit(manifests: list[Path], tmp_path: Path) -> None:
    folder = train(train_copy_detector, tmp_path, "detector", CONFIG, manifests, "--cpu", "--max_train_steps", "20")
    folder = train(train_copy_detector, tmp_path, "detector", CONFIG, manifests, "--cpu")
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in losses if "loss" in line]
    assert np.mean(trained[-5:]) < np.mean(trained[:5])
    assert any("validation_recognition_error" in line for line in losses)

    model = CopyDetector.from_pretrained(folder / "best" / "copy_detector")
    steps = Preprocessing.from_dict(model.config.preprocessing)
    cases = read_manifest(manifests[0])
    assert model.config.is_cine and model.config.training_data == PreparedVolumes(cases, steps).identity

    detector = open_detector(DetectorConfig(str(folder)))
    voxels = prepare_case(cases[0], steps).volume.voxels
    assert detector.rows(voxels, None, is_query=False).shape == (1, 2, 32)
    assert detector.rows(voxels, None, is_query=True).shape == (4, 2, 32)
    assert detector.describe()["training"] == model.config.training_data

    unseen = write_cohort(tmp_path / "unseen", 2, 9, (16, 16, 2, 4))
    check_unseen(detector, [case.image for case in read_manifest(unseen)])
    for manifest in manifests:
        with pytest.raises(CardioDiTError, match="trained or validated on 1 of the held-out files"):
            check_unseen(detector, [read_manifest(unseen)[0].image, read_manifest(manifest)[1].image])


def test_volumes_without_frames_are_embedded_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in {"training": 4, "validation": 2}.items():
        (tmp_path / name).mkdir()
        for place in range(count):
            write_nifti(tmp_path / name / f"{name}{place}.nii.gz", rng.uniform(0, 1, (8, 8, 8)), Geometry((1, 1, 1)))
        files = "".join(f"{name}{place}.nii.gz\n" for place in range(count))
        (tmp_path / name / "manifest.csv").write_text(f"image\n{files}")
    config = {**CONFIG, "model": {"size": [8, 8, 8]}, "data": {"preprocessing": {"frames": 1}}}
    ids = [tmp_path / name / "manifest.csv" for name in ("training", "validation")]
    folder = train(train_copy_detector, tmp_path, "chests", config, ids, "--cpu", "--max_train_steps", "2")
    assert not CopyDetector.from_pretrained(folder / "best" / "copy_detector").config.is_cine


def test_a_single_patient_cannot_be_contrasted(manifests: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="it needs at least 2"):
        train(train_copy_detector, tmp_path, "one", CONFIG, manifests, "--cpu", "--train_batch_size", "1")
    with pytest.raises(CardioDiTError, match="There are 8 training and 4 validation volumes; at least a batch"):
        train(train_copy_detector, tmp_path, "many", CONFIG, manifests, "--cpu", "--train_batch_size", "9")
