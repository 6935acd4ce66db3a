"""Label maps that steer a model: whole numbers, on every frame, a heart's parts in one order."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.label_order import ACDC_ORDER, OURS, parse_order, reorder
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.volume import Volume

ORDER = "mask_order"
HEARTS = ("mask", "ed_mask", "es_mask")  # columns whose labels `mask_order` tells
LARGEST = 255


def read_label_map(path: Path, order: str | None = None) -> Volume:
    """A mask (uint8), a heart's parts in ACDC's order.

    Args:
        path: NIfTI file. Values that are no labels are errors, as are cines of which some frames only are labelled.
        order: of its labels, such as "LV=1 MYO=2 RV=3"; None leaves them as they are.
    """
    labels = read_labels(path)
    _check_values(path, labels.voxels)
    if labels.is_cine:
        _check_frames(path, labels.voxels)
    voxels = labels.voxels.astype(np.uint8)
    if order is not None and parse_order(order) != OURS:  # a heart in our order may have other parts beside it
        try:
            voxels = reorder(voxels, order)
        except CardioDiTError as error:
            raise CardioDiTError(f"{path}: {error} It stands in the column {ORDER}.") from error
    return Volume(voxels, labels.geometry)


def order_of_row(row: Mapping[str, str], column: str) -> str | None:
    """The order of labels in a column's mask; None where it is no heart's, or the row does not say."""
    return (row.get(ORDER) or None) if column in HEARTS else None


def check_orders(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Where some rows of a table tell the order of their hearts' labels, all must."""
    with_heart = [row for row in rows if any(row.get(column) for column in columns if column in HEARTS)]
    silent = sum(not row.get(ORDER) for row in with_heart)
    if 0 < silent < len(with_heart):
        raise CardioDiTError(
            f"{ORDER} is empty in {silent} of {len(with_heart)} rows with masks. What is the right ventricle in some "
            f"would be the left one in others: fill it in every row, such as {ACDC_ORDER!r}."
        )


def _check_values(path: Path, voxels: np.ndarray) -> None:
    broken = voxels != np.round(voxels)  # NaN, too
    if broken.any():
        raise CardioDiTError(f"{path} holds values that are no labels, such as {voxels[broken][0]:g}.")
    if voxels.max() > LARGEST or voxels.min() < 0:
        raise CardioDiTError(f"{path} holds labels from {voxels.min():g} to {voxels.max():g}; 0 to {LARGEST} fit.")


def _check_frames(path: Path, voxels: np.ndarray) -> None:
    labelled, frames = int(voxels.any(axis=(0, 1, 2)).sum()), voxels.shape[3]
    if 0 < labelled < frames:
        raise CardioDiTError(
            f"{path} has labels in {labelled} of its {frames} frames. Steering needs them in every frame: without them "
            "a frame would say that there is no heart. Let a segmenter label the whole cine."
        )
