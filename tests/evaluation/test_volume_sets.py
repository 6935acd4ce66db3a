"""Which volumes belong to a set, and what is wrong with those that should."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.volume_sets import mask_paths, open_real, open_synthetic
from cardiodit.imaging import Geometry, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.preprocessing import PRESETS


def volume(path: Path) -> Path:
    write_nifti(path, np.zeros((4, 4, 4), np.float32), Geometry((1.0, 1.0, 1.0)))
    return path


def samples(folder: Path, count: int, **record: object) -> None:
    lines = [json.dumps({"file": volume(folder / f"seed0-{i:05d}.nii.gz").name, **record}) for i in range(count)]
    with (folder / "samples.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_samples_come_with_their_records(tmp_path: Path) -> None:
    steps = json.loads(json.dumps(PRESETS["cine"].to_dict()))
    samples(tmp_path, 3, units=[-1000, 1000], model="hearts", solver="ddim", seconds=3, preprocessing=steps)
    found = open_synthetic(tmp_path)
    assert [item.id for item in found.items] == ["seed0-00000", "seed0-00001", "seed0-00002"]
    assert {item.units for item in found.items} == {(-1000.0, 1000.0)}
    assert found.made_by == {"model": "hearts", "solver": "ddim"}
    assert found.preprocessing == steps
    assert not found.problems


def test_what_records_do_not_agree_on_is_not_told(tmp_path: Path) -> None:
    samples(tmp_path, 1, model="hearts", solver="ddim")
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"file": volume(tmp_path / "b.nii").name, "model": "hearts", "solver": "unipc"}) + "\n")
    assert open_synthetic(tmp_path).made_by == {"model": "hearts"}


def test_files_and_records_that_miss_each_other_are_problems(tmp_path: Path) -> None:
    samples(tmp_path, 3)
    (tmp_path / "seed0-00001.nii.gz").unlink()
    volume(tmp_path / "stray.nii.gz")
    found = open_synthetic(tmp_path)
    assert [item.id for item in found.items] == ["seed0-00000", "seed0-00002"]
    assert [(problem.file, problem.problem.split(":")[0]) for problem in found.problems] == [
        ("seed0-00001.nii.gz", "It is listed in samples.jsonl but missing from the folder."),
        ("stray.nii.gz", "It is not listed in samples.jsonl"),
    ]


def test_two_preparations_in_one_folder_are_two_evaluations(tmp_path: Path) -> None:
    samples(tmp_path, 1, preprocessing=PRESETS["cine"].to_dict())
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"file": "b.nii", "preprocessing": PRESETS["voldit"].to_dict()}) + "\n")
    with pytest.raises(CardioDiTError, match="prepared in 2 different ways"):
        open_synthetic(tmp_path)


def test_any_folder_of_nifti_will_do_and_an_empty_one_will_not(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    for name in ("b.nii.gz", "a.nii", ".hidden.nii"):
        volume(tmp_path / "volumes" / name)
    (tmp_path / "volumes" / "notes.txt").write_text("no volume")
    found = open_synthetic(tmp_path / "volumes")
    assert [item.id for item in found.items] == ["a", "b"]
    assert found.preprocessing is None and all(item.units is None and item.case is None for item in found.items)
    (tmp_path / "empty").mkdir()
    for place, expected in (("empty", "contains no NIfTI file"), ("nowhere", "neither a folder nor a manifest")):
        with pytest.raises(CardioDiTError, match=expected):
            open_synthetic(tmp_path / place)


def test_a_broken_list_names_its_line(tmp_path: Path) -> None:
    samples(tmp_path, 1)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"seed": 1}\n')
    with pytest.raises(CardioDiTError, match=r"Line 2 of .*samples.jsonl is not a record"):
        open_synthetic(tmp_path)


def test_rows_of_one_subject_are_told_apart_and_told_of(tmp_path: Path) -> None:
    rows = [{"image": volume(tmp_path / f"{i}.nii").name, "subject": "one" if i < 2 else "two"} for i in range(3)]
    write_manifest(tmp_path / "m.csv", rows)
    found = open_real(tmp_path / "m.csv")
    assert [item.id for item in found.items] == ["one", "one#2", "two"]
    assert "3 real volumes come from 2 subjects" in found.notes[0]
    assert not found.has_masks


def test_some_are_drawn_by_a_seed_wherever_they_stand_and_it_is_said(tmp_path: Path) -> None:
    """Of a cohort that is sorted by disease the first are of one."""
    samples(tmp_path, 40)
    found = open_synthetic(tmp_path)
    assert found.drawn(40, seed=0) is found and found.drawn(None, seed=0) is found
    some = found.drawn(20, seed=0)
    ids = [item.id for item in some.items]
    assert len(ids) == 20 and ids == sorted(ids)
    assert 5 <= sum(item in some.items for item in found.items[:20]) <= 15
    assert "Of the 40 synthetic volumes, 20 were drawn by the seed 0" in some.notes[0]
    backwards = replace(found, items=found.items[::-1]).drawn(20, seed=0)
    assert [item.id for item in backwards.items] == ids[::-1]
    assert {item.id for item in found.drawn(10, seed=0).items} < set(ids)
    assert [item.id for item in found.drawn(20, seed=1).items] != ids


def test_masks_of_every_frame_or_of_both_phases(tmp_path: Path) -> None:
    volume(tmp_path / "a.nii")
    columns = {"mask": "", "ed_mask": "", "es_mask": ""}
    for filled, expected in ((("mask",), 1), (("ed_mask", "es_mask"), 2), (("ed_mask",), 0), ((), 0)):
        write_manifest(tmp_path / "m.csv", [{"image": "a.nii", **columns, **dict.fromkeys(filled, "a.nii")}])
        found = open_real(tmp_path / "m.csv")
        assert found.has_masks == bool(expected)
        assert len(mask_paths(found.items[0].case) or []) == expected
