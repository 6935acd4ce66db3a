"""From a volume or a cine to one row: which parts a network is shown, and how what it says of them is joined.

A cine has two kinds of rows. `spatial` asks how its frames look: the network sees `(H, W, D)`. `spatiotemporal` asks
how its slices move: the same network sees `(H, W, T)`, and again the differences from frame to frame, the last one to
the first, since a beat is a cycle. It stands where a Fréchet video distance would, of which no network for volumes is
kept by anyone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import InputRules
from cardiodit.imaging.geometry import Triple

KINDS = ("spatial", "spatiotemporal")
Encode = Callable[[np.ndarray], np.ndarray]  # (A, B, C) → (features,)


def spatial_row(
    encode: Encode, rules: InputRules, voxels: np.ndarray, spacing: Triple | None, frames: int | None
) -> np.ndarray:
    """Of a volume `(H, W, D)`, or the mean over `frames` evenly spread frames of a cine, over all with None."""
    values = rules.normalise(voxels)
    if values.ndim == 3:
        return encode(values if rules.still_as_it_is else rules.on_grid(values, spacing))
    chosen = spread(values.shape[3], frames, cycle=True)
    return mean_of_set([encode(rules.on_grid(values[..., t], spacing)) for t in chosen])


def spatiotemporal_row(
    encode: Encode, rules: InputRules, voxels: np.ndarray, spacing: Triple | None, slices: int | None
) -> np.ndarray:
    """The mean over `slices` evenly spread slices of a cine, over all with None: how they look, how they move."""
    if voxels.ndim != 4 or voxels.shape[3] < 2:
        raise CardioDiTError(
            f"Spatiotemporal features are of a cine (H, W, D, T) of two frames or more, got the shape {voxels.shape}. "
            "Choose spatial ones."
        )
    values = rules.normalise(voxels)
    rows = []
    for d in spread(values.shape[2], slices):
        clip = rules.on_grid(values[:, :, d], spacing, time=True)  # (H, W, T)
        moves = np.roll(clip, -1, axis=2) - clip
        rows.append(np.concatenate([encode(clip), encode(moves)]))
    return mean_of_set(rows)


def spread(count: int, wanted: int | None, cycle: bool = False) -> list[int]:
    """Evenly spread indices, of a cycle from its first on; all where as many or more are wanted."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [(2 * i + (not cycle)) * count // (2 * wanted) for i in range(wanted)]


def mean_of_set(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The mean to the last bit the same however the rows are ordered: each column is added up in order of size."""
    return np.sort(np.stack(rows).astype(np.float64), axis=0).mean(axis=0)
