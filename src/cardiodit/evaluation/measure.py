"""Everything that is measured in one volume, while it is the only one in memory."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import VolumeStats, summarize
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, Evaluators
from cardiodit.evaluation.metrics.anatomy import adherence, anatomy, hounsfield
from cardiodit.evaluation.metrics.body_size import body_numbers
from cardiodit.evaluation.metrics.consistency import FEWEST_FRAMES, consistency
from cardiodit.evaluation.metrics.function import CURVES, heart_function, volumes_ml, wall_thickening
from cardiodit.evaluation.metrics.orientation import orientation
from cardiodit.evaluation.metrics.plausibility import plausibility
from cardiodit.evaluation.metrics.radiomics import RADIOMICS, radiomics
from cardiodit.evaluation.metrics.reconstruction import reconstruction_numbers
from cardiodit.evaluation.metrics.slices import slice_consistency
from cardiodit.evaluation.metrics.timing import beat_timing, farthest_frame_percent
from cardiodit.evaluation.volume_sets import REAL, TRAINING, Item, Labels, Loaded, is_whole_beat, load, load_labels
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume
from cardiodit.pipelines.mask_rows import prepared_masks

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Measured:
    """The measurements of one volume.

    Args:
        content: SHA-256 over its voxels alone, so that a copy with another frame time is recognized as a copy.
        features: rows by kind, `(f,)` float32, as networks compute; for a thousand volumes, float64 would take 100 MB.
        numbers: by name; unknown ones are None.
        curves: mL in each frame.
        plausible: whether it keeps each rule; None without labels of every frame.
        was_cached: whether an earlier run had measured it.
    """

    content: str
    stats: VolumeStats
    features: dict[str, np.ndarray]
    numbers: dict[str, float | None]
    curves: dict[str, list[float]]
    plausible: dict[str, bool] | None
    was_cached: bool = False


@dataclass(frozen=True)
class LabelMeasurements:
    """Measurements of label maps; the fields are those of `Measured`."""

    numbers: dict[str, float | None]
    curves: dict[str, list[float]]
    plausible: dict[str, bool] | None


def measure(item: Item, steps: Preprocessing, evaluators: Evaluators, labels_from: str | None) -> Measured:
    """Measure one volume; an error says what is wrong with it."""
    loaded = load(item, steps)
    volume, closes = loaded.volume, is_whole_beat(steps, item.case)
    if item.set == TRAINING:  # only its distances to other volumes matter
        return Measured(content_of(volume), summarize(loaded), _features(volume, evaluators), {}, {}, None)
    segment: Callable[[np.ndarray], np.ndarray] | None = None
    if evaluators.segmenter is not None and volume.is_cine:
        segment = partial(_segment, evaluators, volume.geometry)
    labels = None
    if labels_from == MASKS:
        labels = load_labels(item, loaded)
    elif labels_from == SEGMENTER and segment is not None:
        labels = Labels(segment(volume.voxels))
    found = _measure_labels(labels, volume, closes)
    numbers = dict(found.numbers)
    if item.case is not None and volume.is_cine:
        numbers |= body_numbers(item.case, numbers, volume.geometry, volume.voxels.shape[3], closes)
    if volume.is_cine and volume.voxels.shape[3] >= FEWEST_FRAMES:
        maps = labels.maps if labels is not None and labels.is_cine else None
        numbers |= consistency(volume.voxels, volume.geometry, maps, closes)
        if closes:
            numbers["farthest_frame_percent"] = farthest_frame_percent(volume.voxels)
    if item.set == REAL and evaluators.vae is not None:
        numbers |= reconstruction_numbers(evaluators.vae, loaded, segment)
    features = _features(volume, evaluators)
    if not volume.is_cine:
        found_in_ct, rows = _measure_ct(item, loaded, steps, evaluators)
        numbers, features = numbers | found_in_ct, features | rows
    return Measured(content_of(volume), summarize(loaded), features, numbers, found.curves, found.plausible)


def content_of(volume: Volume) -> str:
    digest = hashlib.sha256(json.dumps(volume.voxels.shape).encode())
    digest.update(np.ascontiguousarray(volume.voxels, np.float32))
    return digest.hexdigest()


def _measure_labels(labels: Labels | None, volume: Volume, closes: bool) -> LabelMeasurements:
    if labels is None:
        return LabelMeasurements({}, {}, None)
    maps, geometry = labels.maps, volume.geometry
    if not labels.is_cine:  # (H, W, D, 2): what end-diastole and end-systole determine
        heart = heart_function(maps, geometry, closes=False)
        thickening = wall_thickening(maps, geometry, heart.lv.ed_frame, heart.lv.es_frame)
        numbers = {**heart.numbers(), "wall_thickening_percent": _finite(thickening), **orientation(maps, geometry)}
        return LabelMeasurements(numbers, {}, None)
    numbers = heart_function(maps, geometry, closes).numbers()
    curves = {name: list(volumes_ml(maps, geometry, label)) for name, (_, label) in CURVES.items()}
    findings = plausibility(maps, geometry, closes)
    numbers |= {finding.name: finding.value for finding in findings}
    plausible = {finding.name: finding.is_plausible for finding in findings}
    numbers |= orientation(maps, geometry, volume.voxels)
    if closes:
        numbers |= beat_timing(curves["lv_volume_ml"])
    return LabelMeasurements({name: _finite(value) for name, value in numbers.items()}, curves, plausible)


def _measure_ct(
    item: Item, loaded: Loaded, steps: Preprocessing, evaluators: Evaluators
) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """Return the numbers and rows of features of a CT volume; Hounsfield units and structures where they are known."""
    volume = loaded.volume
    numbers: dict[str, float | None] = {**slice_consistency(volume.voxels, volume.geometry)}
    rows: dict[str, np.ndarray] = {RADIOMICS: radiomics(volume.voxels)} if evaluators.radiomics else {}
    units = loaded.units or steps.intensity.units  # samples without a record are in [-1, 1]
    if units is not None and steps.intensity.is_fixed:
        found, histograms = hounsfield(volume.voxels, units)
        numbers.update(found)
        rows |= histograms
    if (segmenter := evaluators.segmenter) is not None:
        segment = partial(segmenter.segment_volume, volume.voxels, volume.geometry)
        labels = _call(f"The segmenter {segmenter.name}", segment)
        structures = segmenter.structures or {}
        numbers |= anatomy(labels, structures, volume.geometry)
        if item.requested is not None:
            masks, _ = prepared_masks(item.requested, item.requested_keys, steps)
            numbers |= adherence(labels, structures, masks)
    return numbers, rows


def _segment(evaluators: Evaluators, geometry: Geometry, voxels: np.ndarray) -> np.ndarray:
    segmenter = evaluators.segmenter
    assert segmenter is not None
    return _call(f"The segmenter {segmenter.name}", partial(segmenter.segment, voxels, geometry))


def _features(volume: Volume, evaluators: Evaluators) -> dict[str, np.ndarray]:
    rows = {}
    for kind, network in evaluators.networks.items():
        compute = partial(network.features, volume.voxels, volume.geometry.spacing)
        row = np.asarray(_call(f"The feature network {network.name}", compute), np.float32)
        if broken := int((~np.isfinite(row)).sum()):
            raise CardioDiTError(
                f"{broken} of {len(row)} {kind} features of {network.name} are not numbers (NaN or infinite). Check "
                "the volume; if it is correct, the network does not fit it."
            )
        rows[kind] = row
    return rows


def _call(name: str, function: Callable[[], Answer]) -> Answer:
    """Call a network, which may be a user's own code: whatever it raises is a problem of this volume alone."""
    try:
        return function()
    except CardioDiTError:
        raise
    except Exception as error:
        raise CardioDiTError(f"{name} failed: {type(error).__name__}: {error}") from error


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
