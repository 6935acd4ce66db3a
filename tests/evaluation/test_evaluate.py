"""Whole evaluations of small phantoms: what comes out, that it comes out the same, and what is refused."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from cardiodit.evaluation.metrics.consistency import MEASURES, TEMPORAL, THROUGH_PLANE
from cardiodit.imaging import Geometry, Intensity, Preprocessing, prepare_case, read_manifest, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.phantom import write_cohort

from ..conftest import copy_chests

STEPS = Preprocessing(intensity=Intensity("p0.5", "p99.5"))
COUNT = 6
FEW_FEATURES: dict[str, Any] = {
    "features": "own_code:Picky",
    "features_size": (8, 8, 4),
}  # where they do not matter
ALL_FEATURES: dict[str, Any] = {"features": "random", "features_size": None}
OWN_CODE = """
import numpy as np
import torch
from cardiodit.evaluation.metrics.function import LV, MYO, RV

def threshold(cine, geometry):
    labels = np.zeros(cine.shape, np.uint8)
    labels[cine > 0.2] = RV
    labels[8:24, 8:24] = np.where(cine[8:24, 8:24] > 0.2, LV, MYO)
    return labels

threshold.mask_order = "RV=1 MYO=2 LV=3"

def stumble(cine, geometry):
    if cine[0, 0, 0, 0] == 1:
        return {}["heart"]
    return threshold(cine, geometry)

stumble.mask_order = threshold.mask_order

class Picky(torch.nn.Module):
    def forward(self, volume):
        row = torch.stack([volume.mean(), volume.std()])
        return (row / (0 if volume[0, 0, 0, 0, 0] == 1 else 1) * (0 if volume[0, 0, 0, 0, 0] == 1 else 1))[None]
"""


def write_samples(manifest: Path, folder: Path, steps: Preprocessing = STEPS, record: bool = True) -> Path:
    """A cohort as a perfect model would have sampled it."""
    folder.mkdir()
    for i, case in enumerate(read_manifest(manifest)):
        volume = prepare_case(case, steps).volume
        file = folder / f"seed0-{i:05d}.nii.gz"
        write_nifti(file, volume.voxels, volume.geometry)
        line = {"file": file.name, "units": None, "model": "perfect", "preprocessing": steps.to_dict()}
        if record:
            with (folder / "samples.jsonl").open("a") as records:
                records.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("real", "others")):
        write_cohort(root / name, COUNT, seed=seed, size=(32, 32, 6, 8))
    write_samples(root / "others" / "manifest.csv", root / "samples")
    (root / "steps.json").write_text(json.dumps(STEPS.to_dict()))
    (root / "own_code.py").write_text(OWN_CODE)
    sys.path.insert(0, str(root))
    return root


@pytest.fixture(scope="module")
def with_masks(data: Path) -> Evaluation:
    given = {"synthetic": data / "others" / "manifest.csv", "preprocessing": str(data / "steps.json")}
    return evaluate(request(data, **given, **ALL_FEATURES))


def request(data: Path, **given: Any) -> EvaluationSettings:
    usual = {"real": data / "real" / "manifest.csv", "synthetic": data / "samples", "output_dir": data / "out"}
    usual |= FEW_FEATURES
    return EvaluationSettings(**{**usual, **given})


def metrics(found: Evaluation) -> dict[str, dict]:
    return {metric["name"]: metric for metric in found.report["metrics"]}


def test_the_report_tells_everything_of_two_cohorts(data: Path, with_masks: Evaluation) -> None:
    report = with_masks.report
    assert report["schema"] == "cardiodit-evaluation/1" and report["protocol"]["counts"] == {"real": 6, "synthetic": 6}
    groups = {metric["group"] for metric in report["metrics"]}
    assert groups == {
        *("distribution", "diversity", "function", "timing", "orientation", "plausibility", "consistency")
    }
    assert "Copies of training volumes: no manifest of them was given (--training)." in report["protocol"]["left_out"]
    (earlier,) = [metric for metric in report["metrics"] if metric["name"] == "kid_spatial"]
    assert (
        earlier["renamed"] == "mmd_rbf_spatial" and earlier["value"] == metrics(with_masks)["mmd_rbf_spatial"]["value"]
    )
    assert report["sets"]["real"]["size"] == [32, 32, 6, 8] and report["sets"]["real"]["intensity"] == [-1, 1]
    assert report["protocol"]["features"]["spatial"]["note"].startswith("random features")
    assert report["protocol"]["labels"] == {"real": "masks", "synthetic": "masks"}
    assert not report["problems"] and len(report["volumes"]) == 12
    written = (data / "out" / "report.json").read_text()
    assert json.loads(written) == report
    assert str(data) not in written and "/tmp" not in written
    assert {file.name for file in with_masks.files} == {"report.json", "table.md", "model-index.yaml", "report.html"}
    assert all(file.stat().st_size for file in with_masks.files)


def test_function_is_that_of_the_phantoms(data: Path, with_masks: Evaluation) -> None:
    rows = [case.row for case in read_manifest(data / "real" / "manifest.csv")]
    held = {volume["id"]: volume["numbers"] for volume in with_masks.report["volumes"]}
    for row in rows:
        numbers = held[f"real/{row['subject']}"]
        assert numbers["lv_edv_ml"] == pytest.approx(float(row["lv_edv_ml"]), rel=0.05)  # six slices of 17 mm
    (curve,) = [curve for curve in with_masks.report["curves"] if curve["name"] == "lv_volume_ml"]
    assert np.shape(curve["real"]) == (6, 8)
    assert max(curve["real"][0]) == held[f"real/{rows[0]['subject']}"]["lv_edv_ml"]


def exact_curves(manifest: Path) -> dict[str, dict[str, list[float]]]:
    """By the report's id the true volumes of each ventricle in each frame."""
    cases = read_manifest(manifest)
    return {f"real/{case.subject}": json.loads(case.path("volumes").read_text()) for case in cases}


def worst_error(report: dict, manifest: Path, side: str) -> float:
    """Relative, over all frames of all real hearts."""
    exact, ids = exact_curves(manifest), [volume["id"] for volume in report["volumes"] if volume["set"] == "real"]
    (curve,) = [curve for curve in report["curves"] if curve["name"] == f"{side}_volume_ml"]
    true = np.array([exact[name][side] for name in ids])
    assert np.shape(curve["real"]) == true.shape
    return float(np.abs(np.array(curve["real"]) / true - 1).max())


@pytest.mark.parametrize(
    "size, segmenter, tolerance",
    [
        ((64, 64, 16, 9), None, 0.02),  # masks, in slices thin enough to count whole voxels (see test_function)
        ((64, 64, 8, 10), "phantom-segmenter", 0.05),  # at 12.5 mm, of which counting alone is up to 3% off
    ],
)
def test_the_curves_of_phantoms_are_right(
    data: Path, tmp_path: Path, size: tuple[int, int, int, int], segmenter: str | None, tolerance: float
) -> None:
    manifest = write_cohort(tmp_path / "hearts", 2, seed=8, size=size)
    given = {"preprocessing": str(data / "steps.json"), "segmenter": segmenter, **FEW_FEATURES}
    report = evaluate(EvaluationSettings(manifest, manifest, tmp_path / "out", **given)).report
    assert worst_error(report, manifest, "lv") < tolerance
    assert worst_error(report, manifest, "rv") < tolerance


def test_neither_processes_nor_the_order_nor_the_folder_change_a_number(
    data: Path, with_masks: Evaluation, tmp_path: Path
) -> None:
    given = {"synthetic": data / "others" / "manifest.csv", "preprocessing": str(data / "steps.json")}
    same = request(data, **given, **ALL_FEATURES)
    evaluate(replace(same, output_dir=tmp_path / "two", processes=2))
    for name in ("report.json", "table.md", "model-index.yaml"):
        assert (tmp_path / "two" / name).read_bytes() == (data / "out" / name).read_bytes()
    rows = [
        {
            key: str(data / "real" / value) if key in ("image", "mask", "volumes") else value
            for key, value in c.row.items()
        }
        for c in read_manifest(data / "real" / "manifest.csv")
    ]
    write_manifest(tmp_path / "backwards.csv", rows[::-1])
    turned = evaluate(replace(same, real=tmp_path / "backwards.csv", output_dir=tmp_path / "two"))
    assert turned.cached == 12
    assert turned.report["metrics"] == with_masks.report["metrics"]
    assert turned.report["sets"] == with_masks.report["sets"]


def test_the_same_volumes_lie_at_the_floor_and_are_called_copies(data: Path, tmp_path: Path) -> None:
    manifest = data / "real" / "manifest.csv"
    found = evaluate(
        request(data, synthetic=manifest, output_dir=tmp_path, preprocessing=str(data / "steps.json"), seed=3)
    )
    assert "6 of the 6 synthetic volumes equal a real one voxel by voxel." in found.report["protocol"]["notes"]
    assert found.report["sets"]["real"]["identity"] == found.report["sets"]["synthetic"]["identity"]
    for name, metric in metrics(found).items():
        if name.startswith("wasserstein_"):
            assert metric["value"] == 0
        if name.startswith("plausible_"):
            assert metric["value"] == metric["floor"]["value"]
        if name.startswith(("frechet", "mmd")):
            assert metric["floor"]["matched"] <= metric["floor"]["high"]
    assert metrics(found)["frechet_spatial"]["value"] == 0
    assert metrics(found)["ms_ssim"]["value"] == metrics(found)["ms_ssim"]["floor"]["value"]


def test_copies_of_training_volumes_are_found(data: Path, tmp_path: Path) -> None:
    """With faint noise, which no comparison of voxels finds; the real hearts are at a usual distance."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for i, file in enumerate(sorted((data / "samples").glob("*.nii.gz"))):
        volume = read_nifti(file)
        noise = np.random.default_rng(i).normal(0, 0.005, volume.voxels.shape).astype(np.float32) * (i > 0)
        write_nifti(samples / file.name, np.clip(volume.voxels + noise, -1, 1), volume.geometry)
    training = data / "others" / "manifest.csv"
    given = {"synthetic": samples, "preprocessing": str(data / "steps.json"), "output_dir": tmp_path / "out"}
    given |= ALL_FEATURES
    found = evaluate(request(data, **given, training=training))
    report, held = found.report, metrics(found)
    assert report["protocol"]["training"]["count"] == COUNT and not report["problems"]
    for kind in ("spatial", "spatiotemporal"):
        assert held[f"training_distance_{kind}"]["value"] < 0.2
        floor = held[f"training_distance_{kind}"]["floor"]
        assert floor["matched"] < floor["low"] <= 1 <= floor["high"]
    distances = {
        name: [v["training_distance"] for v in report["volumes"] if v["set"] == name] for name in ("real", "synthetic")
    }
    assert max(distances["synthetic"]) < 0.5 * min(distances["real"])
    assert "1 of the 6 synthetic volumes equal a training volume voxel by voxel." in report["protocol"]["notes"]
    assert any("It needs at least 19 real volumes" in reason for reason in report["protocol"]["left_out"])
    assert "To training" in (tmp_path / "out" / "report.html").read_text()
    again = evaluate(request(data, **given, training=training))
    assert again.report == report
    with pytest.raises(CardioDiTError, match="The splits share subjects"):
        evaluate(request(data, **given, training=data / "real" / "manifest.csv"))


def test_several_volumes_of_a_subject_are_said_and_resampled(data: Path, tmp_path: Path) -> None:
    rows = [
        {**case.row, "image": str(case.image), "mask": "", "volumes": ""}
        for case in read_manifest(data / "real/manifest.csv")
    ]
    write_manifest(tmp_path / "m.csv", [{**row, "subject": f"s{i // 2}"} for i, row in enumerate(rows)])
    report = evaluate(request(data, real=tmp_path / "m.csv", output_dir=tmp_path)).report
    assert report["sets"]["real"]["subjects"] == 3 and report["protocol"]["counts"]["real"] == 6
    assert any("6 real volumes come from 3 subjects" in note for note in report["protocol"]["notes"])
    resampled = "Mean over 5 random choices of one volume per subject."
    assert all(resampled in metric["notes"] for metric in report["metrics"])
    assert len(report["volumes"]) == 12


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(0.5, "differs: synthetic volumes go from -0.5 to 0.5"), (0.0, "has collapsed")],
)
def test_samples_of_another_contrast_are_measured_with_a_note(
    data: Path, tmp_path: Path, scale: float, expected: str
) -> None:
    """Down to those of a model that answers every noise with the same grey."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for file in (data / "samples").glob("*.nii.gz"):
        volume = read_nifti(file)
        write_nifti(samples / file.name, volume.voxels * np.float32(scale), volume.geometry)
    found = evaluate(
        request(data, synthetic=samples, output_dir=tmp_path / "out", preprocessing=str(data / "steps.json"))
    )
    assert any(expected in note for note in found.report["protocol"]["notes"])
    assert not found.report["problems"] and found.report["protocol"]["counts"]["synthetic"] == COUNT
    assert metrics(found)["frechet_spatial"]["value"] > metrics(found)["frechet_spatial"]["floor"]["high"]


def test_samples_tell_how_real_volumes_are_prepared(data: Path, tmp_path: Path) -> None:
    found = evaluate(request(data, output_dir=tmp_path, segmenter="own_code:threshold"))
    report = found.report
    assert report["sets"]["synthetic"]["made_by"] == {"model": "perfect"}
    assert report["protocol"]["preprocessing"]["intensity"]["high"] == "p99.5"
    assert report["protocol"]["segmenter"]["name"] == "own_code:threshold"
    assert report["protocol"]["labels"] == {"real": "segmenter", "synthetic": "segmenter"}
    assert "wasserstein_lv_ef_percent" in metrics(found) and len(report["curves"]) == 2
    assert "own_code:threshold" in (tmp_path / "table.md").read_text()


def test_experts_masks_beside_a_segmenter(data: Path, with_masks: Evaluation, tmp_path: Path) -> None:
    given = {"segmenter": "own_code:threshold", "real_masks": True, "output_dir": tmp_path, "max_volumes": 4}
    found = evaluate(request(data, **given)).report
    assert found["protocol"]["labels"] == {"real": "masks", "synthetic": "segmenter"}
    known = dict(zip([volume["id"] for volume in with_masks.report["volumes"]], with_masks.report["curves"][0]["real"]))
    drawn = [volume["id"] for volume in found["volumes"] if volume["set"] == "real"]
    assert found["curves"][0]["real"] == [known[name] for name in drawn] and len(drawn) == 4
    with pytest.raises(CardioDiTError, match="--real_masks: the manifest of the real volumes has no column mask"):
        rows = [
            {"image": str(case.image), "slices": case.row["slices"]}
            for case in read_manifest(data / "real/manifest.csv")
        ]
        write_manifest(tmp_path / "bare.csv", rows)
        evaluate(request(data, **{**given, "real": tmp_path / "bare.csv"}))


def test_without_labels_the_report_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    found = evaluate(request(data, output_dir=tmp_path, max_volumes=3))
    (reason,) = [text for text in found.report["protocol"]["left_out"] if text.startswith("Heart function")]
    assert "no segmenter was given (--segmenter), and the synthetic volumes have no masks" in reason
    assert not found.report["curves"] and {m["group"] for m in found.report["metrics"]} >= {"diversity", "consistency"}
    assert found.report["protocol"]["counts"] == {"real": 3, "synthetic": 3}
    assert "Of the 6 real volumes, 3 were drawn by the seed 0" in found.report["protocol"]["notes"][0]


def test_damaged_odd_and_mislabelled_files_are_listed_and_the_rest_is_evaluated(data: Path, tmp_path: Path) -> None:
    folder = write_samples(data / "others" / "manifest.csv", tmp_path / "samples")
    files = sorted(folder.glob("*.nii.gz"))
    files[0].write_bytes(files[0].read_bytes()[:5000])
    write_nifti(files[1], np.zeros((32, 32, 4, 8), np.float32), Geometry((4.5, 4.5, 16.7), 0.1))
    write_nifti(files[2], np.full((32, 32, 6, 8), 300, np.float32), Geometry((4.5, 4.5, 16.7), 0.1))
    found = evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out"))
    problems = {problem["file"]: problem["problem"] for problem in found.report["problems"]}
    assert list(problems) == [files[0].name, files[2].name, files[1].name]
    assert problems[files[0].name].startswith(f"{files[0].name} is damaged or was cut off")
    assert "32 × 32 × 4 voxels × 8 frames, and most synthetic volumes have 32 × 32 × 6" in problems[files[1].name]
    assert "values from 300 to 300" in problems[files[2].name]
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text()
    for file in files[:3]:
        file.unlink()
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(lines[3:]))
    clean = evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out"))
    assert clean.cached == 9 and not clean.report["problems"]
    assert clean.report["metrics"] == found.report["metrics"]


def test_masks_with_unknown_labels_and_features_that_are_no_numbers(data: Path, tmp_path: Path) -> None:
    rows = [c.row | {"mask": str(data / "others" / c.row["mask"])} for c in read_manifest(data / "others/manifest.csv")]
    rows = [{**row, "image": str(data / "others" / row["image"]), "volumes": ""} for row in rows]
    rows[0]["mask_order"] = "RV=1 MYO=2 LV=4"
    write_manifest(tmp_path / "m.csv", rows)
    steps = str(data / "steps.json")
    found = evaluate(request(data, synthetic=tmp_path / "m.csv", output_dir=tmp_path / "out", preprocessing=steps))
    (problem,) = found.report["problems"]
    assert problem["file"] == "phantom-0000.nii.gz" and "0, 1, 2, 3, and 3 is not in the order" in problem["problem"]
    assert problem["problem"].startswith("phantom-0000.nii.gz: ")

    folder = write_samples(data / "others" / "manifest.csv", tmp_path / "samples")
    broken = np.full((32, 32, 6, 8), -0.5, np.float32)
    broken[0, 0, 0] = 1
    broken[5] = -1
    write_nifti(folder / "seed0-00003.nii.gz", broken, Geometry((4.5, 4.5, 16.7), 0.1))
    features = {"features": "own_code:Picky", "features_size": (32, 32, 6)}
    found = evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out", **features))
    (problem,) = found.report["problems"]
    assert (
        problem["file"] == "seed0-00003.nii.gz" and "features of own_code:Picky are not numbers" in problem["problem"]
    )


def test_sets_that_cannot_be_compared_are_refused_before_anything_is_measured(data: Path, tmp_path: Path) -> None:
    manifest = data / "others" / "manifest.csv"
    other = {"depth": {"size": (None, None, 5)}, "plane": {"size": (28, 32, None)}}
    for name, change in other.items():
        folder = write_samples(manifest, tmp_path / name, replace(STEPS, **change), record=False)
        with pytest.raises(CardioDiTError, match="The sets differ in size: real volumes have 32 × 32 × 6"):
            evaluate(request(data, synthetic=folder, output_dir=tmp_path / "o", preprocessing=str(data / "steps.json")))
    folder = write_samples(manifest, tmp_path / "other")
    for scale, expected in ((lambda x: (x + 1) / 2, "0 to 1"), (lambda x: 100 * x, "another intensity range")):
        for i, case in enumerate(read_manifest(manifest)):
            volume = prepare_case(case, STEPS).volume
            write_nifti(folder / f"seed0-{i:05d}.nii.gz", scale(volume.voxels), volume.geometry)
        with pytest.raises(CardioDiTError, match=expected):
            evaluate(request(data, synthetic=folder, output_dir=tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_known_is_asked_for(data: Path, tmp_path: Path) -> None:
    folder = write_samples(data / "others" / "manifest.csv", tmp_path / "plain", record=False)
    with pytest.raises(CardioDiTError, match="Give --model FOLDER"):
        evaluate(request(data, synthetic=folder, output_dir=tmp_path / "o"))
    for i, case in enumerate(read_manifest(data / "others" / "manifest.csv")):
        write_nifti(folder / f"seed0-{i:05d}.nii.gz", prepare_case(case, STEPS).volume.voxels, Geometry())
    sizeless = request(data, synthetic=folder, output_dir=tmp_path / "o", preprocessing=str(data / "steps.json"))
    with pytest.raises(CardioDiTError, match=r"size of the synthetic volumes is unknown.*data\.preprocessing\.spacing"):
        evaluate(replace(sizeless, segmenter="own_code:threshold"))
    found = evaluate(replace(sizeless, max_volumes=2)).report
    assert found["sets"]["synthetic"]["spacing_mm"] is None
    assert any("size of the synthetic volumes is unknown, that of the real" in n for n in found["protocol"]["notes"])


def test_fewer_than_two_volumes_are_no_set(data: Path, tmp_path: Path) -> None:
    folder = write_samples(data / "others" / "manifest.csv", tmp_path / "samples")
    for file in sorted(folder.glob("*.nii.gz"))[1:]:
        file.write_bytes(b"no volume")
    with pytest.raises(
        CardioDiTError, match=r"at least 2 synthetic volumes, and there is 1 that can be used:\n  - seed"
    ):
        evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out"))
    sorted(folder.glob("*.nii.gz"))[0].write_bytes(b"no volume")
    with pytest.raises(
        CardioDiTError, match="None of the 6 synthetic volumes can be used. The first problem: .*seed0-0"
    ):
        evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out"))
    with pytest.raises(CardioDiTError, match="max_volumes=1 must be at least 2"):
        evaluate(request(data, max_volumes=1))


def test_chests_have_no_heartbeat(tmp_path: Path) -> None:
    steps = Preprocessing(intensity=Intensity(-1000, 1000))
    for seed, name in enumerate(("real", "others")):
        copy_chests(tmp_path / name, 2, seed=seed, size=(24, 24, 16))
    folder = write_samples(tmp_path / "others" / "manifest.csv", tmp_path / "samples", steps)
    found = evaluate(
        EvaluationSettings(tmp_path / "real" / "manifest.csv", folder, tmp_path / "out", segmenter="cinema")
    )
    assert {metric["group"] for metric in found.report["metrics"]} == {
        "distribution",
        "diversity",
        "anatomy",
        "consistency",
    }
    for reason in ("these volumes have no frames", "the segmenter labels hearts"):
        assert any(reason in text for text in found.report["protocol"]["left_out"])
    assert found.report["protocol"]["segmenter"] is None and not found.report["curves"]


def test_what_stage_1_costs(data: Path, tmp_path: Path, make_vae: Any) -> None:
    make_vae().save_pretrained(tmp_path / "vae")
    given = {"reconstructions": str(tmp_path / "vae"), "segmenter": "own_code:threshold", "max_volumes": 2}
    whole = evaluate(request(data, output_dir=tmp_path / "out", **given))
    assert any("does not say how its training" in note for note in whole.report["protocol"]["notes"])
    without = evaluate(request(data, output_dir=tmp_path / "out", **{**given, "segmenter": None})).report
    assert any(text.startswith("Heart function of reconstructions") for text in without["protocol"]["left_out"])
    assert "reconstruction_psnr" in {metric["name"] for metric in without["metrics"]}
    found = metrics(whole)
    assert found["reconstruction_psnr"]["group"] == "reconstruction" and found["reconstruction_psnr"]["unit"] == "dB"
    assert found["reconstruction_psnr"]["value"] < 20 and found["reconstruction_l1"]["value"] > 0.1  # it is untrained
    assert found["reconstruction_lv_ef_error_percent"]["value"] >= abs(
        found["reconstruction_lv_ef_shift_percent"]["value"]
    )


def test_a_model_that_was_trained_on_other_volumes_is_refused(data: Path, tmp_path: Path, make_vae: Any) -> None:
    make_vae(preprocessing=replace(STEPS, frames=16).to_dict()).save_pretrained(tmp_path / "vae")
    with pytest.raises(CardioDiTError, match="differently prepared volumes \\(frames 16 there and None here\\)"):
        evaluate(request(data, output_dir=tmp_path / "out", reconstructions=str(tmp_path / "vae")))
    assert not (tmp_path / "out").exists()


def test_damaged_real_files_and_masks_are_listed(data: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "hearts", 4, seed=2, size=(32, 32, 6, 8))
    manifest = tmp_path / "hearts" / "manifest.csv"
    first, second, *rest = read_manifest(manifest)
    for file in (first.image, second.path("mask")):
        assert file is not None
        file.write_bytes(file.read_bytes()[:3000])
    usual = {"real": manifest, "synthetic": data / "others" / "manifest.csv", "output_dir": tmp_path / "out"}
    found = evaluate(request(data, **usual, preprocessing=str(data / "steps.json"))).report
    told = {(problem["set"], problem["file"]): problem["problem"] for problem in found["problems"]}
    assert list(told) == [("real", "phantom-0000.nii.gz"), ("real", "phantom-0001.nii.gz")]
    assert all("is damaged or was cut off" in problem for problem in told.values())
    assert found["protocol"]["counts"] == {"real": 2, "synthetic": 6} and len(found["curves"][0]["real"]) == 2
    assert str(tmp_path) not in json.dumps(found)
    rest[0].image.write_bytes(b"no volume")
    with pytest.raises(
        CardioDiTError, match="at least 2 real volumes, and there is 1 that can be used:\n  - phantom-0000"
    ):
        evaluate(request(data, **usual, preprocessing=str(data / "steps.json")))
    write_manifest(manifest, [rest[1].row])
    with pytest.raises(CardioDiTError, match="at least 2 real volumes, and there is 1"):
        evaluate(request(data, **usual, preprocessing=str(data / "steps.json")))


def test_single_samples_that_differ_from_most_are_listed(data: Path, tmp_path: Path) -> None:
    """In scaling, in voxel size, or because one's own segmenter stumbles over one of them."""
    folder = write_samples(data / "others" / "manifest.csv", tmp_path / "samples")
    files = sorted(folder.glob("*.nii.gz"))
    stored = [read_nifti(file) for file in files[:3]]
    write_nifti(files[0], (stored[0].voxels + 1) / 2, stored[0].geometry)
    write_nifti(files[1], stored[1].voxels, Geometry((4.5, 4.5, 10.0), 0.1))
    marked = stored[2].voxels.copy()
    marked[0, 0, 0, 0] = 1
    write_nifti(files[2], marked, stored[2].geometry)
    found = evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out", segmenter="own_code:stumble")).report
    told = {problem["file"]: problem["problem"] for problem in found["problems"]}
    assert told[files[0].name].startswith("Its values go from 0") and "scaled differently" in told[files[0].name]
    assert told[files[1].name].startswith("Its voxels have 4.5 × 4.5 × 10 mm, and those of most synthetic volumes")
    assert told[files[2].name] == "The segmenter own_code:stumble failed: KeyError: 'heart'"
    assert len(told) == 3 and found["protocol"]["counts"]["synthetic"] == 3


def test_copies_with_another_frame_time_are_called_copies(data: Path, tmp_path: Path) -> None:
    folder = write_samples(data / "real" / "manifest.csv", tmp_path / "samples")
    for file in sorted(folder.glob("*.nii.gz"))[:2]:
        stored = read_nifti(file)
        write_nifti(file, stored.voxels, stored.geometry.with_frame_time(0.011))
    notes = evaluate(request(data, synthetic=folder, output_dir=tmp_path / "out")).report["protocol"]["notes"]
    assert "6 of the 6 synthetic volumes equal a real one voxel by voxel." in notes


def test_repeated_beats_have_neither_rates_nor_gaps(data: Path, tmp_path: Path) -> None:
    """As the published presets repeat them: eight frames become ten."""
    steps = replace(STEPS, frames=10, cycle="repeat")
    (tmp_path / "steps.json").write_text(json.dumps(steps.to_dict()))
    given = {"synthetic": data / "others" / "manifest.csv", "preprocessing": str(tmp_path / "steps.json")}
    found = evaluate(request(data, output_dir=tmp_path / "out", **given)).report
    names = {metric["name"] for metric in found["metrics"]}
    assert not [name for name in names if "peak" in name or "gap" in name]
    assert {"wasserstein_lv_ef_percent", "wasserstein_frame_change", "wasserstein_area_roughness"} <= names
    assert "plausible_lv_body_share" in names and found["sets"]["real"]["size"][3] == 10
    (reason,) = [text for text in found["protocol"]["left_out"] if "rates" in text]
    assert reason.startswith("Peak rates, the gaps between last and first frame") and "to fill 10 frames" in reason


def test_real_hearts_that_are_labelled_at_two_moments(data: Path, tmp_path: Path) -> None:
    """As ACDC's are: their volumes stand beside the samples', and what needs a whole beat is left out."""
    rows = []
    for case in read_manifest(data / "real" / "manifest.csv"):
        labels, row = read_labels(case.path("mask")), {**case.row, "image": str(case.image), "mask": "", "volumes": ""}
        for name in ("ed", "es"):
            row[f"{name}_mask"] = str(tmp_path / f"{case.subject}-{name}.nii.gz")
            write_nifti(Path(row[f"{name}_mask"]), labels.voxels[..., int(row[f"{name}_frame"])], labels.geometry)
        rows.append(row)
    write_manifest(tmp_path / "m.csv", rows)
    given = {"real": tmp_path / "m.csv", "real_masks": True, "segmenter": "own_code:threshold"}
    whole = evaluate(request(data, output_dir=tmp_path / "out", **given))
    found, held = whole.report, metrics(whole)
    for row, volume in zip(rows, found["volumes"]):
        assert volume["numbers"]["lv_ef_percent"] == pytest.approx(float(row["lv_ef_percent"]), abs=4)  # thick slices
    for name in ("edv_ml", "esv_ml", "sv_ml", "ef_percent"):
        assert f"wasserstein_lv_{name}" in held and f"wasserstein_rv_{name}" in held
    assert "wasserstein_lv_mass_g" in held and not [name for name in held if "peak" in name or "plausible" in name]
    assert not found["curves"] and not found["problems"]
    assert any("6 of the 6 real volumes are labelled at end-diastole and" in t for t in found["protocol"]["left_out"])


# What is done to real hearts, and where it shows


def shuffled_slices(voxels: np.ndarray) -> np.ndarray:
    return voxels[:, :, [2, 0, 4, 1, 5, 3]]


def frozen_frames(voxels: np.ndarray) -> np.ndarray:
    return voxels[..., [0, 1, 2, 3, 3, 3, 3, 7, 8, 9, 10, 11]]


def jittered_time(voxels: np.ndarray) -> np.ndarray:
    """Neighbouring frames change places."""
    return voxels[..., [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11]]


def still(voxels: np.ndarray) -> np.ndarray:
    return np.repeat(voxels[..., 3:4], 12, axis=3)


DEFORMATIONS = (shuffled_slices, frozen_frames, jittered_time, still)


def write_deformed(manifest: Path, folder: Path, deform: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A cohort with its masks, all of them deformed alike."""
    folder.mkdir()
    rows = []
    for case in read_manifest(manifest):
        row = {**case.row, "volumes": ""}
        for column, stored in (("image", read_nifti(case.image)), ("mask", read_labels(case.path("mask")))):
            row[column] = f"{column}-{case.image.name}"
            write_nifti(folder / row[column], deform(stored.voxels), stored.geometry)
        rows.append(row)
    write_manifest(folder / "m.csv", rows)
    return folder / "m.csv"


@pytest.fixture(scope="module")
def deformed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    """By the deformation's name the metrics of real hearts against the same ones, deformed."""
    root = tmp_path_factory.mktemp("deformed")
    manifest = write_cohort(root / "hearts", 8, size=(32, 32, 6, 12))
    found = {}
    for deform in DEFORMATIONS:
        name = deform.__name__
        synthetic = write_deformed(manifest, root / name, deform)
        given = {"preprocessing": str(data / "steps.json"), **({} if deform is still else FEW_FEATURES)}
        found[name] = metrics(evaluate(EvaluationSettings(manifest, synthetic, root / "out", **given)))
    return found


@pytest.mark.parametrize(
    "deformation, leave, axis",
    [
        ("shuffled_slices", {"slice_difference", "slice_synchrony", "slice_dice"}, THROUGH_PLANE),
        ("frozen_frames", {"frame_stall", "frame_change", "area_roughness"}, TEMPORAL),
        ("jittered_time", {"frame_correlation", "frame_change", "label_change", "area_roughness"}, TEMPORAL),
    ],
)
def test_a_deformation_shows_along_its_axis_and_not_along_the_other(
    deformed: dict[str, dict[str, dict]], deformation: str, leave: set[str], axis: str
) -> None:
    for name, measure in MEASURES.items():
        metric = deformed[deformation][f"wasserstein_{name}"]
        if name in leave:
            assert metric["value"] > metric["floor"]["high"], name
        elif measure.axis != axis:
            assert metric["value"] <= metric["floor"]["high"], name


def test_hearts_that_stand_still_show_in_spatiotemporal_features(deformed: dict[str, dict[str, dict]]) -> None:
    for name in ("frechet", "mmd_rbf"):
        spatial, moving = (deformed["still"][f"{name}_{kind}"]["floor"] for kind in ("spatial", "spatiotemporal"))
        assert spatial["matched"] <= spatial["high"] and moving["matched"] > moving["high"], name
