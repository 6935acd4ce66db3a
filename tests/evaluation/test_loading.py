"""From a file to [-1, 1]: nothing is scaled that nobody has said how to scale; labels in one order."""

from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.loading import OtherIntensityError, load, load_labels
from cardiodit.evaluation.sets import SYNTHETIC, Item, open_real
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
    with pytest.raises(OtherIntensityError, match="values from 0 to 255; expected are values in"):
        load(item(tmp_path / "a.nii.gz", voxels, units), STEPS)


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    voxels = np.full((2, 2, 2), np.nan, np.float32)
    with pytest.raises(CardioDiTError, match=r"a.nii.gz holds values that are not numbers"):
        load(item(tmp_path / "a.nii.gz", voxels), STEPS)


def labelled(folder: Path, labels: np.ndarray, order: str = "LV=1 MYO=2 RV=3") -> Item:
    image = np.random.default_rng(0).normal(size=(4, 4, 2, 3)).astype(np.float32)
    write_nifti(folder / "image.nii.gz", image, GEOMETRY)
    write_nifti(folder / "mask.nii.gz", labels.astype(np.uint8), GEOMETRY)
    row = {"image": "image.nii.gz", "mask": "mask.nii.gz", "mask_order": order, "slices": "base to apex"}
    write_manifest(folder / "m.csv", [row])
    return open_real(folder / "m.csv").items[0]


def some_labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, (4, 4, 2, 3))


def test_labels_come_in_our_order(tmp_path: Path) -> None:
    labels, steps = some_labels(), Preprocessing(orient=False)
    case = labelled(tmp_path, labels)
    np.testing.assert_array_equal(load_labels(case, load(case, steps)), np.array([0, 3, 2, 1])[labels])


@pytest.mark.parametrize(
    "change, order, expected",
    [
        (lambda x: np.where(x == 3, 7, x), "LV=1 MYO=2 RV=3", r"mask.nii.gz: The label maps hold 0, 1, 2, 7, and 7"),
        (lambda x: x, "", "does not say which label"),
        (lambda x: x[..., 0], "LV=1 MYO=2 RV=3", "labels one frame"),
        (lambda x: x * np.array([1, 0, 0]), "LV=1 MYO=2 RV=3", "labels 1 of 3 frames"),
    ],
)
def test_labels_that_would_give_wrong_curves_are_errors(tmp_path: Path, change, order: str, expected: str) -> None:
    case = labelled(tmp_path, change(some_labels()), order)
    with pytest.raises(CardioDiTError, match=expected):
        load_labels(case, load(case, STEPS))


def test_a_volume_without_a_mask_is_an_error(tmp_path: Path) -> None:
    sample = item(tmp_path / "a.nii.gz", np.zeros((2, 2, 2, 2), np.float32))
    with pytest.raises(CardioDiTError, match="has no mask"):
        load_labels(sample, load(sample, STEPS))
