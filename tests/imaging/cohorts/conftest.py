"""Folders laid out as the public cohorts are, with small phantoms for patients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import GROUPS, Phantom
from cardiodit.imaging.volume import Volume

ES = 3  # of 8 frames
TO_MNMS = np.array([0, 3, 2, 1], np.uint8)  # RV 1, muscle 2, LV 3 → LV 1, muscle 2, RV 3
AXIAL = Geometry.of_affine(np.diag([-1.4, -1.4, 10.0, 1.0]))  # what ACDC's files carry


@pytest.fixture
def patient(small_heart: Callable[..., Phantom]) -> Callable[..., Phantom]:
    def make(number: int) -> Phantom:
        return small_heart(number, list(GROUPS)[number % 4])

    return make


@pytest.fixture
def acdc(tmp_path: Path, patient: Callable) -> Path:
    """Six patients; the last two are for testing. Frame times are 1 s, as a placeholder."""
    root = tmp_path / "ACDC"
    for number in range(1, 7):
        name = f"patient{number:03d}"
        folder = root / ("training" if number < 5 else "testing") / name
        folder.mkdir(parents=True)
        heart, geometry = patient(number), AXIAL.with_frame_time(1.0)
        write_nifti(folder / f"{name}_4d.nii.gz", heart.image, geometry)
        for frame in (0, ES):
            stem = f"{name}_frame{frame + 1:02d}"
            write_nifti(folder / f"{stem}.nii.gz", heart.image[..., frame], AXIAL)
            write_nifti(folder / f"{stem}_gt.nii.gz", heart.labels[..., frame], AXIAL)
        group = ("NOR", "DCM", "HCM", "MINF")[number % 4]
        info = f"ED: 1\nES: {ES + 1}\nGroup: {group}\nHeight: 184.0\nNbFrame: 8\nWeight: 95.0\n"
        (folder / "Info.cfg").write_text(info)
    (root / "training" / "MANDATORY_CITATION.md").touch()
    return root


@pytest.fixture
def mnms(tmp_path: Path, patient: Callable) -> Path:
    """Labels in two frames; the unlabelled part has misleading ones."""
    root = tmp_path / "OpenDataset"
    rows = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    parts = ("Training/Labeled", "Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
    for number, part in enumerate(parts):
        name = f"A{number}S9V{number}"
        folder = root / part / name
        folder.mkdir(parents=True)
        heart = patient(number)
        labels = np.zeros_like(heart.labels)
        labels[..., [0, ES]] = TO_MNMS[heart.labels[..., [0, ES]]]
        if part == "Training/Unlabeled":
            labels[:] = 0
        write_nifti(folder / f"{name}_sa.nii.gz", heart.image, heart.geometry)
        write_nifti(folder / f"{name}_sa_gt.nii.gz", labels, heart.geometry)
        rows.append(f"{number},{name},Siemens,{'ABCDA'[number]},{number % 3 + 1},0,{ES},40,HCM,F,170,70")
    (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(rows) + "\n")
    return root.parent


@pytest.fixture
def mnms2(tmp_path: Path, patient: Callable) -> Path:
    root = tmp_path / "MnM2"
    rows = ["SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD"]
    for number in (1, 160, 161, 201):
        name = f"{number:03d}"
        folder = root / "dataset" / name
        folder.mkdir(parents=True)
        heart = patient(number)
        still = heart.geometry.with_frame_time(None)
        write_nifti(folder / f"{name}_SA_CINE.nii.gz", heart.image, heart.geometry)
        for view in ("SA", "LA"):
            for phase, frame in (("ED", 0), ("ES", ES)):
                write_nifti(folder / f"{name}_{view}_{phase}.nii.gz", heart.image[..., frame], still)
                write_nifti(folder / f"{name}_{view}_{phase}_gt.nii.gz", TO_MNMS[heart.labels[..., frame]], still)
        rows.append(f"{number},{'NOR' if number < 200 else 'LV'},GE MEDICAL SYSTEMS,Signa,1.5")
    (root / "dataset_information.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def ukbb(tmp_path: Path, patient: Callable) -> Path:
    """Stored from apex to base and beginning in mid-systole, which masks of all frames show."""
    root = tmp_path / "ukbb"
    for number in range(4):
        folder = root / f"10000{number}"
        folder.mkdir(parents=True)
        heart = patient(number)
        for name, voxels in (("sa", heart.image), ("seg_sa", TO_MNMS[heart.labels])):
            turned = Volume(voxels, heart.geometry).flip(2).roll(2)
            write_nifti(folder / f"{name}.nii.gz", turned.voxels, turned.geometry)
        write_nifti(folder / "la_4ch.nii.gz", heart.image[:, :, :1], heart.geometry)
    return root
