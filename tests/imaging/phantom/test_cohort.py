import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cardiodit import CardioDiTError
from cardiodit.cli import main
from cardiodit.imaging.phantom import GROUPS, write_cohort

SMALL = (32, 32, 4, 6)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_hearts_masks_volumes_and_a_manifest(tmp_path: Path, capsys) -> None:
    arguments = ["phantom", "--output_dir", str(tmp_path / "p"), "--num", "5", "--size", *map(str, SMALL)]
    assert main(arguments) == 0
    assert "5 hearts" in capsys.readouterr().out
    found = rows(tmp_path / "p")
    assert [row["label"] for row in found] == [*GROUPS, "normal"]
    assert len({row["subject"] for row in found}) == 5
    row = found[1]
    image, mask = (nibabel.load(tmp_path / "p" / row[name]) for name in ("image", "mask"))
    assert image.shape == mask.shape == SMALL and np.array_equal(image.affine, mask.affine)
    assert image.header.get_xyzt_units() == ("mm", "sec") and image.header["pixdim"][4] > 0
    volumes = json.loads((tmp_path / "p" / row["volumes"]).read_text())["lv"]
    assert float(row["lv_edv_ml"]) == pytest.approx(volumes[0], abs=0.01)
    assert volumes[int(row["es_frame"])] == min(volumes)
    assert len(list((tmp_path / "p" / "pictures").glob("*.png"))) == 10  # a sheet and a curve each


@pytest.mark.usefixtures("spawned_workers")
def test_heart_i_depends_on_neither_number_nor_processes(tmp_path: Path) -> None:
    write_cohort(tmp_path / "one", num=4, seed=3, size=SMALL)
    write_cohort(tmp_path / "two", num=3, seed=3, size=SMALL, workers=2)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two")):
        assert one == two
        first, second = (
            np.asarray(nibabel.load(tmp_path / folder / one["image"]).dataobj) for folder in ("one", "two")
        )
        assert np.array_equal(first, second)


def test_chests_do_not_depend_on_processes(tmp_path: Path, capsys) -> None:
    size = ["--size", "32", "24", "24"]
    for folder, workers in (("one", "1"), ("two", "2")):
        arguments = ["phantom", "--kind", "chest", "--output_dir", str(tmp_path / folder), "--num", "2", *size]
        assert main([*arguments, "--workers", workers]) == 0
    assert "2 chests" in capsys.readouterr().out
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two")):
        assert one == two
        image, mask = (nibabel.load(tmp_path / "one" / one[name]) for name in ("image", "mask"))
        assert image.shape == (32, 24, 24) and np.array_equal(image.affine, mask.affine)
        assert np.array_equal(
            np.asarray(image.dataobj), np.asarray(nibabel.load(tmp_path / "two" / one["image"]).dataobj)
        )
        exact = json.loads((tmp_path / "one" / one["volumes"]).read_text())
        assert exact["volumes_ml"]["lungs"] == pytest.approx(float(one["lungs_ml"]), abs=0.1)
        assert len(exact["nodules"]) == int(one["nodules"])
    assert len(list((tmp_path / "one/pictures").glob("*.png"))) == 4
    assert (
        main(["phantom", "--kind", "chest", "--output_dir", str(tmp_path / "x"), "--size", "64", "64", "8", "16"]) == 1
    )
    assert "must be 3 numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num": 0}, "num=0 must be at least 1"),
        ({"size": (8, 32, 4, 6)}, "rows and columns .at least 16."),
        ({"spacing": (1.0, 1.0, -8.0)}, "three positive numbers in mm"),
        ({"groups": ["healthy"]}, "no group 'healthy'; choose from normal"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_impossible_cohorts(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        write_cohort(tmp_path / "p", **settings)
    assert not (tmp_path / "p").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").touch()
    with pytest.raises(CardioDiTError, match=r"contains patients.csv"):
        write_cohort(tmp_path, num=1)
    assert [p.name for p in tmp_path.iterdir()] == ["patients.csv"]
