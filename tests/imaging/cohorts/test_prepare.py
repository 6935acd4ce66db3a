"""From laid-out cohorts to manifests, as a user runs it: by the command."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts import Preparation, prepare_cohort
from cardiodit.imaging.manifest import Case, prepare_case, prepare_mask, read_manifest
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.orientation import order_of_cine
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume

ES = 3


def prepare(layout: str, source: Path, output_dir: Path, *options: str) -> tuple[list[Case], str]:
    assert main(["prepare", layout, str(source), "--output_dir", str(output_dir), *options]) == 0
    return read_manifest(output_dir / "manifest.csv"), (output_dir / "report.md").read_text()


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def opened(case: Case) -> Volume:
    """As a data set will open it: by what its row tells."""
    volume = read_nifti(case.image)
    frame = case.number("ed_frame")
    order = order_of_cine(volume, None, None if frame is None else int(frame), case.row["slices"] or None)
    return order.apply(volume)


def test_acdc(acdc: Path, tmp_path: Path, patient: Callable) -> None:
    before = contents(acdc)
    cases, report = prepare("acdc", acdc, tmp_path / "out")
    assert contents(acdc) == before
    assert [case.subject for case in cases] == [f"patient{n:03d}" for n in range(1, 7)]
    row = cases[0].row
    assert (row["label"], row["ed_frame"], row["es_frame"], row["partition"]) == ("DCM", "0", str(ES), "training")
    assert (row["mask_order"], row["height"], row["frame_time"]) == ("RV=1 MYO=2 LV=3", "184.0", "")
    assert row["slices"] == "base to apex"  # the masks tell, the placeholder of an affine does not
    assert np.array_equal(read_nifti(cases[0].path("es_mask")).voxels, patient(1).labels[..., ES])
    assert "does not say how long a frame lasts" in report and "base and apex from the mask: 6" in report
    assert Image.open(tmp_path / "out/pictures/overview-1.png").size[0] == 6 * 160


def test_acdcs_own_split_and_frame_time(acdc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cases, _ = prepare("acdc", acdc, tmp_path / "out", "--own_split", "--frame_time", "0.03")
    assert [case.row["split"] for case in cases] == ["training"] * 4 + ["test"] * 2
    assert {case.row["frame_time"] for case in cases} == {"0.03"}
    assert "No patient is in validation: the cohort's own split puts none there" in capsys.readouterr().out
    assert len(read_manifest(tmp_path / "out/test.csv")) == 2 and not (tmp_path / "out/validation.csv").exists()
    part, _ = prepare("acdc", acdc / "training", tmp_path / "part")
    assert len(part) == 4


def test_mnms(mnms: Path, tmp_path: Path) -> None:
    cases, report = prepare("mnms", mnms, tmp_path / "out", "--own_split")
    first = cases[0].row
    assert (first["vendor"], first["centre"], first["label"], first["mask_order"]) == (
        "A",
        "1",
        "HCM",
        "LV=1 MYO=2 RV=3",
    )
    assert [case.row["split"] for case in cases] == ["training", "training", "training", "validation", "test"]
    assert (first["ed_frame"], first["es_frame"]) == ("0", str(ES))
    assert (first["height"], first["weight"]) == ("170", "70")
    unlabelled = cases[2]
    assert unlabelled.path("mask") is None and "the labels of the unlabelled part are misleading" in report


def test_labels_overrule_a_table_that_is_wrong(mnms: Path, tmp_path: Path) -> None:
    (table,) = (mnms / "OpenDataset").glob("*.csv")
    table.write_text(table.read_text().replace(f",0,{ES},", f",{ES},0,"))
    cases, report = prepare("mnms", mnms, tmp_path / "out")
    labelled = [case.row for case in cases if case.row["mask"]]
    assert {(row["ed_frame"], row["es_frame"]) for row in labelled} == {("0", str(ES))}
    assert f"has labels in frames 0 (fuller) and {ES}, but the table names {ES} and 0" in report


def test_mnms2(mnms2: Path, tmp_path: Path) -> None:
    cases, _ = prepare("mnms2", mnms2, tmp_path / "out", "--own_split")
    assert [case.row["split"] for case in cases] == ["training", "training", "validation", "test"]
    assert [case.row["label"] for case in cases] == ["NOR", "NOR", "NOR", "LV"]
    # The table does not name the frames; the files of single frames do.
    assert {(case.row["ed_frame"], case.row["es_frame"]) for case in cases} == {("0", str(ES))}
    assert cases[0].path("ed_mask").name == "001_SA_ED_gt.nii.gz"


def test_ukbb_hearts_are_turned_and_begin_at_end_diastole(ukbb: Path, tmp_path: Path, patient: Callable) -> None:
    cases, report = prepare("ukbb", ukbb, tmp_path / "out")
    assert {case.row["slices"] for case in cases} == {"apex to base"}
    assert {case.row["ed_frame"] for case in cases} == {"6"}
    assert "end-diastole from the mask: 4" in report or "end-diastole from the manifest: 4" in report
    for number, case in enumerate(cases):
        assert np.array_equal(opened(case).voxels, patient(number).image)


def test_a_folder_with_a_table(tmp_path: Path, patient: Callable) -> None:
    for number, name in enumerate(["anna/scan_1", "anna/scan_2", "images/ben", "carl"]):
        path = tmp_path / "data" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, patient(number).image, patient(number).geometry)
    (tmp_path / "data/labels").mkdir()
    write_nifti(tmp_path / "data/labels/ben.nii.gz", patient(2).labels, patient(2).geometry)
    write_nifti(tmp_path / "data/anna/scan_1_seg.nii.gz", patient(0).labels, patient(0).geometry)
    write_nifti(tmp_path / "data/anna/other_seg.nii.gz", patient(0).labels, patient(0).geometry)
    table = tmp_path / "patients.csv"
    table.write_text("subject,label,vendor,ed_frame,age\nanna,sick,A,2,40\nben,well,B,,50\ncarl,well,B,,60\ndora,,,,\n")
    cases, report = prepare("folder", tmp_path / "data", tmp_path / "out", "--all_cines", "--table", str(table))
    found = {case.image.name: case for case in cases}
    assert {name: case.subject for name, case in found.items()} == {
        "scan_1.nii.gz": "anna",
        "scan_2.nii.gz": "anna",
        "ben.nii.gz": "ben",
        "carl.nii.gz": "carl",
    }
    assert found["scan_1.nii.gz"].path("mask").name == "scan_1_seg.nii.gz"
    assert found["scan_2.nii.gz"].path("mask") is None
    assert found["ben.nii.gz"].path("mask").parent.name == "labels"
    assert found["scan_1.nii.gz"].row["split"] == found["scan_2.nii.gz"].row["split"]
    assert found["scan_2.nii.gz"].row["ed_frame"] == "2" and found["ben.nii.gz"].row["age"] == "50"
    assert "other_seg.nii.gz: left out, it looks like a mask" in report and "dora has no image" in report


def test_a_spacing_is_recommended_for_cines_of_different_voxel_sizes(
    tmp_path: Path, patient: Callable, capsys: pytest.CaptureFixture
) -> None:
    for number, size in enumerate((1.25, 1.4, 1.8)):
        heart = patient(number)
        geometry = replace(heart.geometry, spacing=(size, size, 10.0))
        path = tmp_path / "data" / f"patient-{number}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write_nifti(path, heart.image, geometry)
    _, report = prepare("folder", tmp_path / "data", tmp_path / "out")
    told = "1.25 to 1.8 × 1.25 to 1.8 × 10 mm. Train the VQ-GAN with `data.preprocessing.spacing: [1.4, 1.4, 10]`"
    assert told in report and told in capsys.readouterr().out
    (tmp_path / "data/patient-0.nii.gz").unlink()
    (tmp_path / "data/patient-2.nii.gz").unlink()
    _, report = prepare("folder", tmp_path / "data", tmp_path / "one")
    assert "data.preprocessing" not in report + capsys.readouterr().out


def test_dicom_is_converted_without_names(tmp_path: Path, patient: Callable, write_dicom: Callable) -> None:
    for number in range(2):
        write_dicom(tmp_path / "hospital" / f"case{number}", Volume(patient(number).image, patient(number).geometry))
    cases, report = prepare("dicom", tmp_path / "hospital", tmp_path / "out")
    assert [case.image for case in cases] == [tmp_path / "out/images" / f"case{n}.nii.gz" for n in range(2)]
    for number, case in enumerate(cases):
        assert np.array_equal(opened(case).voxels, patient(number).image)
        assert b"Secret" not in __import__("gzip").decompress(case.image.read_bytes())
    assert "base and apex from the scanner: 2" in report


def test_an_incomplete_series_is_named_with_its_slices(
    tmp_path: Path, patient: Callable, write_dicom: Callable, capsys: pytest.CaptureFixture
) -> None:
    for number in range(2):
        folder = tmp_path / "hospital" / f"case{number}"
        write_dicom(folder, Volume(patient(number).image, patient(number).geometry))
    next((tmp_path / "hospital/case1").iterdir()).unlink()
    arguments = ["prepare", "dicom", str(tmp_path / "hospital"), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "case1 cannot be read. The slices in" in message and "has 7 (IM" in message and "case0" not in message
    assert main([*arguments, "--exclude_problems"]) == 0
    assert [case.subject for case in read_manifest(tmp_path / "out/manifest.csv")] == ["case0"]
    assert [path.name for path in (tmp_path / "out/images").iterdir()] == ["case0.nii.gz"]


def test_all_problems_of_a_cohort_come_at_once(acdc: Path, tmp_path: Path, patient: Callable, capsys) -> None:
    folders = sorted(acdc.glob("*/patient*"), key=lambda folder: folder.name)
    image = [next(folder.glob("*_4d.nii.gz")) for folder in folders]
    heart = read_nifti(image[0])
    write_nifti(image[1], heart.voxels, heart.geometry)  # the same content as the first
    image[2].write_bytes(image[2].read_bytes()[:-300])
    write_nifti(image[3], heart.voxels.swapaxes(2, 3).repeat(2, axis=3), heart.geometry)
    image[4].unlink()
    write_nifti(folders[5] / "patient006_frame01_gt.nii.gz", np.ones((9, 9, 9), np.uint8), heart.geometry)
    (folders[3] / "Info.cfg").unlink()
    assert main(["prepare", "acdc", str(acdc), "--output_dir", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    for text in (
        f"{folders[4]}: there is no patient005_4d.nii.gz",
        f"{folders[3] / 'Info.cfg'} is missing",
        f"{image[1]} has the same content as {image[0]}",
        f"{image[2]} is damaged or was cut off",
        f"{image[3]} has its time and slice axes swapped",
        f"{image[5]} its mask patient006_frame01_gt.nii.gz has the shape (9, 9, 9)",
        "--exclude_problems",
    ):
        assert text in message
    assert not (tmp_path / "out").exists() and "Traceback" not in message
    cases, report = prepare("acdc", acdc, tmp_path / "out", "--exclude_problems")
    assert [case.subject for case in cases] == ["patient001"]
    assert "lists 1 of 5 cines" in report and "has the same content as" in report.split("## Left out")[1]


def test_several_processes_make_the_same(acdc: Path, tmp_path: Path) -> None:
    prepare("acdc", acdc, tmp_path / "one")
    prepare("acdc", acdc, tmp_path / "two", "--workers", "2")
    for name in ("manifest.csv", "report.md", "pictures/overview-1.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_mixed_up_units_can_be_told(tmp_path: Path, patient: Callable, capsys) -> None:
    heart = patient(0)
    (tmp_path / "data").mkdir()
    write_nifti(tmp_path / "data/a.nii.gz", heart.image, heart.geometry.with_frame_time(50.0))
    assert main(["prepare", "folder", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]) == 1
    assert "50 sec, so that its 8 frames would be a beat of 400 s. In msec" in capsys.readouterr().err
    cases, _ = prepare("folder", tmp_path / "data", tmp_path / "out", "--time_unit", "msec")
    assert cases[0].number("frame_time") == pytest.approx(0.05)


def test_what_a_masks_header_says_of_time_does_not_matter(tmp_path: Path, patient: Callable) -> None:
    heart = patient(0)
    (tmp_path / "data").mkdir()
    for name, voxels in (("a", heart.image), ("a_seg", heart.labels)):
        write_nifti(tmp_path / f"data/{name}.nii.gz", voxels, heart.geometry.with_frame_time(50.0))
    cases, _ = prepare("folder", tmp_path / "data", tmp_path / "out", "--time_unit", "msec")
    prepared = prepare_case(cases[0], Preprocessing())
    assert np.array_equal(prepare_mask(cases[0], prepared).voxels, heart.labels)


@pytest.mark.parametrize("layout", ["acdc", "mnms", "mnms2", "ukbb", "folder", "dicom"])
def test_another_folder_than_the_cohorts_says_so(layout: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(CardioDiTError, match=r"was found in|was expected in|There is no folder|is not a folder"):
            prepare_cohort(layout, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_are_checked(mnms: Path, acdc: Path, tmp_path: Path) -> None:
    (table,) = (mnms / "OpenDataset").glob("*.csv")
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("Vendor,", "Maker,"))
    with pytest.raises(CardioDiTError, match="has no column 'Vendor'"):
        prepare_cohort("mnms", mnms, tmp_path / "out", other)
    lines = table.read_text().splitlines()
    other.write_text("\n".join(lines[:-1]))
    with pytest.raises(CardioDiTError, match="the table has no row for A4S9V4"):
        prepare_cohort("mnms", mnms, tmp_path / "out", other)
    with pytest.raises(CardioDiTError, match="ACDC has no table"):
        prepare_cohort("acdc", acdc, tmp_path / "out", other)


def test_the_output_never_swallows_the_source(acdc: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="contains the source"):
        prepare_cohort("acdc", acdc, acdc.parent)
    with pytest.raises(CardioDiTError, match="no layout 'kaggle'; choose from acdc"):
        prepare_cohort("kaggle", acdc, tmp_path / "out")
    with pytest.raises(CardioDiTError, match="three numbers that sum to 1"):
        prepare_cohort("acdc", acdc, tmp_path / "out", how=Preparation((0.5, 0.1, 0.1)))


def test_a_patient_without_its_information_is_left_out(acdc: Path, tmp_path: Path) -> None:
    """Its row would lack the columns that other patients have."""
    (acdc / "training/patient001/Info.cfg").unlink()
    with pytest.raises(CardioDiTError, match=r"patient001/Info\.cfg is missing"):
        prepare_cohort("acdc", acdc, tmp_path / "out")
    cases, report = prepare("acdc", acdc, tmp_path / "out", "--exclude_problems")
    assert [case.subject for case in cases] == [f"patient{n:03d}" for n in range(2, 7)]
    assert "Info.cfg is missing" in report.split("## Left out")[1]
