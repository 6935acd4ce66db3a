"""Everything that is measured of one volume, while it is the only one in memory."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.agreement import Facts, facts_of
from cardiodit.evaluation.consistency import FEWEST_FRAMES, consistency
from cardiodit.evaluation.function import LV, RV, heart_function, volumes_ml
from cardiodit.evaluation.instruments import MASKS, SEGMENTER, Instruments
from cardiodit.evaluation.loading import Loaded, load, load_labels
from cardiodit.evaluation.plausibility import plausibility
from cardiodit.evaluation.sets import REAL, Item
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume

CURVES = {"lv_volume_ml": LV, "rv_volume_ml": RV}


@dataclass(frozen=True)
class Measured:
    """What is kept of a volume.

    Args:
        content: SHA-256 over its voxels as they were measured, their size and their frame time.
        features: rows by kind, `(f,)` float64.
        numbers: by name; what cannot be known is None.
        curves: mL of each frame.
        plausible: whether it keeps each rule; None without labels.
        was_kept: whether an earlier run had measured it.
    """

    content: str
    facts: Facts
    features: dict[str, np.ndarray]
    numbers: dict[str, float | None]
    curves: dict[str, list[float]]
    plausible: dict[str, bool] | None
    was_kept: bool = False


def measure(item: Item, steps: Preprocessing, instruments: Instruments, labels_from: str | None) -> Measured:
    """All of it; an error says what is wrong with the volume."""
    loaded = load(item, steps)
    volume = loaded.volume
    labels = _labels(item, loaded, instruments, labels_from)
    numbers: dict[str, float | None] = {}
    curves: dict[str, list[float]] = {}
    plausible = None
    if labels is not None:
        numbers |= {name: _finite(value) for name, value in heart_function(labels, volume.geometry).numbers().items()}
        curves = {name: list(volumes_ml(labels, volume.geometry, label)) for name, label in CURVES.items()}
        findings = plausibility(labels, volume.geometry)
        plausible = {finding.name: finding.is_plausible for finding in findings}
        numbers |= {finding.name: _finite(finding.value) for finding in findings}
    if volume.is_cine and volume.voxels.shape[3] >= FEWEST_FRAMES:
        numbers |= consistency(volume.voxels, volume.geometry, labels)
    if item.set == REAL and instruments.vae is not None:
        numbers |= _reconstruction(loaded, instruments)
    return Measured(content_of(volume), facts_of(loaded), _features(volume, instruments), numbers, curves, plausible)


def content_of(volume: Volume) -> str:
    geometry = volume.geometry
    digest = hashlib.sha256(json.dumps([volume.voxels.shape, geometry.spacing, geometry.frame_time]).encode())
    digest.update(np.ascontiguousarray(volume.voxels, np.float32))
    return digest.hexdigest()


def _labels(item: Item, loaded: Loaded, instruments: Instruments, labels_from: str | None) -> np.ndarray | None:
    if labels_from == MASKS:
        return load_labels(item, loaded)
    if labels_from == SEGMENTER and instruments.segmenter is not None:
        return instruments.segmenter.segment(loaded.volume.voxels, loaded.volume.geometry)
    return None


def _features(volume: Volume, instruments: Instruments) -> dict[str, np.ndarray]:
    rows = {}
    for kind, network in instruments.networks.items():
        row = np.asarray(network.features(volume.voxels, volume.geometry.spacing), np.float64)
        if broken := int((~np.isfinite(row)).sum()):
            raise CardioDiTError(
                f"{broken} of {len(row)} {kind} features of {network.name} are not numbers (NaN or infinite). Look at "
                "the volume; if it is in order, the network does not fit it."
            )
        rows[kind] = row
    return rows


def _reconstruction(loaded: Loaded, instruments: Instruments) -> dict[str, float | None]:
    """What stage 1 loses of a real volume, in its image and, by the segmenter, in its function."""
    from cardiodit.evaluation.reconstruction import judge, reconstruct

    if loaded.prepared is None:
        return {}
    volume = loaded.volume
    result = reconstruct(instruments.vae, loaded.prepared)
    quality = judge(1, "", volume.voxels, result)
    numbers = {f"reconstruction_{name}": _finite(getattr(quality, name)) for name in ("psnr", "ssim", "l1")}
    if instruments.segmenter is None or not volume.is_cine:
        return numbers
    hearts = [
        heart_function(instruments.segmenter.segment(voxels, volume.geometry), volume.geometry).lv
        for voxels in (volume.voxels, result.voxels)
    ]
    before, after = hearts
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
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Facts(**lists)
