"""`cardiodit prepare --measure`: EF, EDV, ESV and mass of each row, from its masks or by a segmenter."""

import csv
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom.heart import draw_heart
from cardiodit.imaging.phantom.scene import Phantom, render

GROUPS = ("normal", "dilated", "infarct")


@pytest.fixture(scope="module")
def hearts() -> list[Phantom]:
    drawn = []
    for number, group in enumerate(GROUPS):
        random = np.random.default_rng(number)
        drawn.append(render(draw_heart(group, random), (64, 64, 8, 5), random))
    return drawn


@pytest.fixture
def export(hearts: list[Phantom], tmp_path: Path) -> Path:
    """Three subjects: one with masks of the beat, one with masks of two frames, one without."""
    folder = tmp_path / "export"
    folder.mkdir()
    rows = []
    for number, heart in enumerate(hearts):
        write_nifti(folder / f"s{number}.nii.gz", heart.image, heart.geometry)
        rows.append({"subject": f"s{number}", "mask": "", "ed_mask": "", "es_mask": "", "age": str(60 + number)})
    systole = int(np.argmin(hearts[1].volumes["lv"]))
    write_nifti(folder / "s0_seg.nii.gz", hearts[0].labels, hearts[0].geometry)
    for name, frame in (("ed", 0), ("es", systole)):
        write_nifti(folder / f"s1_{name}_seg.nii.gz", hearts[1].labels[..., frame], hearts[1].geometry)
        rows[1][f"{name}_mask"] = f"s1_{name}_seg.nii.gz"
    rows[0]["mask"] = "s0_seg.nii.gz"
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], "mask_order", "ed_frame", "es_frame"])
        writer.writeheader()
        for number, row in enumerate(rows):
            order = "" if number == 2 else "RV=1 MYO=2 LV=3"
            paths = {key: f"export/{row[key]}" if row[key] else "" for key in ("mask", "ed_mask", "es_mask")}
            writer.writerow({**row, **paths, "mask_order": order, "ed_frame": 0, "es_frame": systole})
    return folder


def prepared(export: Path, name: str, *options: str) -> dict[str, dict[str, str]]:
    output = export.parent / name
    table = ["--table", str(export.parent / "table.csv")]
    assert main(["prepare", "folder", str(export), "--output_dir", str(output), *table, *options]) == 0
    with (output / "manifest.csv").open() as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    with (output / "training.csv").open() as file:
        assert all(row == rows[row["subject"]] for row in csv.DictReader(file))
    return rows


def exact(heart: Phantom) -> tuple[float, float, float, float]:
    largest, smallest = max(heart.volumes["lv"]), min(heart.volumes["lv"])
    return 100 * (1 - smallest / largest), largest, smallest, 1.05 * heart.volumes["myocardium"][0]


def test_masks_are_measured_and_a_row_without_one_stays_blank_and_is_named(
    export: Path, hearts: list[Phantom], capsys: pytest.CaptureFixture
) -> None:
    rows = prepared(export, "masks", "--measure", "masks")
    for number in (0, 1):
        found = [float(rows[f"s{number}"][name]) for name in ("ef", "edv", "esv", "mass")]
        np.testing.assert_allclose(found, exact(hearts[number]), rtol=0.08)  # slices of 12.5 mm
    assert [rows["s2"][name] for name in ("ef", "edv", "measured_from")] == ["", "", ""]
    assert [row["age"] for row in rows.values()] == ["60", "61", "62"]
    said = capsys.readouterr().out
    assert "Measured 2 of 3 cines (2 from masks): ef, edv, esv, mass." in said
    assert "s2 was not measured" in said and "no segmenter was named" in said


def test_a_segmenter_measures_rows_without_masks(export: Path, hearts: list[Phantom]) -> None:
    rows = prepared(export, "both", "--measure", "phantom-segmenter")
    assert [rows[name]["measured_from"] for name in ("s0", "s1", "s2")] == ["masks", "masks", "phantom-segmenter"]
    found = [float(rows["s2"][name]) for name in ("ef", "edv", "esv")]
    np.testing.assert_allclose(found, exact(hearts[2])[:3], rtol=0.12)


def test_a_number_of_the_cohort_is_kept(export: Path) -> None:
    table = export.parent / "table.csv"
    rows = list(csv.DictReader(table.open()))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], "ef"])
        writer.writeheader()
        writer.writerows([{**row, "ef": "55" if row["subject"] == "s0" else ""} for row in rows])
    found = prepared(export, "kept", "--measure", "masks")
    assert found["s0"]["ef"] == "55" and float(found["s1"]["ef"]) < 45


def test_ct_cannot_be_measured_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["prepare", "lidc", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--measure", "masks"]
    assert main(command) == 1
    assert "--measure is for cines, and lidc lists CT" in capsys.readouterr().err
