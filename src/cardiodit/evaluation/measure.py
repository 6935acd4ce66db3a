"""Everything that is measured of one volume, while it is the only one in memory."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import Facts, facts_of
from cardiodit.evaluation.consistency import FEWEST_FRAMES, consistency
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, Instruments
from cardiodit.evaluation.function import LV, RV, heart_function, volumes_ml
from cardiodit.evaluation.loading import Labels, Loaded, is_whole_beat, load, load_labels
from cardiodit.evaluation.plausibility import plausibility, wall_thickening
from cardiodit.evaluation.segmenters import Segmenter
from cardiodit.evaluation.sets import REAL, Item
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume

CURVES = {"lv_volume_ml": LV, "rv_volume_ml": RV}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Measured:
    """What is kept of a volume.

    Args:
        content: SHA-256 over its voxels as they were measured, and over nothing else: a copy is one at any frame time.
        features: rows by kind, `(f,)` float32, as networks compute; of a thousand volumes, float64 is 100 MB.
        numbers: by name; what cannot be known is None.
        curves: mL of each frame.
        plausible: whether it keeps each rule; None without labels of every frame.
        was_kept: whether an earlier run had measured it.
    """

    content: str
    facts: Facts
    features: dict[str, np.ndarray]
    numbers: dict[str, float | None]
    curves: dict[str, list[float]]
    plausible: dict[str, bool] | None
    was_kept: bool = False


@dataclass(frozen=True)
class OfLabels:
    """What is read from label maps; the fields are those of `Measured`."""

    numbers: dict[str, float | None]
    curves: dict[str, list[float]]
    plausible: dict[str, bool] | None


UNLABELLED = OfLabels({}, {}, None)


def measure(item: Item, steps: Preprocessing, instruments: Instruments, labels_from: str | None) -> Measured:
    """All of it; an error says what is wrong with the volume."""
    loaded = load(item, steps)
    volume, closes = loaded.volume, is_whole_beat(steps)
    labels = _labels(item, loaded, instruments, labels_from)
    found = _of_labels(labels, volume.geometry, closes)
    numbers = dict(found.numbers)
    if volume.is_cine and volume.voxels.shape[3] >= FEWEST_FRAMES:
        maps = labels.maps if labels is not None and labels.is_cine else None
        numbers |= consistency(volume.voxels, volume.geometry, maps, closes)
    if item.set == REAL and instruments.vae is not None:
        numbers |= _reconstruction(loaded, instruments)
    rows = _features(volume, instruments)
    return Measured(content_of(volume), facts_of(loaded), rows, numbers, found.curves, found.plausible)


def content_of(volume: Volume) -> str:
    digest = hashlib.sha256(json.dumps(volume.voxels.shape).encode())
    digest.update(np.ascontiguousarray(volume.voxels, np.float32))
    return digest.hexdigest()


def _labels(item: Item, loaded: Loaded, instruments: Instruments, labels_from: str | None) -> Labels | None:
    if labels_from == MASKS:
        return load_labels(item, loaded)
    if labels_from == SEGMENTER and instruments.segmenter is not None:
        return Labels(_segmented(instruments.segmenter, loaded.volume.voxels, loaded.volume.geometry))
    return None


def _of_labels(labels: Labels | None, geometry: Geometry, closes: bool) -> OfLabels:
    if labels is None:
        return UNLABELLED
    if not labels.is_cine:
        return OfLabels(_of_phases(labels.maps, geometry), {}, None)
    numbers = heart_function(labels.maps, geometry, closes).numbers()
    curves = {name: list(volumes_ml(labels.maps, geometry, label)) for name, label in CURVES.items()}
    findings = plausibility(labels.maps, geometry, closes)
    numbers |= {finding.name: finding.value for finding in findings}
    plausible = {finding.name: finding.is_plausible for finding in findings}
    return OfLabels({name: _finite(value) for name, value in numbers.items()}, curves, plausible)


def _of_phases(maps: np.ndarray, geometry: Geometry) -> dict[str, float | None]:
    """Of end-diastole and end-systole alone, `(H, W, D, 2)`: what these two frames decide."""
    heart = heart_function(maps, geometry, closes=False)
    thickening = wall_thickening(maps, geometry, heart.lv.ed_frame, heart.lv.es_frame)
    return {**heart.numbers(), "wall_thickening_percent": _finite(thickening)}


def _segmented(segmenter: Segmenter, voxels: np.ndarray, geometry: Geometry) -> np.ndarray:
    return _answer(f"The segmenter {segmenter.name}", partial(segmenter.segment, voxels, geometry))


def _features(volume: Volume, instruments: Instruments) -> dict[str, np.ndarray]:
    rows = {}
    for kind, network in instruments.networks.items():
        ask = partial(network.features, volume.voxels, volume.geometry.spacing)
        row = np.asarray(_answer(f"The feature network {network.name}", ask), np.float32)
        if broken := int((~np.isfinite(row)).sum()):
            raise CardioDiTError(
                f"{broken} of {len(row)} {kind} features of {network.name} are not numbers (NaN or infinite). Look at "
                "the volume; if it is in order, the network does not fit it."
            )
        rows[kind] = row
    return rows


def _answer(who: str, ask: Callable[[], Answer]) -> Answer:
    """What a network says; it may be anybody's code, and whatever that raises is a problem of this volume alone."""
    try:
        return ask()
    except CardioDiTError:
        raise
    except Exception as error:
        raise CardioDiTError(f"{who} failed: {type(error).__name__}: {error}") from error


def _reconstruction(loaded: Loaded, instruments: Instruments) -> dict[str, float | None]:
    """What stage 1 loses of a real volume, in its image and, by the segmenter, in its function."""
    from cardiodit.evaluation.reconstruction import judge, reconstruct

    if loaded.prepared is None:
        return {}
    volume, segmenter = loaded.volume, instruments.segmenter
    result = reconstruct(instruments.vae, loaded.prepared)
    quality = judge(1, "", volume.voxels, result)
    numbers = {f"reconstruction_{name}": _finite(getattr(quality, name)) for name in ("psnr", "ssim", "l1")}
    if segmenter is None or not volume.is_cine:
        return numbers
    before, after = (
        heart_function(_segmented(segmenter, voxels, volume.geometry), volume.geometry).lv
        for voxels in (volume.voxels, result.voxels)
    )
    return {
        **numbers,
        "reconstruction_lv_ef_shift_percent": after.ef - before.ef,
        "reconstruction_lv_edv_shift_ml": after.edv - before.edv,
        "reconstruction_lv_ef_error_percent": abs(after.ef - before.ef),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def kept(measured: Measured) -> Measured:
    return replace(measured, was_kept=True)


def facts_to_dict(facts: Facts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in Facts.__dataclass_fields__}


def facts_from_dict(values: dict[str, Any]) -> Facts:
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Facts(**lists)
