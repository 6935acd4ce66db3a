"""`cardiodit export-dataset`: what the layouts hold, and that the tools themselves open them."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.imaging.nifti import read_labels, read_nifti, write_nifti
from cardiodit.imaging.phantom import write_cohort

ORDER = "LV=1 MYO=2 RV=3"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms: the masks of the first are numbered as in M&Ms, that of the last has labels in two frames only."""
    folder = tmp_path_factory.mktemp("export") / "cohort"
    manifest = write_cohort(folder, 6, seed=5, size=(32, 32, 4, 4))
    rows = list(csv.DictReader(manifest.open()))
    for row, split in zip(rows, ("training", "training", "training", "training", "validation", "test"), strict=True):
        row["split"] = split
    first, last = (read_nifti(folder / rows[i]["mask"]) for i in (0, 5))
    turned = np.array([0, 3, 2, 1], np.uint8)[first.voxels.astype(int)]
    write_nifti(folder / "labels" / "turned.nii.gz", turned, first.geometry)
    rows[0] |= {"mask": "labels/turned.nii.gz", "mask_order": ORDER}
    few = last.voxels.astype(np.uint8)
    few[..., [t for t in range(4) if t not in (0, int(rows[5]["es_frame"]))]] = 0
    write_nifti(folder / "labels" / "few.nii.gz", few, last.geometry)
    rows[5]["mask"] = "labels/few.nii.gz"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def export(source: Path, output: Path, layout: str, *more: str) -> Path:
    assert main(["export-dataset", str(source), "--layout", layout, "--output_dir", str(output), *more]) == 0
    return output


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open() as file:
        return list(csv.DictReader(file))


def test_nnunet_has_a_pair_a_frame_on_the_same_grid_in_one_order(cohort: Path, tmp_path: Path) -> None:
    place = export(cohort, tmp_path / "raw", "nnunet", "--name", "My hearts", "--number", "7") / "Dataset007_My-hearts"
    described = json.loads((place / "dataset.json").read_text())
    assert described["numTraining"] == 10 and described["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    row = rows_of(cohort)[0]
    image, label = place / "imagesTr", place / "labelsTr"
    assert len(list(image.iterdir())) == len(list(label.iterdir())) == 10
    assert len(list((place / "imagesTs").iterdir())) == 2
    systole = int(row["es_frame"])
    stored = read_nifti(image / f"{row['subject']}_frame{systole:02d}_0000.nii.gz")
    source = read_nifti(cohort.parent / row["image"])
    assert np.array_equal(stored.voxels, source.voxels[..., systole])
    assert stored.geometry.is_close(source.geometry.with_frame_time(None))
    labels = read_labels(label / f"{row['subject']}_frame{systole:02d}.nii.gz").voxels
    exact = read_labels(cohort.parent / "labels" / "phantom-0000.nii.gz").voxels[..., systole]
    assert np.array_equal(labels, exact)
    folds = json.loads((place / "splits_final.json").read_text())
    assert len(folds) == 1 and all(name.startswith("seed5-phantom-0004") for name in folds[0]["val"])


def test_frames_of_a_subject_share_a_fold(cohort: Path, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "split"} for row in rows_of(cohort)]
    manifest = cohort.parent / "unsplit.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    place = export(manifest, tmp_path / "raw", "nnunet", "--frames", "all") / "Dataset501_Hearts"
    folds = json.loads((place / "splits_final.json").read_text())
    assert len(folds) == 5
    held = [name for fold in folds for name in fold["val"]]
    assert sorted(held) == sorted(path.name.removesuffix(".nii.gz") for path in (place / "labelsTr").iterdir())
    for fold in folds:
        subjects = [{name.partition("_")[0] for name in fold[part]} for part in ("train", "val")]
        assert not subjects[0] & subjects[1]
    assert len(held) == 5 * 4 + 2


def test_nnunet_itself_accepts_it(cohort: Path, tmp_path: Path) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(tmp_path / name))
    verify = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    place = export(cohort, tmp_path / "raw", "nnunet") / "Dataset501_Hearts"
    verify.verify_dataset_integrity(str(place), num_processes=1)


def test_slices_are_files_of_their_own(cohort: Path, tmp_path: Path) -> None:
    place = export(cohort, tmp_path / "raw", "nnunet", "--slices") / "Dataset501_Hearts"
    row = rows_of(cohort)[1]
    stored = [read_nifti(place / "imagesTr" / f"{row['subject']}_frame00_slice{d:02d}_0000.nii.gz") for d in range(4)]
    source = read_nifti(cohort.parent / row["image"])
    assert np.array_equal(np.concatenate([one.voxels for one in stored], axis=2), source.voxels[..., 0])
    origins = [one.geometry.affine[:3, 3] for one in stored]
    assert np.allclose(np.linalg.norm(np.diff(origins, axis=0), axis=1), source.geometry.spacing[2], atol=1e-3)


def test_monai_reads_the_lists(cohort: Path, tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist
    from monai.transforms import LoadImage

    place = export(cohort, tmp_path / "monai", "monai", "--frames", "all")
    lists = {
        key: load_decathlon_datalist(str(place / "dataset.json"), data_list_key=key)
        for key in ("training", "validation", "test")
    }
    assert [len(each) for each in lists.values()] == [16, 4, 2]
    first = lists["training"][0]
    image, label = (LoadImage(image_only=True)(first[key]) for key in ("image", "label"))
    assert image.shape == label.shape == (32, 32, 4) and set(np.unique(label)) <= {0, 1, 2, 3}
    assert first["class_label"] == rows_of(cohort)[0]["label"]
    assert first["lv_ef_percent"] == rows_of(cohort)[0]["lv_ef_percent"]


def test_a_hugging_face_folder_opens_with_its_card(cohort: Path, tmp_path: Path) -> None:
    place = export(cohort, tmp_path / "hf", "huggingface", "--license", "cc0-1.0")
    card = (place / "README.md").read_text()
    assert "license: cc0-1.0" in card and "6 real hearts with masks, single frames" in card
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == {"train": 8, "validation": 2, "test": 2}
    row = found["train"][0]
    assert row["origin"] == "real" and read_nifti(place / row["image"]).voxels.shape == (32, 32, 4)


def test_samples_are_labelled_by_a_segmenter(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe(conditions={"ef": {"low": 20.0, "high": 70.0, "unit": "%"}}, vae={"spacing": (4.0, 4.0, 12.0)})
    pipe(ef=[30, 60], seed=0, num_inference_steps=1).save(tmp_path / "samples")
    (tmp_path / "quarters.py").write_text(
        "import numpy as np\n\n\n"
        "def label(cine, geometry):\n"
        "    labels = np.zeros(cine.shape, np.uint8)\n"
        "    labels[:8], labels[8:12], labels[12:20] = 1, 2, 3\n"
        "    return labels\n\n\n"
        "label.mask_order = 'RV=1 MYO=2 LV=3'\n"
    )
    segmenter = ["--segmenter", f"{tmp_path / 'quarters.py'}:label"]
    place = export(tmp_path / "samples", tmp_path / "hf", "huggingface", "--frames", "cine", *segmenter)
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    assert [(row["origin"], row["ef"]) for row in rows] == [("synthetic", 30.0), ("synthetic", 60.0)]
    cine, mask = (read_nifti(place / rows[0][key]) for key in ("image", "label"))
    assert cine.voxels.shape == mask.voxels.shape == (32, 32, 2, 16) and (mask.voxels[12:20] == 3).all()
    assert "`in memory`" in (place / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--frames", "cine"], "needs them in all. Choose --frames ed_es or all"),
        (["--number", "0"], "nnU-Net numbers data sets from 1 to 999"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], problem: str
) -> None:
    layout = "monai" if "cine" in more else "nnunet"
    command = ["export-dataset", str(cohort), "--layout", layout, "--output_dir", str(tmp_path / "out"), *more]
    assert main(command) == 1
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_hearts_without_masks_are_listed(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = rows_of(cohort)
    manifest = cohort.parent / "maskless.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["image", "subject"])
        writer.writeheader()
        writer.writerows({key: row[key] for key in ("image", "subject")} for row in rows[:2])
    assert main(["export-dataset", str(manifest), "--layout", "monai", "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "phantom-0000.nii.gz has no mask" in error and "--segmenter" in error
