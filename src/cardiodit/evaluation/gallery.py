"""The volumes that play on the page."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.volume_sets import REAL, SYNTHETIC, Item, load
from cardiodit.imaging.preprocessing import Preprocessing

SHOWN_SAMPLES, SHOWN_REAL = 4, 2  # best and as many worst ones that play on the page


def media_of(
    report: dict[str, Any], sides: Sequence[MeasuredSet], steps: Preprocessing
) -> dict[str, Callable[[], np.ndarray]]:
    """Loads the volumes that play on the page: the most and the least typical samples, and some usual real ones."""
    items = {f"{side.volumes.name}/{item.id}": item for side in sides for item in side.items}
    by_set = {
        name: sorted(
            (volume for volume in report["volumes"] if volume["set"] == name),
            key=lambda volume: (volume["typicality"], volume["id"]),
        )
        for name in (REAL, SYNTHETIC)
    }
    samples, real = by_set[SYNTHETIC], by_set[REAL]
    half = min(SHOWN_SAMPLES, len(samples) // 2)
    chosen = [*real[len(real) // 2 :][:SHOWN_REAL], *samples[:half], *samples[len(samples) - half :]]
    return {volume["id"]: partial(_voxels, items[volume["id"]], steps) for volume in chosen}


def _voxels(item: Item, steps: Preprocessing) -> np.ndarray:
    return load(item, steps).volume.voxels
