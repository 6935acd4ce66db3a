"""CT: Hounsfield units, volumes of structures, detection rates and shares, in the same report as everything else."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.evaluation.metrics.anatomy import (
    HISTOGRAM,
    TOTALSEGMENTATOR,
    _newcombe,
    _pooled_distance,
    adherence,
    anatomy,
    hounsfield,
)
from cardiodit.evaluation.segmenters import open_segmenter
from cardiodit.imaging import Geometry, Intensity, Preprocessing, read_manifest, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_nifti

from ...conftest import copy_chests

STEPS = Preprocessing(intensity=Intensity(-1000, 1000), orient=False)
CODE = """
import numpy as np

def by_intensity(volume, geometry):
    labels = np.zeros(volume.shape, np.uint8)
    inside = volume[:, :, 1:-1]
    labels[:, :, 1:-1] = np.where(inside > -0.3, 5, np.where(inside > -0.95, 2, 0))
    return labels

by_intensity.structures = {"lungs": 2, "Heart": 5, "liver": 9}

def wrong(volume, geometry):
    return volume[..., 0]

wrong.structures = "totalsegmentator"

def hearts(cine, geometry):
    return cine

hearts.mask_order = "RV=1 MYO=2 LV=3"

def nothing(volume, geometry):
    return volume

nothing.structures = {"a b": 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ct")
    for seed, name in enumerate(("real", "synthetic")):
        copy_chests(root / name, num=4, seed=seed, size=(24, 24, 16))
    (root / "steps.json").write_text(json.dumps(STEPS.to_dict()))
    (root / "ct_segmenters.py").write_text(CODE)
    sys.path.insert(0, str(root))
    return root


def report_of(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    found = evaluate(
        EvaluationSettings(
            **{
                "real": folder / "real" / "manifest.csv",
                "synthetic": folder / "synthetic" / "manifest.csv",
                "output_dir": folder / name,
                "preprocessing": str(folder / "steps.json"),
                **settings,
            }
        )
    )
    return found.report


def test_a_report_of_ct_has_anatomy_beside_its_floors(folder: Path) -> None:
    report = report_of(folder, "out", segmenter="ct_segmenters:by_intensity")
    metrics = {each["name"]: each for each in report["metrics"]}
    assert {each["group"] for each in report["metrics"]} >= {"distribution", "diversity", "anatomy"}
    volumes = {"real": [], "synthetic": []}
    for volume in report["volumes"]:
        volumes[volume["set"]].append(volume["numbers"])
    for name, unit in (("volume_ml_heart", "mL"), ("volume_ml_lungs", "mL"), ("hu_mean", "HU"), ("hu_p95", "HU")):
        real, synthetic = ([numbers[name] for numbers in volumes[side]] for side in ("real", "synthetic"))
        found = metrics[f"wasserstein_{name}"]
        assert found["value"] == pytest.approx(wasserstein_distance(real, synthetic), rel=1e-4)
        assert found["unit"] == unit and found["floor"]["value"] > 0
    assert metrics["detection_heart"]["value"] == 0 and metrics["detection_liver"]["value"] == 0
    assert "Found in 0% of the real and 0% of the synthetic" in metrics["detection_liver"]["notes"][0]
    assert metrics["detection_heart"]["floor"]["matched"] == 0 and metrics["detection_heart"]["p_value"] == 1
    assert "wasserstein_volume_ml_liver" not in metrics and "detection_spleen" not in metrics
    assert metrics["wasserstein_hu_histogram"]["floor"]["value"] > 0 and metrics["wad_div_3"]["group"] == "diversity"
    assert report["protocol"]["segmenter"]["labels"] == {"lungs": 2, "heart": 5, "liver": 9}
    assert "Anatomy of CT" in (folder / "out" / "report.html").read_text()


def test_without_a_segmenter_hounsfield_units_remain(folder: Path) -> None:
    report = report_of(folder, "plain", segmenter=None)
    names = {each["name"] for each in report["metrics"]}
    assert "frechet_radiomics" not in names and report["protocol"]["radiomics"] is False
    assert "wasserstein_hu_sd" in names and not any(name.startswith("detection") for name in names)
    assert any("no segmenter was given" in reason for reason in report["protocol"]["left_out"])


def test_radiomics_and_slices_are_beside_their_floors(folder: Path) -> None:
    report = report_of(folder, "radiomics", segmenter=None, radiomics=True)
    metrics = {each["name"]: each for each in report["metrics"]}
    found = metrics["frechet_radiomics"]
    assert found["group"] == "distribution" and found["floor"]["value"] > 0 and report["protocol"]["radiomics"] is True
    assert "Its logarithm, which is usually published" in found["notes"][0]
    for name in ("slice_step_sagittal", "slice_correlation_coronal", "border_jump_axial"):
        assert metrics[f"wasserstein_{name}"]["floor"]["value"] > 0
        assert metrics[f"wasserstein_{name}"]["group"] == "consistency"
    page = (folder / "radiomics" / "report.html").read_text()
    assert "Fréchet radiomics distance" in page and "Difference of neighbouring slices, sagittal" in page
    assert "Fréchet radiomics distance" in (folder / "radiomics" / "table.md").read_text()


def test_scans_of_an_unknown_unit_have_no_hounsfield_units(folder: Path) -> None:
    steps = Preprocessing(intensity=Intensity("p0.5", "p99.5"), orient=False)
    (folder / "arbitrary.json").write_text(json.dumps(steps.to_dict()))
    report = report_of(folder, "arbitrary", preprocessing=str(folder / "arbitrary.json"))
    assert not any("hu_" in each["name"] for each in report["metrics"])


def test_a_segmenter_must_fit_the_volumes(folder: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"returned labels of the shape \(24, 24\) for a volume of the shape"):
        report_of(folder, "wrong", segmenter="ct_segmenters:wrong")
    with pytest.raises(CardioDiTError, match='must be "totalsegmentator" or a dictionary from names to positive'):
        open_segmenter("ct_segmenters:nothing")
    assert open_segmenter("ct_segmenters:wrong").structures == TOTALSEGMENTATOR


def test_volumes_in_ml_of_whole_structures_only() -> None:
    labels = np.zeros((10, 10, 10), int)
    labels[2:4, 2:4, 2:4] = 1  # 8 voxels
    labels[5:7, 5:7, 5:] = 2  # reaches the last slice
    labels[2:5, 7:9, 3:5] = 3  # 12 voxels
    found = anatomy(
        labels, {"heart": 1, "aorta": 2, "liver": 4, "kidney_left": 1, "kidney_right": 3}, Geometry((5, 5, 4))
    )
    assert found["volume_ml_heart"] == pytest.approx(8 * 0.1)
    assert (found["volume_ml_aorta"], found["found_aorta"]) == (None, 1.0)
    assert (found["volume_ml_liver"], found["found_liver"]) == (None, 0.0)
    assert found["share_percent_kidney_left"] == pytest.approx(40) and found[
        "share_percent_kidney_right"
    ] == pytest.approx(60)
    assert anatomy(labels, {"heart": 1}, Geometry())["volume_ml_heart"] is None


def test_adherence_is_the_dice_of_requested_and_found() -> None:
    labels = np.zeros((4, 4, 4), int)
    labels[:2], labels[3] = 5, 2
    heart, both = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    heart[1:3] = 7
    both[3, :2], both[0] = 2, 5
    structures = {"heart": 5, "lungs": 2, "liver": 9}
    assert adherence(labels, structures, {"Heart": heart}) == {"dice_percent_heart": 50.0}
    assert adherence(labels, structures, {"mask": both}) == {
        "dice_percent_heart": pytest.approx(200 / 3),
        "dice_percent_lungs": pytest.approx(200 / 3),
    }
    assert adherence(labels, structures, {"liver": heart}) == {"dice_percent_liver": 0.0}
    with pytest.raises(CardioDiTError, match=r"The mask heart is \(3, 4, 4\) on the model's grid, the volume \(4"):
        adherence(labels, structures, {"heart": heart[1:]})


def test_samples_are_compared_with_the_masks_that_steered_them(folder: Path, tmp_path: Path) -> None:
    """Volumes that lie exactly where the masks of their rows do, in another order than their files."""
    cases = read_manifest(folder / "synthetic" / "manifest.csv")
    write_manifest(tmp_path / "masks.csv", [{"mask": str(case.path("mask"))} for case in cases])
    samples = tmp_path / "samples"
    samples.mkdir()
    with (samples / "samples.jsonl").open("w") as records:
        for place, index in enumerate((2, 0, 3, 1)):
            volume = read_nifti(cases[index].image)
            write_nifti(samples / f"{place}.nii.gz", volume.voxels.clip(-1000, 1000), volume.geometry)
            line = {"file": f"{place}.nii.gz", "index": index, "units": [-1000, 1000], "preprocessing": STEPS.to_dict()}
            records.write(json.dumps(line) + "\n")
    given = {"segmenter": "ct_segmenters:by_intensity", "synthetic": samples}
    report = report_of(folder, "steered", masks=tmp_path / "masks.csv", **given)
    found = {each["name"]: each for each in report["metrics"]}
    assert found["adherence_lungs"]["value"] > 50 and found["adherence_lungs"]["floor"]["value"] > 50
    assert "adherence_liver" in found and "adherence_spleen" not in found
    rows = [{"mask": str(cases[index].path("mask"))} for index in (1, 2, 3, 0)]
    write_manifest(tmp_path / "others.csv", rows)
    other = report_of(folder, "steered", masks=tmp_path / "others.csv", **given)
    other_value = next(each["value"] for each in other["metrics"] if each["name"] == "adherence_lungs")
    assert other_value < found["adherence_lungs"]["low"]
    write_manifest(tmp_path / "short.csv", rows[:2])
    with pytest.raises(CardioDiTError, match=r"0.nii.gz was not steered by a row of .*short.csv, which has 2"):
        report_of(folder, "steered", masks=tmp_path / "short.csv", **given)


def test_hounsfield_units_are_those_of_the_file(folder: Path) -> None:
    case = read_manifest(folder / "real" / "manifest.csv")[0]
    stored = read_nifti(case.image).voxels.astype(np.float64).clip(-1000, 1000)
    numbers, rows = hounsfield((stored / 1000).astype(np.float32), (-1000.0, 1000.0))
    assert numbers["hu_mean"] == pytest.approx(stored.mean(), abs=1e-2)
    assert numbers["hu_p75"] == pytest.approx(np.percentile(stored, 75), abs=1e-2)
    assert numbers["hu_foreground_percent"] == pytest.approx(100 * (stored > -300).mean(), abs=0.1)
    assert rows[HISTOGRAM].sum() == pytest.approx(1)


def test_the_distance_of_histograms_is_that_of_the_voxels() -> None:
    rng = np.random.default_rng(0)
    sets = [rng.normal(mean, 100, (3, 2000)).clip(-1000, 1000) for mean in (0.0, 60.0)]
    rows = [np.stack([hounsfield(v / 1000, (-1000.0, 1000.0))[1][HISTOGRAM] for v in each]) for each in sets]
    assert _pooled_distance(*rows) == pytest.approx(wasserstein_distance(*(each.ravel() for each in sets)), abs=1)


def test_the_interval_of_two_shares_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 − 48/80."""
    low, high = _newcombe(48, 80, 56, 70)
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_volumes_without_a_voxel_size_have_no_ml(folder: Path, tmp_path: Path) -> None:
    rows = []
    for i, case in enumerate(read_manifest(folder / "synthetic" / "manifest.csv")):
        write_nifti(tmp_path / f"{i}.nii.gz", read_nifti(case.image).voxels, Geometry())
        rows.append({"image": f"{i}.nii.gz", "subject": f"{i}"})
    write_manifest(tmp_path / "manifest.csv", rows)
    settings = {"segmenter": "ct_segmenters:by_intensity", "synthetic": tmp_path / "manifest.csv"}
    report = report_of(folder, "without", **settings)
    assert "wasserstein_volume_ml_heart" not in {each["name"] for each in report["metrics"]}
    assert any("do not have this number" in reason for reason in report["protocol"]["left_out"])
