"""One volume of a set as all metrics see it: in [-1, 1], with its geometry, and with labels where it has some."""

from dataclasses import dataclass

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters import reorder
from cardiodit.evaluation.sets import Item
from cardiodit.imaging.cases import prepare_case, prepare_mask
from cardiodit.imaging.intensity import Range, to_model
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.preprocessing import Prepared, Preprocessing
from cardiodit.imaging.volume import Volume

ROUNDING = 1e-3  # how far a value may lie outside of [-1, 1]


class OtherIntensityError(CardioDiTError):
    """Grey values that cannot be what the models see, and that nobody says how to scale."""


@dataclass(frozen=True)
class Loaded:
    """A volume in memory.

    Args:
        volume: `(H, W, D)` or `(H, W, D, T)` float32 in [-1, 1].
        units: what -1 and 1 are in the file, where that is known.
        prepared: of a manifest's volume, the way it took, which its mask takes, too.
    """

    volume: Volume
    units: Range | None
    prepared: Prepared | None = None


def load(item: Item, steps: Preprocessing) -> Loaded:
    """A manifest's volume is prepared as the model's training volumes were; a sample is taken as it was generated."""
    if item.case is not None:
        prepared = prepare_case(item.case, steps)
        return Loaded(prepared.volume, prepared.source.limits, prepared)
    stored = read_nifti(item.image)
    voxels, units = _in_range(stored.voxels, item.units or _fixed_units(stored.voxels, steps), item)
    return Loaded(Volume(voxels, stored.geometry), units)


def load_labels(item: Item, loaded: Loaded) -> np.ndarray:
    """A cine's label maps `(H, W, D, T)` from its manifest's mask, as RV 1, myocardium 2, LV 3."""
    if item.case is None or loaded.prepared is None or item.case.path("mask") is None:
        raise CardioDiTError(f"{item.image} has no mask. Fill the column mask of its manifest, or name a segmenter.")
    mask = item.case.path("mask")
    order = item.case.row.get("mask_order")
    if not order:
        raise CardioDiTError(
            f'The manifest does not say which label of {mask} is which: fill its column mask_order, such as "RV=1 '
            'MYO=2 LV=3".'
        )
    labels = prepare_mask(item.case, loaded.prepared)
    assert labels is not None
    if labels.voxels.shape != loaded.volume.voxels.shape:
        raise CardioDiTError(f"{mask} labels one frame; labels of every frame of {item.image} are needed.")
    empty = int((~labels.voxels.any(axis=(0, 1, 2))).sum())
    if empty:
        raise CardioDiTError(
            f"{mask} labels {labels.voxels.shape[3] - empty} of {labels.voxels.shape[3]} frames; a curve needs all of "
            "them. Name a segmenter."
        )
    try:
        return reorder(labels.voxels, order)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask}: {error}") from error


def _fixed_units(voxels: np.ndarray, steps: Preprocessing) -> Range | None:
    """Hounsfield units of a model that knows its window; of arbitrary units nothing is assumed."""
    is_outside = float(voxels.min()) < -1 - ROUNDING or float(voxels.max()) > 1 + ROUNDING
    return steps.intensity.units if is_outside and steps.intensity.is_fixed else None


def _in_range(voxels: np.ndarray, units: Range | None, item: Item) -> tuple[np.ndarray, Range | None]:
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CardioDiTError(f"{item.image} holds values that are not numbers (NaN or infinite).")
    begin, end = units or (-1.0, 1.0)
    slack = ROUNDING * (end - begin) / 2 + (0.5 if voxels.dtype.kind in "iu" else 0)
    if low < begin - slack or high > end + slack:
        whose = "as its record says" if item.units else "as models generate"
        raise OtherIntensityError(
            f"{item.image} has values from {low:g} to {high:g}; expected are values in [{begin:g}, {end:g}], {whose}."
        )
    if units is not None:
        return to_model(voxels, units), units
    return np.clip(voxels.astype(np.float32), -1, 1), None
