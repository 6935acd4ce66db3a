from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, write_nifti
from cardiodit.imaging.label_order import ACDC_ORDER, MNMS_ORDER, check_orders, order_of_row
from cardiodit.imaging.masks import read_label_map


def written(folder: Path, voxels: np.ndarray) -> Path:
    write_nifti(folder / "mask.nii.gz", voxels, Geometry((1.0, 1.0, 8.0), 0.03))
    return folder / "mask.nii.gz"


def numbered(frames: int = 2) -> np.ndarray:
    """Labels 0 to 3 in every frame."""
    return np.stack([np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 4] * frames, axis=3)


def test_heart_labels_are_read_in_acdcs_order(tmp_path: Path) -> None:
    path = written(tmp_path, numbered())
    assert np.array_equal(read_label_map(path).voxels, numbered())
    assert np.array_equal(read_label_map(path, ACDC_ORDER).voxels, numbered())
    swapped = read_label_map(path, MNMS_ORDER).voxels
    assert swapped.dtype == np.uint8
    assert np.array_equal(swapped, np.array([0, 3, 2, 1], np.uint8)[numbered()])


def test_the_order_applies_to_hearts_only() -> None:
    row = {"mask": "a.nii.gz", "lungs": "b.nii.gz", "mask_order": MNMS_ORDER}
    assert order_of_row(row, "mask") == MNMS_ORDER
    assert order_of_row(row, "lungs") is None
    assert order_of_row({**row, "mask_order": ""}, "mask") is None


def test_a_table_gives_all_orders_or_none() -> None:
    ordered, silent = {"mask": "a", "mask_order": MNMS_ORDER}, {"mask": "b", "mask_order": ""}
    without = {"mask": "", "mask_order": ""}
    check_orders([ordered, ordered, without], ["mask"])
    check_orders([silent, silent], ["mask"])
    check_orders([ordered, silent], ["lungs"])
    with pytest.raises(CardioDiTError, match="mask_order is empty in 1 of 2 rows"):
        check_orders([ordered, silent, without], ["mask"])


@pytest.mark.parametrize(
    "voxels, order, message",
    [
        (numbered() + 0.5, None, "values that are not labels, such as 0.5"),
        (np.where(numbered(), np.nan, 1.0), None, "values that are not labels, such as nan"),
        (numbered().astype(np.int16) * 100, None, "labels from 0 to 300; labels must be 0 to 255"),
        (numbered().astype(np.int16) - 1, None, "labels from -1 to 2; labels must be 0 to 255"),
        (numbered() * [1, 0], None, "has labels in 1 of its 2 frames"),
        (numbered() + 1, MNMS_ORDER, "4 is not in the order 'LV=1 MYO=2 RV=3'"),
        (numbered(), "LV=1 RV=3", "must name three numbers above 0"),
    ],
)
def test_unusable_masks_are_refused(tmp_path: Path, voxels: np.ndarray, order: str | None, message: str) -> None:
    kind = np.int16 if np.asarray(voxels).dtype.kind in "iu" else np.float32
    with pytest.raises(CardioDiTError, match=message):
        read_label_map(written(tmp_path, np.asarray(voxels, kind)), order)


def test_a_mask_without_labels_is_allowed(tmp_path: Path) -> None:
    assert not read_label_map(written(tmp_path, numbered() * 0)).voxels.any()
