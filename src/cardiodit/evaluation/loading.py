"""One volume of a set as all metrics see it: in [-1, 1], with its geometry, and with labels where it has some."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters import reorder
from cardiodit.evaluation.sets import PHASES, Item, mask_paths
from cardiodit.imaging.intensity import Range, to_model
from cardiodit.imaging.manifest import Case, prepare_case
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.preprocessing import Prepared, Preprocessing
from cardiodit.imaging.volume import Volume

ROUNDING = 1e-3  # how far a value may lie outside of [-1, 1]
LEAST_OF_WINDOW = 0.01  # that values in a window's units spread over


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


@dataclass(frozen=True)
class Labels:
    """Label maps as RV 1, myocardium 2, LV 3.

    Args:
        maps: `(H, W, D, T)` of every frame, or `(H, W, D, 2)` of end-diastole and end-systole.
        is_cine: whether it is every frame.
    """

    maps: np.ndarray
    is_cine: bool = True


def is_whole_beat(steps: Preprocessing) -> bool:
    """Whether a cine is one beat, its last frame followed by the first; not where beats are repeated and then cut."""
    return steps.frames is None or steps.cycle != "repeat"


def load(item: Item, steps: Preprocessing) -> Loaded:
    """A manifest's volume is prepared as the model's training volumes were; a sample is taken as it was generated."""
    if item.case is not None:
        prepared = prepare_case(item.case, steps)
        return Loaded(prepared.volume, prepared.source.limits, prepared)
    stored = read_nifti(item.image)
    voxels, units = _in_range(stored.voxels, item.units or _fixed_units(stored.voxels, steps), item)
    return Loaded(Volume(voxels, stored.geometry), units)


def load_labels(item: Item, loaded: Loaded) -> Labels:
    """From a manifest's mask, or its masks of end-diastole and end-systole."""
    masks = None if item.case is None else mask_paths(item.case)
    if item.case is None or loaded.prepared is None or masks is None:
        raise CardioDiTError(
            f"{item.image} has no mask. Fill the column mask of its manifest (or {' and '.join(PHASES)}), or name a "
            "segmenter."
        )
    order = item.case.row.get("mask_order")
    if not order:
        raise CardioDiTError(
            f"The manifest does not say which label of {masks[0]} is which: fill its column mask_order, such as "
            '"RV=1 MYO=2 LV=3".'
        )
    if len(masks) == len(PHASES):
        maps = [_ours(_one_frame(mask, read_labels(mask)), mask, order, loaded.prepared) for mask in masks]
        return Labels(np.stack(maps, axis=3), is_cine=False)
    return _of_cine(item.case, masks[0], order, loaded)


def _of_cine(case: Case, mask: Path, order: str, loaded: Loaded) -> Labels:
    """Of every frame, or of the only two that are labelled: these are end-diastole and end-systole."""
    assert loaded.prepared is not None
    stored = read_labels(mask)
    if not stored.is_cine or not loaded.volume.is_cine:
        raise CardioDiTError(f"{mask} labels one frame; labels of every frame of {case.image} are needed.")
    frames, expected = stored.voxels.shape[3], loaded.prepared.source.shape[3]
    if frames != expected:
        raise CardioDiTError(f"{mask} labels {frames} frames, and {case.image} has {expected}.")
    labelled = np.flatnonzero(stored.voxels.any(axis=(0, 1, 2))).tolist()
    if len(labelled) == len(PHASES) < frames:
        _check_phases(case, mask, labelled)
        phases = [Volume(stored.voxels[..., t], stored.geometry) for t in labelled]
        maps = [_ours(phase, mask, order, loaded.prepared) for phase in phases]
        return Labels(np.stack(maps, axis=3), is_cine=False)
    if len(labelled) < frames:
        raise CardioDiTError(
            f"{mask} labels {len(labelled)} of {frames} frames; a curve needs all of them, and EDV and ESV the frames "
            "of end-diastole and end-systole. Name a segmenter."
        )
    return Labels(_ours(stored, mask, order, loaded.prepared))


def _check_phases(case: Case, mask: Path, labelled: list[int]) -> None:
    told = [case.number("ed_frame"), case.number("es_frame")]
    if None not in told and set(told) != set(labelled):
        raise CardioDiTError(
            f"{mask} labels the frames {labelled[0]} and {labelled[1]} (counted from 0), and its manifest calls "
            f"{told[0]:g} end-diastole and {told[1]:g} end-systole. Mend one of them."
        )


def _one_frame(mask: Path, labels: Volume) -> Volume:
    if labels.is_cine:
        raise CardioDiTError(f"{mask} has the shape {labels.voxels.shape}; labels of one frame were expected.")
    return labels


def _ours(labels: Volume, mask: Path, order: str, prepared: Prepared) -> np.ndarray:
    """Label maps on the way of their image, and in our order."""
    try:
        maps = prepared.apply_to_mask(labels)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask} cannot be prepared. {error}") from error
    try:
        return reorder(maps, order)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask}: {error}") from error


def _fixed_units(voxels: np.ndarray, steps: Preprocessing) -> Range | None:
    """Hounsfield units of a model that knows its window; of arbitrary units nothing is assumed.

    Values that reach a little beyond [-1, 1] are no Hounsfield units: these fill more of their window.
    """
    low, high, units = float(voxels.min()), float(voxels.max()), steps.intensity.units
    if units is None or not steps.intensity.is_fixed or (low >= -1 - ROUNDING and high <= 1 + ROUNDING):
        return None
    return units if high - low > LEAST_OF_WINDOW * (units[1] - units[0]) else None


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
