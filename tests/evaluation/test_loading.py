"""From a file to [-1, 1]: nothing is scaled that nobody has said how to scale; labels in one order."""

from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import LV
from cardiodit.evaluation.volume_sets import (
    SYNTHETIC,
    Item,
    OtherIntensityError,
    is_whole_beat,
    load,
    load_labels,
    open_real,
)
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
from cardiodit.imaging.manifest import write_manifest

GEOMETRY = Geometry((1.5, 1.5, 8.0), 0.05)
STEPS = Preprocessing()
HOUNSFIELD = Preprocessing(intensity=Intensity(-1000, 1000))


def item(path: Path, voxels: np.ndarray, units: tuple[float, float] | None = None) -> Item:
    write_nifti(path, voxels, GEOMETRY)
    return Item("a", SYNTHETIC, path, units=units)


def test_a_sample_in_minus_one_to_one_is_taken_as_it_is(tmp_path: Path) -> None:
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


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    voxels = np.full((2, 2, 2), np.nan, np.float32)
    with pytest.raises(CardioDiTError, match=r"a.nii.gz contains values that are not numbers"):
        load(item(tmp_path / "a.nii.gz", voxels), STEPS)


def test_a_sample_that_overshoots_is_not_taken_for_hounsfield_units(tmp_path: Path) -> None:
    voxels = np.linspace(-1, 1.05, 24).reshape(2, 3, 4).astype(np.float32)
    with pytest.raises(OtherIntensityError, match=r"values from -1 to 1.05; expected values in \[-1, 1\]"):
        load(item(tmp_path / "a.nii.gz", voxels), HOUNSFIELD)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (Preprocessing(), True),
        (Preprocessing(frames=32), True),
        (Preprocessing(frames=32, cycle="repeat"), False),
        (Preprocessing(cycle="repeat"), True),  # to no number of frames
    ],
)
def test_a_repeated_beat_is_no_whole_one(steps: Preprocessing, expected: bool) -> None:
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


def test_labels_come_in_our_order(tmp_path: Path) -> None:
    labels, steps = some_labels(), Preprocessing(orient=False)
    case = labelled(tmp_path, labels)
    found = load_labels(case, load(case, steps))
    np.testing.assert_array_equal(found.maps, np.array([0, 3, 2, 1])[labels])
    assert found.is_cine


def test_two_labelled_frames_are_end_diastole_and_end_systole(tmp_path: Path) -> None:
    """In one file, the other frames empty, or in two; they go the image's way, and no frame of theirs is lost."""
    labels, steps = some_labels(), Preprocessing(frames=2, orient=False)  # the file's third frame is nobody's
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


def test_one_phase_is_no_pair_and_no_phase_is_a_cine(tmp_path: Path) -> None:
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


def test_labelled_frames_that_the_manifest_calls_otherwise_are_errors(tmp_path: Path) -> None:
    case = labelled(tmp_path, some_labels() * np.array([1, 1, 0]), ed_frame=0, es_frame=2)
    with pytest.raises(
        CardioDiTError, match="labels the frames 0 and 1 .* gives 0 as end-diastole and 2 as end-systole"
    ):
        load_labels(case, load(case, STEPS))


def test_a_volume_without_a_mask_is_an_error(tmp_path: Path) -> None:
    sample = item(tmp_path / "a.nii.gz", np.zeros((2, 2, 2, 2), np.float32))
    with pytest.raises(CardioDiTError, match="has no mask"):
        load_labels(sample, load(sample, STEPS))
