import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cardiodit import CardioDiTError
from cardiodit.cli import main
from cardiodit.imaging.phantom import GROUPS, cohort, write_cohort

from ...conftest import CHESTS

SMALL = (32, 32, 4, 6)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_hearts_masks_volumes_and_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "PICTURED", 2)
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
    assert len(list((tmp_path / "p" / "pictures").glob("*.png"))) == 4  # a sheet and a curve each


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


def test_chests_are_those_of_the_fixture_whatever_the_number_of_processes(tmp_path: Path, capsys) -> None:
    """One process drew the fixture; draw it again if you change the chests on purpose."""
    drawn, fixture = tmp_path / "drawn", CHESTS / "16x16x16" / "seed0"
    arguments = ["phantom", "--kind", "chest", "--output_dir", str(drawn), "--num", "2", "--size", "16", "16", "16"]
    assert main([*arguments, "--workers", "2"]) == 0
    assert "2 chests" in capsys.readouterr().out
    assert rows(drawn) == rows(fixture)[:2]
    for row in rows(drawn):
        image, mask = (nibabel.load(drawn / row[name]) for name in ("image", "mask"))
        assert image.shape == (16, 16, 16) and np.array_equal(image.affine, mask.affine)
        for name in ("image", "mask"):
            stored = nibabel.load(fixture / row[name])
            assert np.array_equal(np.asarray(stored.dataobj), np.asarray(nibabel.load(drawn / row[name]).dataobj))
        exact = json.loads((drawn / row["volumes"]).read_text())
        assert exact == json.loads((fixture / row["volumes"]).read_text())
        assert exact["volumes_ml"]["lungs"] == pytest.approx(float(row["lungs_ml"]), abs=0.1)
        assert len(exact["nodules"]) == int(row["nodules"])
    assert len(list((drawn / "pictures").glob("*.png"))) == 4
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
