"""`cardiodit sample --filter`: copies of training volumes are dropped, and the list of samples says so."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cardiodit import CardioDiTPipeline
from cardiodit._util.sample_records import read_sample_list
from cardiodit.cli import main
from cardiodit.evaluation.volume_sets import open_synthetic
from cardiodit.imaging import Intensity, Preprocessing
from cardiodit.privacy.audit import AuditSettings, audit
from cardiodit.privacy.report import read_audit
from cardiodit.privacy.sample_filter import NOTE

STEPS = Preprocessing(intensity=Intensity(0, 1000))
COPIED = (1, 4)  # samples of seed 0 that are also training volumes
COUNT = 6


@pytest.fixture(scope="module")
def audited(make_pipe: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its audit, and a training set in which two of its samples lie, as if it had memorized them."""
    folder = tmp_path_factory.mktemp("audited")
    pipe: CardioDiTPipeline = make_pipe(vae={"preprocessing": STEPS.to_dict(), "spacing": (2.0, 2.0, 8.0)})
    pipe.save_pretrained(folder / "model")
    for name, seed, count in (("training", 5, 22), ("held_out", 7, 20), ("samples", 0, COUNT)):
        pipe(num_samples=count, seed=seed, num_inference_steps=2).save(folder / name)
    for index in COPIED:
        shutil.copy(folder / "samples" / f"seed0-{index:05d}.nii.gz", folder / "training" / f"patient{index}.nii.gz")
    for name in ("training", "held_out"):
        write_manifest(folder / f"{name}.csv", sorted((folder / name).glob("*.nii.gz")))
    found = audit(
        AuditSettings(
            training=folder / "training.csv",
            held_out=folder / "held_out.csv",
            synthetic=folder / "samples",
            output_dir=folder / "audit",
            model=str(folder / "model"),
            detectors=("pixels",),
            noise_levels=0,
            planted=0,
        )
    )
    assert found is not None
    return folder


def write_manifest(path: Path, images: list[Path]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "subject", "slices", "ed_frame"])
        rows.writerows([image, f"{path.stem}-{image.name[:-7]}", "base to apex", 0] for image in images)


def sample(audited: Path, output: Path, *more: str, filtered: str = "audit") -> int:
    options = ["--num_inference_steps", "2", "--output_dir", str(output), "--device", "cpu", *more]
    if filtered:
        options += ["--filter", str(audited / filtered), "--training", str(audited / "training.csv")]
    return main(["sample", str(audited / "model"), *options])


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.nii.gz"))


def test_copies_are_dropped_and_listed_whatever_the_batch_size_and_after_an_interruption(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sample(audited, tmp_path / "once", "--num_samples", str(COUNT)) == 0
    printed = capsys.readouterr().out
    records = read_sample_list(tmp_path / "once", with_dropped=True)
    dropped = {name: record for name, record in records.items() if "dropped" in record}
    copies = {f"seed0-{index:05d}.nii.gz" for index in COPIED}
    threshold = read_audit(audited / "audit")["detectors"][0]["copies"]["threshold"]
    assert copies <= set(dropped) < set(records)
    assert set(kept(tmp_path / "once")) == set(records) - set(dropped)
    distances = [re.search(r"pixels measures a distance of (\S+) to", dropped[name]["dropped"]) for name in copies]
    assert all(found and float(found[1]) < 1e-3 for found in distances)
    assert all(f"{threshold:.4g} or more away" in record["dropped"] for record in dropped.values())
    assert all(record["filter"]["note"] == NOTE for record in records.values())
    assert f"dropped {len(dropped)}: " in printed and NOTE in printed

    assert sample(audited, tmp_path / "parts", "--num_samples", "3", "--batch_size", "2") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.nii.gz")}
    assert sample(audited, tmp_path / "parts", "--num_samples", str(COUNT), "--batch_size", "4") == 0
    assert kept(tmp_path / "parts") == kept(tmp_path / "once")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    again = read_sample_list(tmp_path / "parts", with_dropped=True)
    assert {n: r.get("dropped") for n, r in again.items()} == {n: r.get("dropped") for n, r in records.items()}
    lines = (tmp_path / "parts" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == COUNT  # none was generated twice


def test_an_evaluation_of_what_is_left_says_that_it_was_filtered(audited: Path, tmp_path: Path) -> None:
    sample(audited, tmp_path / "samples", "--num_samples", str(COUNT))
    left = open_synthetic(tmp_path / "samples")
    assert not left.problems and len(left.items) == len(kept(tmp_path / "samples"))
    assert f"of {COUNT} samples as copies of training volumes" in left.notes[0]
    assert not open_synthetic(audited / "samples").notes


def test_filtered_and_other_samples_are_not_mixed(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sample(audited, tmp_path / "samples", "--num_samples", "2")
    assert sample(audited, tmp_path / "samples", "--num_samples", "3", filtered="") == 1
    assert "filter was by pixels of the audit" in capsys.readouterr().err
    shutil.copytree(audited / "samples", tmp_path / "unfiltered")
    assert sample(audited, tmp_path / "unfiltered", "--num_samples", str(COUNT)) == 1
    assert "filter was none, now by pixels of the audit" in capsys.readouterr().err


def test_an_audit_alone_is_enough_and_nothing_about_patients_is_left_beside_it(audited: Path, tmp_path: Path) -> None:
    shutil.copy(audited / "audit" / "audit.json", tmp_path / "audit.json")
    options = ["--filter", str(tmp_path / "audit.json"), "--training", str(audited / "training.csv")]
    assert sample(audited, tmp_path / "samples", "--num_samples", "2", *options, filtered="") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "samples"]
    assert "seed0-00001.nii.gz" not in kept(tmp_path / "samples")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda report: report["detectors"][0]["copies"].pop("threshold"), "records no threshold for samples"),
        (lambda report: report["detectors"][0]["detector"].update(identity="0"), "is not the one that"),
        (lambda report: report["detectors"][0]["detector"].update(name="trained"), "name its run folder with"),
        (lambda report: report["preprocessing"].update(frames=3), "in another way than this model's training"),
        (lambda report: report["sets"]["training"].update(identity="0"), "does not list the 24 training volumes"),
    ],
)
def test_an_audit_of_something_else_is_refused(
    audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable, sentence: str
) -> None:
    report = read_audit(audited / "audit")
    change(report)
    (tmp_path / "audit.json").write_text(json.dumps(report))
    options = ["--filter", str(tmp_path / "audit.json"), "--training", str(audited / "training.csv")]
    assert sample(audited, tmp_path / "samples", *options, filtered="") == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_a_filter_needs_the_training_volumes(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert sample(audited, tmp_path / "samples", "--filter", str(audited / "audit"), filtered="") == 1
    assert "give --filter and --training" in capsys.readouterr().err
