"""Label maps that steer a model: whole numbers, in every frame, heart structures in ACDC's order."""

from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.label_order import ORDER, OURS, parse_order
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.volume import Volume

LARGEST = 255


def read_label_map(path: Path, order: str | None = None) -> Volume:
    """Read a mask as uint8, with heart structures in ACDC's order.

    Raises if a value is not a label, or if only some frames of a cine are labelled.

    Args:
        path: NIfTI file.
        order: label order of the file, such as "LV=1 MYO=2 RV=3"; None leaves labels as they are.
    """
    labels = read_labels(path)
    voxels = labels.voxels
    fractional = voxels != np.round(voxels)  # also True for NaN
    if fractional.any():
        raise CardioDiTError(f"{path} holds values that are not labels, such as {voxels[fractional][0]:g}.")
    if voxels.max() > LARGEST or voxels.min() < 0:
        raise CardioDiTError(
            f"{path} holds labels from {voxels.min():g} to {voxels.max():g}; labels must be 0 to {LARGEST}."
        )
    if labels.is_cine:
        labelled, frames = int(voxels.any(axis=(0, 1, 2)).sum()), voxels.shape[3]
        if 0 < labelled < frames:
            raise CardioDiTError(
                f"{path} has labels in {labelled} of its {frames} frames. Steering needs them in every frame: a "
                "frame without labels would mean that there is no heart. Run a segmenter on the whole cine."
            )
    voxels = voxels.astype(np.uint8)
    if order is not None and parse_order(order) != OURS:  # in our order, other structures may be labelled too
        try:
            voxels = reorder(voxels, order)
        except CardioDiTError as error:
            raise CardioDiTError(f"{path}: {error} The order is given in the column {ORDER}.") from error
    return Volume(voxels, labels.geometry)


def reorder(labels: np.ndarray, order: str) -> np.ndarray:
    """Convert label maps in an order such as "LV=1 MYO=2 RV=3" to uint8 with RV 1, myocardium 2, LV 3."""
    table = {0: 0, **{theirs: OURS[part] for part, theirs in parse_order(order).items()}}
    present = np.unique(labels)
    if unknown := [f"{value:g}" for value in present if float(value) not in table]:
        raise CardioDiTError(
            f"The label maps hold {', '.join(f'{value:g}' for value in present)}, and {', '.join(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not in the order {order!r} (background 0). Give the order in "
            "which these maps are labelled."
        )
    ours = np.zeros(max(table) + 1, np.uint8)
    for theirs, value in table.items():
        ours[theirs] = value
    return ours[labels.astype(np.int64)]
