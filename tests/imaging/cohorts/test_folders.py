"""A messy export, prepared by the command: other views, files of the system, tables with masks, files left out."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import write_nifti

from .conftest import TO_MNMS


@pytest.fixture
def export(tmp_path: Path, patient: Callable) -> Path:
    """Four subjects with a short axis; the first has two, and long-axis views besides."""
    source = tmp_path / "export"
    for number in range(4):
        folder, heart = source / f"subject-{number}", patient(number)
        folder.mkdir(parents=True)
        write_nifti(folder / "sax.nii.gz", heart.image, heart.geometry)
    first = patient(0)
    write_nifti(source / "subject-0" / "sax_again.nii.gz", first.image + 1, first.geometry)
    for slices, name in ((1, "4ch"), (3, "2ch")):
        write_nifti(source / "subject-0" / f"{name}.nii.gz", first.image[:, :, :slices], first.geometry)
    return source


def prepare(source: Path, output_dir: Path, *options: str) -> list[str]:
    """Run the command, and return the names of the images in the manifest."""
    assert main(["prepare", "folder", str(source), "--output_dir", str(output_dir), *options]) == 0
    return sorted(f"{case.subject}/{case.image.name}" for case in read_manifest(output_dir / "manifest.csv"))


def fails(capsys: pytest.CaptureFixture, source: Path, *options: str) -> str:
    """Run the command, which fails, and return its error."""
    output = ["--output_dir", str(source.parent / "failed")]
    assert main(["prepare", "folder", str(source), *output, *options]) == 1
    assert not (source.parent / "failed").exists()
    return capsys.readouterr().err


def test_views_that_are_no_stacks_are_listed_and_kept_out(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert prepare(export, tmp_path / "out") == [f"subject-{n}/sax.nii.gz" for n in range(4)]
    said, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "Did not use 3 files:" in said
    for text in (said, report):
        assert "subject-0/4ch.nii.gz has 1 slice, so it is not a short-axis stack (kept with --min_slices 1)\n" in text
        assert "subject-0/2ch.nii.gz has 3 slices, so it is not a short-axis stack" in text
        assert "subject-0/sax_again.nii.gz is one of 2 cines of subject-0, of which sax.nii.gz has the most" in text
    assert len(prepare(export, tmp_path / "two", "--all_cines", "--min_slices", "2")) == 6
    assert len(prepare(export, tmp_path / "all", "--all_cines", "--min_slices", "1")) == 7
    assert "subject-0 has 4 images, all of them in the same split: " in capsys.readouterr().out


def test_the_cine_with_the_most_slices_stands_for_its_subject(export: Path, tmp_path: Path) -> None:
    assert prepare(export, tmp_path / "out", "--min_slices", "1") == [f"subject-{n}/sax.nii.gz" for n in range(4)]
    assert prepare(export, tmp_path / "flat", "--min_slices", "1", "--pattern", "subject-0/?ch*") == [
        "subject-0/2ch.nii.gz"
    ]


def test_a_pattern_chooses_among_a_subjects_cines(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare(export, tmp_path / "out", "--pattern", "sax.*") == [f"subject-{n}/sax.nii.gz" for n in range(4)]
    assert "3 of 7 files were left out by --pattern 'sax.*'" in (tmp_path / "out" / "report.md").read_text()
    assert prepare(export, tmp_path / "one", "--pattern", "subject-3/*") == ["subject-3/sax.nii.gz"]
    assert "matches none of 7 files" in fails(capsys, export, "--pattern", "*la*")
    assert "4ch.nii.gz has 1 slice, so it is not a short-axis stack" in fails(capsys, export, "--pattern", "4ch*")


def test_files_of_the_system_are_skipped(export: Path, tmp_path: Path) -> None:
    for name in (".DS_Store", "._sax.nii.gz"):
        (export / "subject-1" / name).write_bytes(b"\0\5\26\7 of a Mac")
    (export / "__MACOSX" / ".hidden").mkdir(parents=True)
    (export / "__MACOSX" / ".hidden" / "x.nii.gz").touch()
    assert len(prepare(export, tmp_path / "out")) == 4


def test_excluded_files_are_printed_and_in_no_split(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    damaged = export / "subject-2" / "sax.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    table = tmp_path / "patients.csv"
    table.write_text("subject,label\n" + "".join(f"subject-{n},well\n" for n in (0, 2, 3)))
    assert prepare(export, tmp_path / "out", "--exclude_problems", "--table", str(table), "--pattern", "sax.*") == [
        "subject-0/sax.nii.gz",
        "subject-3/sax.nii.gz",
    ]
    said, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    left_out = [export / f"subject-{n}" / "sax.nii.gz" for n in (1, 2)]
    assert "Left out 2 files with problems (--exclude_problems):" in said
    for path in left_out:
        assert f"- {path}" in said and f"- {path}" in report.split("## Left out")[1]
    for manifest in (tmp_path / "out").glob("*.csv"):
        with manifest.open(newline="") as file:
            assert not {f"subject-{n}" for n in (1, 2)} & {row["subject"] for row in csv.DictReader(file)}


@pytest.fixture
def table(tmp_path: Path, export: Path, patient: Callable) -> Callable[..., list[str]]:
    """Return a function that writes a table with a mask of the first subject, in a folder of its own."""
    folder = tmp_path / "tables"
    (folder / "masks").mkdir(parents=True)
    heart = patient(0)
    write_nifti(folder / "masks" / "a.nii.gz", TO_MNMS[heart.labels], heart.geometry)
    write_nifti(folder / "masks" / "flat.nii.gz", heart.labels[:, :, :1], heart.geometry)
    write_nifti(folder / "masks" / "odd.nii.gz", np.where(heart.labels == 3, 7, heart.labels), heart.geometry)

    def write(mask: str = "masks/a.nii.gz", order: str = "LV=1 MYO=2 RV=3", column: str = "mask") -> list[str]:
        rows = [f"subject-{n},," for n in (1, 2, 3)]
        lines = [f"subject,{column},mask_order", f"subject-0,{mask},{order}", *rows]
        (folder / "patients.csv").write_text("\n".join(lines) + "\n")
        return ["--table", str(folder / "patients.csv"), "--pattern", "sax.*"]

    return write


@pytest.mark.parametrize("column", ["mask", "es_mask"])
def test_masks_of_a_table_are_found_from_its_folder(
    export: Path, tmp_path: Path, table: Callable, patient: Callable, column: str
) -> None:
    if column == "es_mask":
        heart = patient(0)
        write_nifti(tmp_path / "tables" / "masks" / "a.nii.gz", TO_MNMS[heart.labels[..., 3]], heart.geometry)
    prepare(export, tmp_path / "out" / "deep", *table(column=column))
    first, *others = read_manifest(tmp_path / "out" / "deep" / "manifest.csv")
    assert first.path(column).resolve() == tmp_path / "tables" / "masks" / "a.nii.gz"
    assert first.row["mask_order"] == "LV=1 MYO=2 RV=3" and not any(case.path(column) for case in others)


@pytest.mark.parametrize(
    ("mask", "order", "message"),
    [
        ("masks/none.nii.gz", "LV=1 MYO=2 RV=3", "subject subject-0: the mask masks/none.nii.gz .* does not exist"),
        ("masks/flat.nii.gz", "LV=1 MYO=2 RV=3", r"its mask flat.nii.gz has the shape \(32, 28, 1, 8\), its image"),
        ("masks/odd.nii.gz", "LV=1 MYO=2 RV=3", "masks with the labels 0, 1, 2, 7, and 7 is not in the order 'LV=1"),
        ("masks/a.nii.gz", "LV=1 RV=3", "The label order 'LV=1 RV=3' must name three numbers"),
    ],
)
def test_masks_of_a_table_are_checked(
    export: Path, table: Callable, capsys: pytest.CaptureFixture, mask: str, order: str, message: str
) -> None:
    assert re.search(message, fails(capsys, export, *table(mask, order)))


def test_an_unknown_order_of_labels_is_noted(export: Path, tmp_path: Path, table: Callable) -> None:
    prepare(export, tmp_path / "out", *table(order=""))
    assert "masks with the labels 0, 1, 2, 3, and no mask_order says" in (tmp_path / "out" / "report.md").read_text()


def test_a_table_names_each_subject_once(export: Path, table: Callable, capsys: pytest.CaptureFixture) -> None:
    options = table()
    path = Path(options[1])
    path.write_text(path.read_text() + "subject-1,,\n")
    assert "line 6: there is an earlier row for the subject subject-1" in fails(capsys, export, *options)


@pytest.mark.parametrize("frame", ["2.5", "nan", "inf", "first"])
def test_a_frame_that_is_no_whole_number_is_refused(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture, frame: str
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("subject,ed_frame\n" + "".join(f"subject-{n},{frame}\n" for n in range(4)))
    error = fails(capsys, export, "--table", str(table))
    assert f"subject subject-3: ed_frame='{frame}' is not a frame number, a whole number" in error


def test_the_rule_by_which_subjects_and_masks_are_recognised_is_in_the_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "folder: The subject of a file is the first folder below SOURCE, without folders of a general name" in said
    assert "scan_1_seg.nii.gz to scan_1.nii.gz. Hidden files are skipped." in said
    assert "mask (path of a label map, relative to the table; or ed_mask and es_mask)" in said
