"""LIDC-IDRI as it is downloaded, with small CT for chests, from folders to what training reads."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.cohorts import Preparation, prepare_cohort
from cardiodit.imaging.manifest import Case, check_disjoint, read_manifest
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.imaging.volume import Volume

NAMES = [f"LIDC-IDRI-{number:04d}" for number in range(1, 7)]


def prepare(source: Path, output_dir: Path, *options: str) -> tuple[list[Case], str]:
    assert main(["prepare", "lidc", str(source), "--output_dir", str(output_dir), *options]) == 0
    return read_manifest(output_dir / "manifest.csv"), (output_dir / "report.md").read_text()


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder with what is in it and when it was last changed."""
    return {
        str(
            path
        ): f"{hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''} {path.stat().st_mtime_ns}"
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture
def lidc(tmp_path: Path, ct: Callable, write_ct: Callable) -> Path:
    """Six patients below a download's own folders; the second has radiographs, the third a second CT."""
    root = tmp_path / "TCIA"
    for number, name in enumerate(NAMES):
        patient = root / "manifest-1" / "LIDC-IDRI" / name
        write_ct(patient / "01-01-2000-30178" / "3000566.000000-03192", ct(number))
        (patient / "01-01-2000-30178" / "3000566.000000-03192" / "069.xml").write_text("<nodules/>")
    radiograph = Volume(ct(7).voxels[:, :, :2], ct(7).geometry)
    second, third = (root / "manifest-1" / "LIDC-IDRI" / name for name in NAMES[1:3])
    no_place = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient"])
    write_ct(second / "01-01-2000-35511" / "3000923", radiograph, Modality="DX", SeriesDescription="PA", **no_place)
    write_ct(third / "02-01-2000" / "1", ct(8, (20, 16, 4)), SeriesInstanceUID="1.2.9", SeriesNumber=1)
    (root / "LICENSE").write_text("CC BY 3.0")
    return root


def test_dicom_becomes_nifti_and_the_source_stays_as_it_was(
    lidc: Path, tmp_path: Path, ct: Callable, capsys: pytest.CaptureFixture
) -> None:
    before = contents(lidc)
    cases, report = prepare(lidc, tmp_path / "out")
    assert contents(lidc) == before
    assert [case.subject for case in cases] == NAMES
    for number, case in enumerate(cases):
        assert case.image == tmp_path / "out" / "images" / f"{NAMES[number]}.nii.gz"
        found = read_nifti(case.image)
        assert np.array_equal(found.voxels, ct(number).voxels) and found.voxels.dtype == np.int16
        assert np.allclose(found.geometry.affine, ct(number).geometry.affine, atol=1e-4) and found.geometry.in_scanner
    assert f"{NAMES[1]} left out DX series 3 'PA', 2 files: no slices of a CT" in report
    assert (
        "used the largest of 2 CT series, series 3 'chest' of 10 slices, and left out series 1 'chest' of 4" in report
    )
    assert "ignored 1 non-DICOM file: 069.xml" in report and "lists 6 of 6 CT" in report
    # A small volume is padded and said to be, in the report and on the screen; none is dropped.
    printed = capsys.readouterr().out
    for text in (report, printed):
        assert "will crop 0 of 6 CT and pad 6 with air; none is dropped" in text
        assert f"{NAMES[0]}" in text and "14 × 11 × 12 voxels: H and W and D padded with air" in text
    assert (tmp_path / "out/pictures/overview-1.png").is_file()


def test_patients_are_in_one_split_and_training_reads_them(lidc: Path, tmp_path: Path) -> None:
    prepare(lidc, tmp_path / "out", "--fractions", "0.5", "0.25", "0.25")
    splits = {name: read_manifest(tmp_path / f"out/{name}.csv") for name in ("training", "validation", "test")}
    check_disjoint(**splits)
    assert sum(map(len, splits.values())) == 6
    volumes = PreparedVolumes(splits["validation"], PRESETS["prdit-lidc-64"])
    voxels = volumes[0]
    assert voxels.shape == (1, 64, 64, 64) and voxels.min() == -1 and -1 < voxels.max() <= 1
    inside = voxels[0, 30:34, 31:33, 31:33]
    assert inside.std() > 0.01 and volumes.limits[0][0] == -1000
    assert volumes.spacing() == (4.0, 4.0, 4.0)


def test_what_is_wrong_with_patients_comes_at_once(
    lidc: Path, tmp_path: Path, ct: Callable, write_ct: Callable, capsys: pytest.CaptureFixture
) -> None:
    folders = [lidc / "manifest-1" / "LIDC-IDRI" / name for name in NAMES]
    slices = [sorted(folder.rglob("*.dcm")) for folder in folders]
    slices[0][4].unlink()
    slices[1][3].write_bytes(b"no longer")
    write_nifti(folders[3] / "ct.nii.gz", ct(3).voxels, ct(3).geometry)
    write_ct(folders[5] / "again", ct(4), SeriesInstanceUID="1.2.9")
    for path in slices[5]:
        path.unlink()
    write_ct(lidc / "manifest-2" / NAMES[2], ct(9))
    (lidc / "manifest-2" / "LIDC-IDRI-0100").mkdir()
    arguments = ["prepare", "lidc", str(lidc), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    for text in (
        f"{folders[0]} cannot be read. The CT in {folders[0]}, series 3 'chest' of 9 slices, is not an even stack",
        "1-006.dcm and 1-004.dcm are 2.50 mm apart",
        f"{slices[1][3]} is damaged",
        f"{lidc / 'manifest-2' / NAMES[2]}: {folders[2]} is of the same patient",
        f"{folders[3]}: holds NIfTI and DICOM files",
        f"{folders[5]} has the same content as {folders[4]}",
    ):
        assert text in message
    assert not (tmp_path / "out").exists() and "Traceback" not in message
    cases, report = prepare(lidc, tmp_path / "out", "--exclude_problems")
    assert [case.subject for case in cases] == [NAMES[2], NAMES[4]]
    assert sorted(path.stem for path in (tmp_path / "out/images").iterdir()) == [
        f"{n}.nii" for n in (NAMES[2], NAMES[4])
    ]
    assert "LIDC-IDRI-0100: left out, there is no file in it" in report
    assert (
        "same content" in report.split("## Left out")[1] and "holds NIfTI" in report.split("Left out before reading")[1]
    )


def test_nifti_files_are_listed_where_they_lie(tmp_path: Path, ct: Callable) -> None:
    for name in ("images/LIDC-IDRI-0001_a", "images/LIDC-IDRI-0001_b", "LIDC-IDRI-0002/ct", "images/other"):
        path = tmp_path / "data" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = ct(len(list((tmp_path / "data").rglob("*"))))
        write_nifti(path, volume.voxels, volume.geometry)
    (tmp_path / "data/labels").mkdir()
    write_nifti(tmp_path / "data/labels/other.nii.gz", (volume.voxels > 0).astype(np.uint8), volume.geometry)
    (tmp_path / "list.csv").write_text("subject,label,age\nLIDC-IDRI-0001,nodule,60\nLIDC-IDRI-0002,none,50\nother,,\n")
    cases, _ = prepare(tmp_path / "data", tmp_path / "out", "--table", str(tmp_path / "list.csv"))
    assert [case.subject for case in cases] == ["LIDC-IDRI-0002", "LIDC-IDRI-0001", "LIDC-IDRI-0001", "other"]
    assert cases[1].row["split"] == cases[2].row["split"] and cases[1].row["age"] == "60"
    assert all((tmp_path / "data") in case.image.resolve().parents for case in cases)
    assert cases[3].path("mask").resolve() == tmp_path / "data/labels/other.nii.gz"
    assert not (tmp_path / "out/images").exists()


def test_files_of_one_name_are_told_apart(tmp_path: Path, ct: Callable, capsys: pytest.CaptureFixture) -> None:
    for number, name in enumerate(NAMES[:5]):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_nifti(tmp_path / "data" / name / "ct.nii.gz", ct(number).voxels, ct(number).geometry)
    _, report = prepare(tmp_path / "data", tmp_path / "out")
    printed = capsys.readouterr().out
    for name in NAMES[:5]:
        assert f"{name}, {name}/ct.nii.gz: 14 × 11 × 12 voxels" in printed
        assert f"| {name} | {name}/ct.nii.gz | 14 × 11 × 12 voxels" in report
    # Five patients suffice for three splits.
    assert "training.csv, validation.csv, test.csv. Read" in printed
    held = [len(read_manifest(tmp_path / f"out/{split}.csv")) for split in ("training", "validation", "test")]
    assert held == [3, 1, 1]


def test_splits_without_patients_are_named(tmp_path: Path, ct: Callable, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        write_nifti(tmp_path / f"data/{number}.nii.gz", ct(number).voxels, ct(number).geometry)
    prepare(tmp_path / "data", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "and for its splits training.csv. No patient is in validation or test: there are too few patients" in printed
    assert "Change --fractions to fill these splits." in printed
    prepare(tmp_path / "data", tmp_path / "half", "--fractions", "0.5", "0.5", "0")
    assert "training.csv, validation.csv. No patient is in test:" in capsys.readouterr().out


def test_files_that_are_no_ct_are_named(tmp_path: Path, ct: Callable, capsys: pytest.CaptureFixture) -> None:
    volume, source = ct(), tmp_path / "data"
    source.mkdir()
    write_nifti(source / "cine.nii.gz", np.stack([volume.voxels, volume.voxels + 1], axis=-1), volume.geometry)
    write_nifti(source / "cut.nii.gz", volume.voxels, volume.geometry)
    (source / "cut.nii.gz").write_bytes((source / "cut.nii.gz").read_bytes()[:-200])
    write_nifti(source / "a.nii.gz", volume.voxels, volume.geometry)
    write_nifti(source / "a_seg.nii.gz", np.ones((3, 3, 3), np.uint8), volume.geometry)
    write_nifti(source / "good.nii.gz", ct(1).voxels, volume.geometry)
    assert main(["prepare", "lidc", str(source), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "cine.nii.gz has four axes (20, 16, 10, 2)" in message
    assert "cut.nii.gz is damaged or was cut off" in message
    assert "a.nii.gz its mask a_seg.nii.gz has the shape (3, 3, 3), its image (20, 16, 10)" in message
    assert "good.nii.gz" not in message
    (tmp_path / "list.csv").write_text("subject\ngood\nnobody\n")
    with pytest.raises(CardioDiTError, match=r"list\.csv has no row for the subject cut"):
        prepare_cohort("lidc", source, tmp_path / "out", tmp_path / "list.csv")
    how = Preparation(exclude=True)
    manifest = prepare_cohort("lidc", source, tmp_path / "out", tmp_path / "list.csv", how)
    assert [case.subject for case in read_manifest(manifest)] == ["good"]
    assert "the subject nobody has no image" in (tmp_path / "out/report.md").read_text()


def test_several_processes_make_the_same(lidc: Path, tmp_path: Path) -> None:
    prepare(lidc, tmp_path / "one")
    prepare(lidc, tmp_path / "two", "--workers", "2")
    for name in ("manifest.csv", "report.md", "pictures/overview-1.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_is_overwritten_and_the_source_not_written_to(lidc: Path, tmp_path: Path) -> None:
    prepare(lidc, tmp_path / "out")
    with pytest.raises(CardioDiTError, match="is not empty"):
        prepare_cohort("lidc", lidc, tmp_path / "out")
    with pytest.raises(CardioDiTError, match="lies in the source"):
        prepare_cohort("lidc", lidc, lidc / "prepared")
    with pytest.raises(CardioDiTError, match="contains the source"):
        prepare_cohort("lidc", lidc, tmp_path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Preparation(frame_time=0.03), "--frame_time are for cines"),
        (Preparation(spacing=(1.0, 1.0, 1.0)), "--spacing is for npz files"),
        (Preparation(preset="cine"), "is not a preset that crops or pads a CT"),
        (Preparation(own_split=True), "is not in any of its partitions"),
    ],
)
def test_options_that_do_not_fit_are_refused(how: Preparation, message: str, lidc: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=message):
        prepare_cohort("lidc", lidc, tmp_path / "out", how=how)
    assert not (tmp_path / "out").exists()
    if how.spacing or how.preset:
        with pytest.raises(CardioDiTError, match=r"are for CT \(lidc, radchest\), not for the cines of folder"):
            prepare_cohort("folder", lidc, tmp_path / "out", how=how)


def test_another_preset_can_be_compared_with(lidc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare(lidc, tmp_path / "out", "--preset", "prdit-radchest-128")
    assert "prdit-radchest-128, 256 × 256 × 256 voxels of 0.8 × 0.8 × 0.8 mm" in capsys.readouterr().out
