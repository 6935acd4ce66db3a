"""Sets of volumes: members and problems, preprocessing of real volumes, loading of voxels and labels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import LV
from cardiodit.evaluation.volume_sets import (
    SYNTHETIC,
    Item,
    OtherIntensityError,
    VolumeSet,
    is_whole_beat,
    load,
    load_labels,
    mask_paths,
    open_real,
    open_synthetic,
    open_training,
    settle_preprocessing,
)
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
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


def test_facts_on_which_records_differ_are_left_out(tmp_path: Path) -> None:
    samples(tmp_path, 1, model="hearts", solver="ddim")
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"file": volume(tmp_path / "b.nii").name, "model": "hearts", "solver": "unipc"}) + "\n")
    assert open_synthetic(tmp_path).made_by == {"model": "hearts"}


def test_files_without_records_and_records_without_files_are_problems(tmp_path: Path) -> None:
    samples(tmp_path, 3)
    (tmp_path / "seed0-00001.nii.gz").unlink()
    volume(tmp_path / "stray.nii.gz")
    found = open_synthetic(tmp_path)
    assert [item.id for item in found.items] == ["seed0-00000", "seed0-00002"]
    assert [(problem.file, problem.problem.split(":")[0]) for problem in found.problems] == [
        ("seed0-00001.nii.gz", "It is listed in samples.jsonl but missing from the folder."),
        ("stray.nii.gz", "It is not listed in samples.jsonl"),
    ]


def test_two_preprocessings_in_one_folder_are_an_error(tmp_path: Path) -> None:
    samples(tmp_path, 1, preprocessing=PRESETS["cine"].to_dict())
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"file": "b.nii", "preprocessing": PRESETS["voldit"].to_dict()}) + "\n")
    with pytest.raises(CardioDiTError, match="prepared in 2 different ways"):
        open_synthetic(tmp_path)


def test_any_folder_with_nifti_files_is_a_set_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
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


def test_rows_of_one_subject_get_different_ids_and_a_note(tmp_path: Path) -> None:
    rows = [{"image": volume(tmp_path / f"{i}.nii").name, "subject": "one" if i < 2 else "two"} for i in range(3)]
    write_manifest(tmp_path / "m.csv", rows)
    found = open_real(tmp_path / "m.csv")
    assert [item.id for item in found.items] == ["one", "one#2", "two"]
    assert "3 real volumes come from 2 subjects" in found.notes[0]
    assert not found.has_masks


def test_equal_file_names_in_different_folders_are_different_subjects(tmp_path: Path) -> None:
    """Without a column for subjects, every image is a subject of its own."""
    rows = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        rows.append({"image": f"{name}/{volume(tmp_path / name / 'cine.nii').name}"})
    write_manifest(tmp_path / "m.csv", rows)
    found = open_real(tmp_path / "m.csv")
    assert len({item.subject for item in found.items}) == 2 and not found.notes


def test_training_volumes_of_the_real_subjects_are_refused(tmp_path: Path) -> None:
    rows = [{"image": volume(tmp_path / f"{i}.nii").name, "subject": f"s{i}"} for i in range(3)]
    write_manifest(tmp_path / "test.csv", rows[:2])
    write_manifest(tmp_path / "training.csv", rows[1:])
    real = open_real(tmp_path / "test.csv")
    with pytest.raises(CardioDiTError, match="s1 is in real and in training"):
        open_training(tmp_path / "training.csv", real)
    write_manifest(tmp_path / "training.csv", rows[2:])
    (item,) = open_training(tmp_path / "training.csv", real).items
    assert (item.set, item.subject) == ("training", "s2")


def test_a_random_subset_is_drawn_by_the_seed_from_the_whole_set_and_noted(tmp_path: Path) -> None:
    """The first volumes of a cohort sorted by disease would all have one disease."""
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


# Preprocessing of real volumes


CINE = PRESETS["cine"]


def test_preprocessing_comes_from_each_source(tmp_path: Path, make_vae: Any) -> None:
    (tmp_path / "steps.json").write_text(json.dumps(CINE.to_dict()))
    make_vae(preprocessing=CINE.to_dict()).save_pretrained(tmp_path / "vae")
    nothing, told = VolumeSet(SYNTHETIC, []), VolumeSet(SYNTHETIC, [], preprocessing=CINE.to_dict())
    assert settle_preprocessing(told) == CINE
    assert settle_preprocessing(nothing, model=str(tmp_path / "vae")) == CINE
    for named in ("cine", str(tmp_path / "steps.json")):
        assert settle_preprocessing(nothing, named=named) == CINE
    assert settle_preprocessing(told, str(tmp_path / "vae"), "cine", depth=7).size == (128, 128, 7)
    assert settle_preprocessing(told, spacing=(2.25, 2.25, 12.5)) == replace(CINE, spacing=(2.25, 2.25, 12.5))


def test_unknown_preprocessing_is_an_error_that_says_how_to_give_it(tmp_path: Path, make_vae: Any) -> None:
    nothing = VolumeSet(SYNTHETIC, [])
    with pytest.raises(CardioDiTError, match="Give --model FOLDER .* or --preprocessing"):
        settle_preprocessing(nothing)
    make_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(CardioDiTError, match="does not say how its training volumes were prepared"):
        settle_preprocessing(nothing, model=str(tmp_path / "vae"))
    with pytest.raises(CardioDiTError, match="neither one of cine, .* nor a readable JSON file"):
        settle_preprocessing(nothing, named="nowhere.json")


def test_contradicting_sources_are_errors() -> None:
    told = VolumeSet(SYNTHETIC, [], preprocessing=CINE.to_dict())
    with pytest.raises(CardioDiTError, match="The samples' records and --preprocessing prepare volumes in different"):
        settle_preprocessing(told, named="voldit")


# Loading


GEOMETRY = Geometry((1.5, 1.5, 8.0), 0.05)
STEPS = Preprocessing()
HOUNSFIELD = Preprocessing(intensity=Intensity(-1000, 1000))


def item(path: Path, voxels: np.ndarray, units: tuple[float, float] | None = None) -> Item:
    write_nifti(path, voxels, GEOMETRY)
    return Item("a", SYNTHETIC, path, units=units)


def test_a_sample_in_minus_one_to_one_is_not_changed(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).uniform(-1, 1, (5, 4, 3, 2)).astype(np.float32)
    loaded = load(item(tmp_path / "a.nii.gz", voxels), STEPS)
    np.testing.assert_array_equal(loaded.volume.voxels, voxels)
    assert loaded.volume.geometry.spacing == (1.5, 1.5, 8.0) and loaded.units is None


@pytest.mark.parametrize("steps, units", [(STEPS, (-1000.0, 1000.0)), (HOUNSFIELD, None)])
def test_units_come_from_the_record_or_from_a_fixed_window(
    tmp_path: Path, steps: Preprocessing, units: tuple[float, float] | None
) -> None:
    voxels = np.array([-1000, -250, 0, 1000], np.int16).reshape(4, 1, 1)
    loaded = load(item(tmp_path / "a.nii.gz", voxels, units), steps)
    np.testing.assert_allclose(loaded.volume.voxels.ravel(), [-1, -0.25, 0, 1])
    assert loaded.units == (-1000, 1000)


@pytest.mark.parametrize("units", [None, (0.0, 100.0)])
def test_other_values_are_refused_by_their_range(tmp_path: Path, units: tuple[float, float] | None) -> None:
    voxels = np.linspace(0, 255, 24).reshape(2, 3, 4).astype(np.float32)
    with pytest.raises(OtherIntensityError, match="values from 0 to 255; expected values in"):
        load(item(tmp_path / "a.nii.gz", voxels, units), STEPS)


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    voxels = np.full((2, 2, 2), np.nan, np.float32)
    with pytest.raises(CardioDiTError, match=r"a.nii.gz contains values that are not numbers"):
        load(item(tmp_path / "a.nii.gz", voxels), STEPS)


def test_a_sample_slightly_above_one_is_not_read_as_hounsfield_units(tmp_path: Path) -> None:
    voxels = np.linspace(-1, 1.05, 24).reshape(2, 3, 4).astype(np.float32)
    with pytest.raises(OtherIntensityError, match=r"values from -1 to 1.05; expected values in \[-1, 1\]"):
        load(item(tmp_path / "a.nii.gz", voxels), HOUNSFIELD)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (Preprocessing(), True),
        (Preprocessing(frames=32), True),
        (Preprocessing(frames=32, cycle="repeat"), False),
        (Preprocessing(cycle="repeat"), True),  # without a number of frames
    ],
)
def test_a_repeated_beat_is_not_one_whole_beat(steps: Preprocessing, expected: bool) -> None:
    assert is_whole_beat(steps) == expected


def labelled(folder: Path, labels: np.ndarray, order: str = "LV=1 MYO=2 RV=3", **more: object) -> Item:
    image = np.random.default_rng(0).normal(size=(4, 4, 2, 3)).astype(np.float32)
    write_nifti(folder / "image.nii.gz", image, GEOMETRY)
    write_nifti(folder / "mask.nii.gz", labels.astype(np.uint8), GEOMETRY)
    row = {"image": "image.nii.gz", "mask": "mask.nii.gz", "mask_order": order, "slices": "base to apex"}
    write_manifest(folder / "m.csv", [{**row, **more}])
    return open_real(folder / "m.csv").items[0]


def some_labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, (4, 4, 2, 3))


def test_labels_are_mapped_to_our_order(tmp_path: Path) -> None:
    labels, steps = some_labels(), Preprocessing(orient=False)
    case = labelled(tmp_path, labels)
    found = load_labels(case, load(case, steps))
    np.testing.assert_array_equal(found.maps, np.array([0, 3, 2, 1])[labels])
    assert found.is_cine


def test_two_labelled_frames_are_end_diastole_and_end_systole(tmp_path: Path) -> None:
    """They may be in one file with empty other frames, or in two; they are prepared as the image is."""
    labels, steps = some_labels(), Preprocessing(frames=2, orient=False)  # the file's third frame is dropped
    ours = np.array([0, 3, 2, 1])[labels]
    case = labelled(tmp_path, labels * np.array([1, 0, 1]), ed_frame=2, es_frame=0)
    found = load_labels(case, load(case, steps))
    np.testing.assert_array_equal(found.maps, ours[..., [0, 2]])
    assert not found.is_cine
    for name, t in (("ed", 2), ("es", 0)):
        write_nifti(tmp_path / f"{name}.nii.gz", labels[..., t].astype(np.uint8), GEOMETRY)
    case = labelled(tmp_path, labels, mask="", ed_mask="ed.nii.gz", es_mask="es.nii.gz")
    found = load_labels(case, load(case, Preprocessing(size=(2, 4, None), orient=False)))
    np.testing.assert_array_equal(found.maps, ours[1:3][..., [2, 0]])
    assert not found.is_cine


def test_one_phase_without_the_other_and_phases_of_several_frames_are_errors(tmp_path: Path) -> None:
    case = labelled(tmp_path, some_labels()[..., 0], mask="", ed_mask="mask.nii.gz", es_mask="")
    with pytest.raises(CardioDiTError, match=r"has no mask. Fill the column mask .* \(or ed_mask and es_mask\)"):
        load_labels(case, load(case, STEPS))
    case = labelled(tmp_path, some_labels(), mask="", ed_mask="mask.nii.gz", es_mask="mask.nii.gz")
    with pytest.raises(CardioDiTError, match="expected labels of one frame"):
        load_labels(case, load(case, STEPS))


def test_a_mask_is_reoriented_with_its_image(tmp_path: Path) -> None:
    labels = np.zeros((4, 4, 2, 3))
    labels[0, :, 0] = 1
    case = labelled(tmp_path, labels, slices="apex to base")
    loaded = load(case, STEPS)
    maps = load_labels(case, loaded).maps
    assert loaded.prepared is not None and 2 in loaded.prepared.source.order.flips
    assert (maps == LV).sum() == 12 and not maps[:, :, 0].any()


@pytest.mark.parametrize(
    "change, order, expected",
    [
        (lambda x: np.where(x == 3, 7, x), "LV=1 MYO=2 RV=3", r"mask.nii.gz: The label maps hold 0, 1, 2, 7, and 7"),
        (lambda x: x, "", "does not say which label"),
        (lambda x: x[..., 0], "LV=1 MYO=2 RV=3", "labels one frame"),
        (lambda x: x * np.array([1, 0, 0]), "LV=1 MYO=2 RV=3", "labels 1 of 3 frames"),
        (lambda x: np.concatenate([x, x], axis=3), "LV=1 MYO=2 RV=3", "labels 6 frames, and .*image.nii.gz has 3"),
    ],
)
def test_labels_that_would_give_wrong_curves_are_errors(tmp_path: Path, change, order: str, expected: str) -> None:
    case = labelled(tmp_path, change(some_labels()), order)
    with pytest.raises(CardioDiTError, match=expected):
        load_labels(case, load(case, STEPS))


def test_labelled_frames_that_contradict_the_manifest_are_errors(tmp_path: Path) -> None:
    case = labelled(tmp_path, some_labels() * np.array([1, 1, 0]), ed_frame=0, es_frame=2)
    with pytest.raises(
        CardioDiTError, match="labels the frames 0 and 1 .* gives 0 as end-diastole and 2 as end-systole"
    ):
        load_labels(case, load(case, STEPS))


def test_a_volume_without_a_mask_is_an_error(tmp_path: Path) -> None:
    sample = item(tmp_path / "a.nii.gz", np.zeros((2, 2, 2, 2), np.float32))
    with pytest.raises(CardioDiTError, match="has no mask"):
        load_labels(sample, load(sample, STEPS))
