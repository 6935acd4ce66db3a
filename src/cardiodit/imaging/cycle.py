"""Time as a circle: one heart beat to any number of frames, and back."""

import numpy as np
from scipy.sparse import csr_array

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.resampling import pick, weigh


def periodic_weights(source: int, frames: int) -> np.ndarray:
    """(frames, source): frame j stands at the phase j / frames of the beat, frame 0 stays frame 0.

    Cubic convolution (Keys, IEEE TASSP 1981, a = -1/2), which keeps edges sharper than linear weights do and leaves
    frames that coincide untouched; for fewer frames it grows wider, so that no frame is skipped.
    """
    width = max(1.0, source / frames)
    positions = np.arange(frames) * source / frames
    distance = positions[:, None, None] - np.arange(source)[None, :, None]
    turns = np.arange(-4, 5) * source  # the kernel may reach around the circle when there are few frames
    weights = _cubic(np.abs(distance + turns) / width).sum(axis=-1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resample_beat(voxels: np.ndarray, frames: int, labels: bool = False) -> np.ndarray:
    """`(…, N)` → `(…, frames)` over the same beat; labels come from the frame nearest in phase."""
    source = voxels.shape[-1]
    _check(source, frames)
    if frames == source:
        return voxels
    if labels:
        nearest = np.floor(np.arange(frames) * source / frames + 0.5).astype(int) % source
        return pick(voxels, nearest, voxels.ndim - 1)
    return weigh(csr_array(periodic_weights(source, frames)), voxels, voxels.ndim - 1)


def repeat_beat(voxels: np.ndarray, frames: int) -> np.ndarray:
    """`(…, N)` → `(…, frames)` by repeating the cycle and cutting it, as CardioDiT was published."""
    source = voxels.shape[-1]
    _check(source, frames)
    return voxels if frames == source else pick(voxels, np.arange(frames) % source, voxels.ndim - 1)


def _check(source: int, frames: int) -> None:
    if source < 2 or frames < 1:
        raise CardioDiTError(f"A beat of {source} frames cannot become one of {frames}: at least 2 are needed, and 1.")
