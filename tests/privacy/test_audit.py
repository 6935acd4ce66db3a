"""`cardiodit audit` from manifests to report: planted copies are found and named, bad input is explained."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit import VQModel4D
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.reconstruction import reconstruct
from cardiodit.evaluation.volume_sets import open_real, open_synthetic
from cardiodit.evaluation.workers import Workers
from cardiodit.hub.bundled_models import find_model
from cardiodit.imaging.manifest import prepare_case, read_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.privacy.audit import AuditSettings, audit
from cardiodit.privacy.audit import _detectors as detectors_of
from cardiodit.privacy.detectors import DetectorConfig, open_detector
from cardiodit.privacy.report import INTERNAL_MARK, read_audit
from cardiodit.privacy.search import References, embed_all

from .conftest import COPIES


@pytest.fixture(scope="module")
def steps_file(steps: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("steps") / "steps.json"
    path.write_text(json.dumps(steps.to_dict()))
    return path


@pytest.fixture
def settings(cohorts: dict[str, Path], samples: Path, steps_file: Path, tmp_path: Path) -> Callable[..., AuditSettings]:
    def make(**changes: Any) -> AuditSettings:
        given = {"training": cohorts["training"], "held_out": cohorts["held_out"], "synthetic": samples}
        given |= {"output_dir": tmp_path / "audit", "preprocessing": str(steps_file), "planted": 0}
        return AuditSettings(**{**given, **changes})

    return make


@pytest.fixture(scope="module")
def written(
    cohorts: dict[str, Path], samples: Path, steps_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an audit from the command line."""
    folder = tmp_path_factory.mktemp("audit")
    options = ["--training", str(cohorts["training"]), "--held_out", str(cohorts["held_out"]), "--planted", "1"]
    options += ["--synthetic", str(samples), "--output_dir", str(folder), "--preprocessing", str(steps_file)]
    assert main(["audit", *options, "--detector", "pixels", "random", "--signed_by", "A. Auditor"]) == 0
    return folder


def test_planted_copies_are_named_and_others_are_not(written: Path) -> None:
    report = read_audit(written)
    named = {sample["file"] for sample in report["samples"] if sample["is_copy"]}
    assert named >= {f"copy-{kind}.nii.gz" for kind in COPIES}
    assert len(named) <= len(COPIES) + 1
    first = report["detectors"][0]
    assert first["copies"]["excess"]["value"] == pytest.approx(4 / 24, abs=0.06)
    assert first["named_patients"] >= 4
    assert "evidence that the model reproduces training patients" in report["conclusion"][-1]


def test_every_detector_reports_its_own_findings_and_sensitivity(written: Path) -> None:
    report = read_audit(written)
    assert [part["detector"]["name"] for part in report["detectors"]] == ["pixels", "random"]
    found = {kind["kind"]: kind["found"] for kind in report["detectors"][0]["sensitivity"]}
    assert all(found[kind] == 1 for kind in ("exact", "gamma", "contrast", "flip", "phase", "one_slice"))
    assert {attack["detector"] for attack in report["attacks"]} == {"pixels", "random"}
    assert all(0 <= attack["auc"]["value"] <= 1 for attack in report["attacks"])


def test_the_shareable_report_names_nobody_and_no_folder(written: Path, cohorts: dict[str, Path]) -> None:
    text = (written / "audit.json").read_text()
    with cohorts["training"].open() as file:
        subjects = [row["subject"] for row in csv.DictReader(file)]
    assert not any(subject in text for subject in subjects)
    assert str(cohorts["training"].parent) not in text
    assert all(word not in text.lower() for word in ("is anonymous", "is safe"))


def test_the_page_is_marked_internal_and_signed(written: Path) -> None:
    page = (written / "audit.html").read_text()
    assert INTERNAL_MARK in page and "Internal." in page and "A. Auditor" in page
    assert page.count("<canvas") == 16


def test_an_interrupted_audit_resumes_and_gives_the_same_report(
    settings: Callable[..., AuditSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = audit(settings())
    rows = sorted((tmp_path / "audit" / "described").glob("*.npy"))
    rows[0].unlink()
    rows[1].write_bytes(rows[1].read_bytes()[:40])
    with pytest.warns(UserWarning, match="are damaged"):
        again = audit(settings())
    assert first is not None and again is not None and first.report == again.report
    shared = audit(settings(output_dir=tmp_path / "shared", share=(1, 2)))
    assert shared is None and list((tmp_path / "shared" / "described").glob("*.npy"))
    assert audit(settings(output_dir=tmp_path / "shared", share=(0, 2))).report == first.report  # type: ignore[union-attr]


def test_a_generator_of_others_shows_no_evidence(
    settings: Callable[..., AuditSettings], cohorts: dict[str, Path]
) -> None:
    found = audit(settings(synthetic=cohorts["others"]))
    assert found is not None
    copies = found.report["detectors"][0]["copies"]
    assert copies["excess"]["low"] <= 0 and copies["p_value"] > 0.05
    assert not any(sample["is_copy"] for sample in found.report["samples"])
    assert "no evidence" in found.report["conclusion"][-1]


def without_rows(manifest: Path, target: Path, keep: int, **changes: str) -> Path:
    with manifest.open() as file:
        rows = list(csv.DictReader(file))[:keep]
    for row in rows:
        row |= {key: str(manifest.parent / row[key]) for key in ("image", "mask", "volumes") if row.get(key)} | changes
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def test_too_few_held_out_patients_are_refused(
    settings: Callable[..., AuditSettings], cohorts: dict[str, Path], tmp_path: Path
) -> None:
    few = without_rows(cohorts["held_out"], tmp_path / "few.csv", 18)
    with pytest.raises(CardioDiTError, match="There are 18 held-out patients. With fewer than 19, no copy"):
        audit(settings(held_out=few))
    one = without_rows(cohorts["held_out"], tmp_path / "one.csv", 30, subject="the same")
    with pytest.raises(CardioDiTError, match="There are 1 held-out patients"):
        audit(settings(held_out=one))


def test_training_patients_are_not_held_out(
    settings: Callable[..., AuditSettings], cohorts: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CardioDiTError, match="is in training and in held-out"):
        audit(settings(held_out=cohorts["training"]))
    renamed = without_rows(cohorts["training"], tmp_path / "renamed.csv", 24)
    renamed.write_text(renamed.read_text().replace("seed0-", "other-"))
    with pytest.raises(CardioDiTError, match="24 held-out files equal training files byte for byte"):
        audit(settings(held_out=renamed))


def test_another_preprocessing_or_an_empty_set_is_refused(
    settings: Callable[..., AuditSettings], tmp_path: Path
) -> None:
    other = Preprocessing.from_dict({**Preprocessing().to_dict(), "size": [16, 16, None], "frames": 8})
    (tmp_path / "other.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(CardioDiTError, match="The sets differ in size"):
        audit(settings(preprocessing=str(tmp_path / "other.json")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CardioDiTError, match="contains no NIfTI file"):
        audit(settings(synthetic=tmp_path / "empty"))
    with pytest.raises(CardioDiTError, match="neither pixels, reconstructions, latents or a feature network"):
        audit(settings(detectors=("nothing",)))


def test_an_unreadable_sample_is_listed(settings: Callable[..., AuditSettings], samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in samples.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    found = audit(settings(synthetic=folder))
    assert found is not None
    (problem,) = found.report["problems"]
    assert problem["file"] == "broken.nii.gz" and problem["set"] == "synthetic"


def test_the_model_decides_what_is_compared(settings: Callable[..., AuditSettings], model: Path) -> None:
    assert detectors_of(settings(), None) == ("pixels",)
    assert detectors_of(settings(model=str(model)), model) == ("pixels", "reconstructions")
    assert detectors_of(settings(model=str(model), detectors=["random"]), model) == ["random"]


def test_copies_are_recognized_however_much_the_vq_model_blurs_them(
    model: Path, cohorts: dict[str, Path], steps: Preprocessing, tmp_path: Path
) -> None:
    """A generator that memorized latents hands out training hearts as its VQ model reconstructs them."""
    vae, folder = VQModel4D.from_pretrained(find_model("cardiodit-phantom"), subfolder="vae"), tmp_path / "samples"
    vae.save_pretrained(model / "vae")
    folder.mkdir()
    for place, case in enumerate(read_manifest(cohorts["training"])[:3]):
        prepared = prepare_case(case, steps)
        write_nifti(folder / f"{place}.nii.gz", reconstruct(vae, prepared).voxels, prepared.volume.geometry)
    sets = [open_real(cohorts[name]).items[:6] for name in ("training", "held_out")] + [open_synthetic(folder).items]
    nearest = {}
    for name in ("pixels", "reconstructions"):
        config = DetectorConfig(name, str(model))
        described = [
            list(embed_all(items, steps, config, tmp_path / "cache", Workers(), place > 0))
            for place, items in enumerate(sets)
        ]
        references = References.of(described[0])
        nearest[name] = [
            references.distances(lambda i, d=queries: d[i].rows(), len(queries)) for queries in described[1:]
        ]
    to_held_out, to_samples = nearest["reconstructions"]
    assert to_samples.argmin(axis=1).tolist() == [0, 1, 2]
    assert to_samples.min(axis=1).max() < 0.01 * to_held_out.min()
    assert nearest["pixels"][1].min() > 0.01 * nearest["pixels"][0].min()  # scans are not what the model generates


def test_latents_are_compared_of_beats_of_any_length(model: Path) -> None:
    """Also of a beat whose number of frames the VQ model does not take, as planted copies have."""
    detector = open_detector(DetectorConfig("latents", str(model)))
    beat = np.random.default_rng(0).uniform(-1, 1, (32, 32, 2, 8)).astype(np.float32)
    whole, turned, cut = (
        detector.rows(voxels, None, False) for voxels in (beat, np.roll(beat, 4, axis=3), beat[..., :7])
    )
    assert whole.shape == cut.shape
    assert np.corrcoef(whole.ravel(), turned.ravel())[0, 1] > 0.95


def test_distances_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from cardiodit.privacy import search

    rng = np.random.default_rng(0)
    references = search.References(rng.standard_normal((30, 3, 8)).astype(np.float32))
    queries = rng.standard_normal((7, 2, 3, 8)).astype(np.float32)
    whole = references.distances(lambda i: queries[i], 7)
    monkeypatch.setattr(search, "ROWS", 50)
    monkeypatch.setattr(search, "BLOCK", 50)
    assert np.allclose(whole, references.distances(lambda i: queries[i], 7), atol=1e-5)
    unit = search.unit(queries - references.mean)
    by_hand = 1 - np.corrcoef(unit[0, 1, 2], search.unit(references.rows - references.mean)[5, 0])[0, 1]
    slices, _ = references._distances(queries)
    assert slices[0, 5] <= by_hand + 1e-5
