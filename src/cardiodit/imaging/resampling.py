"""Resampling in space, one axis at a time, and in time, around the circle of a heart beat.

Where new voxels or frames coincide with old ones, they are copied; elsewhere they are weighted means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import Volume

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CLOSE = 1e-6  # tolerance in voxels
LONGEST_AXIS = 2**15  # voxels
LEAST_STEP = 1e-3  # of a voxel


@dataclass(frozen=True)
class AxisPlan:
    """One axis of a new grid: its voxel j of `count` lies at index `offset + step * j` of the `source` old voxels."""

    step: float
    offset: float
    count: int
    source: int

    @property
    def positions(self) -> np.ndarray:
        """Old index of each new voxel."""
        return self.offset + self.step * np.arange(self.count)

    @property
    def inside(self) -> slice:
        """The new voxels whose centres lie within the old field of view."""
        held = np.flatnonzero((self.positions > -0.5 - CLOSE) & (self.positions < self.source - 0.5 + CLOSE))
        return slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, 0)

    @property
    def slices(self) -> tuple[int, int]:
        """Number of new voxels within the old field of view, and of all."""
        inside = self.inside
        return inside.stop - inside.start, self.count

    @property
    def is_slice(self) -> bool:
        """True if every new voxel is an old one, so that nothing is interpolated."""
        return abs(self.step - 1) < CLOSE and abs(self.offset - round(self.offset)) < CLOSE

    def inverse(self) -> "AxisPlan":
        """Return the plan from the new grid back to the old one."""
        return AxisPlan(1 / self.step, -self.offset / self.step, self.source, self.count)

    def pooled(self, factor: int) -> "AxisPlan":
        """Return the plan of voxels that are the means of `factor` voxels of this plan."""
        offset = self.offset + self.step * (factor - 1) / 2
        return AxisPlan(self.step * factor, offset, self.count // factor, self.source)

    def weights(self) -> "csr_array":
        """Return interpolation weights (inside, source).

        They form a triangle that widens with the step, so that a coarser grid averages the voxels between its own. A
        linear factor on each triangle makes its centre of mass the new voxel's position, so that nothing is displaced
        whatever the step: a ramp stays the same ramp.
        """
        from scipy.sparse import csr_array

        positions = np.clip(self.positions[self.inside], 0, self.source - 1)
        width = max(1.0, self.step)
        taps = int(np.ceil(width)) * 2 + 1
        columns = np.floor(positions)[:, None].astype(int) + np.arange(taps) - taps // 2
        weights = np.clip(1 - np.abs(columns - positions[:, None]) / width, 0, None)
        weights[(columns < 0) | (columns >= self.source)] = 0
        distance = columns - positions[:, None]
        sums, first, second = ((weights * distance**power).sum(axis=1, keepdims=True) for power in (0, 1, 2))
        spread = sums * second - first**2
        is_single = spread < CLOSE  # one voxel has all the weight
        weights *= np.where(is_single, 1 / sums, (second - first * distance) / np.where(is_single, 1, spread))
        used = np.abs(weights) > 1e-9
        row_ends = np.concatenate([[0], used.sum(axis=1).cumsum()])
        shape = (len(positions), self.source)
        return csr_array((weights[used].astype(np.float32), columns[used].astype(np.int32), row_ends), shape=shape)

    def take(self, voxels: np.ndarray, axis: int, labels: bool = False) -> np.ndarray:
        """Return the new voxels of an axis that lie within the old field of view; labels use the nearest voxel."""
        inside = self.inside
        if self.is_slice:
            start = round(self.offset) + inside.start
            return voxels[(slice(None),) * axis + (slice(start, start + inside.stop - inside.start),)]
        if labels:
            nearest = np.clip(np.floor(self.positions[inside] + 0.5).astype(int), 0, self.source - 1)
            return _pick(voxels, nearest, axis)
        return weighted(self.weights(), voxels, axis)


def plan_axis(source: int, spacing: float | None, target: float | None, size: int | None, resize: bool) -> AxisPlan:
    """Plan one axis around the same centre: resampled to `target` mm, then cropped or padded to `size`.

    With `resize` the whole field of view is fitted into `size` voxels instead. Crop and pad place an odd voxel where
    MONAI's CenterSpatialCrop and SpatialPad place it.
    """
    count, step = source, 1.0
    if resize and size is not None:
        count, step = size, source / size
    elif target is not None and spacing is not None:
        step = target / spacing
        if not LEAST_STEP <= step <= 1 / LEAST_STEP:
            raise CardioDiTError(f"Voxels of {spacing:g} mm cannot be resampled to {target:g} mm.")
        count = max(1, round(source / step))
    if max(count, size or 0) > LONGEST_AXIS:
        raise CardioDiTError(
            f"The preprocessing makes an axis of {max(count, size or 0)} voxels; no image is as large."
        )
    offset = (source - 1) / 2 - step * (count - 1) / 2
    if size is not None and size < count:
        offset += step * (count // 2 - size // 2)
    elif size is not None:
        offset -= step * ((size - count) // 2)
    return AxisPlan(step, offset, count if size is None else size, source)


def index_map(plans: Sequence[AxisPlan]) -> np.ndarray:
    """Return the 4×4 matrix from new to old indices."""
    matrix = np.eye(4)
    for axis, plan in enumerate(plans):
        matrix[axis, axis], matrix[axis, 3] = plan.step, plan.offset
    return matrix


def apply_plans(voxels: np.ndarray, plans: Sequence[AxisPlan], fill: float, labels: bool = False) -> np.ndarray:
    """Return the voxels of the new grid, with `fill` outside the old field of view."""
    return fill_outside(take_inside(voxels, plans, labels), plans, fill)


def take_inside(voxels: np.ndarray, plans: Sequence[AxisPlan], labels: bool = False) -> np.ndarray:
    """Return the part of the new grid within the old field of view."""
    # Slices and coarser axes first: they discard most voxels.
    for axis in sorted(range(len(plans)), key=lambda axis: (not plans[axis].is_slice, -plans[axis].step)):
        voxels = plans[axis].take(voxels, axis, labels)
    return voxels


def fill_outside(voxels: np.ndarray, plans: Sequence[AxisPlan], fill: float) -> np.ndarray:
    """Place the part within the old field of view into the whole new grid."""
    counts = tuple(plan.count for plan in plans)
    if voxels.shape[: len(plans)] == counts:
        return voxels
    whole = np.full((*counts, *voxels.shape[len(plans) :]), fill, voxels.dtype, order="F")
    whole[tuple(plan.inside for plan in plans)] = voxels
    return whole


def average_cubes(voxels: np.ndarray, factor: int) -> np.ndarray:
    """Average-pool cubes of `factor` voxels along the first three axes."""
    if factor == 1:
        return voxels
    shape = voxels.shape[:3]
    if any(n % factor for n in shape):
        raise CardioDiTError(
            f"A volume of {' × '.join(map(str, shape))} voxels cannot be pooled by {factor}: not every axis is a "
            f"multiple of {factor}. Set the preprocessing's size to one that is."
        )
    split = [number for n in shape for number in (n // factor, factor)]
    return voxels.reshape(*split, *voxels.shape[3:]).mean(axis=(1, 3, 5), dtype=np.float32)


def resample(
    volume: Volume,
    spacing: tuple[float | None, float | None, float | None] = (None, None, None),
    size: tuple[int | None, int | None, int | None] = (None, None, None),
    fill: float = 0,
    labels: bool = False,
    resize: bool = False,
) -> Volume:
    """Resample a volume to a new grid around the same centre.

    Args:
        volume: cine or CT.
        spacing: new voxel size in mm; None keeps an axis as it is.
        size: number of voxels to crop or pad to; None keeps all.
        fill: value outside the old field of view.
        labels: take the nearest voxel instead of weighted means.
        resize: fit the whole field of view into `size`.
    """
    known = volume.geometry.spacing or (None, None, None)
    plans = [
        plan_axis(n, s, t, m, resize) for n, s, t, m in zip(volume.voxels.shape, known, spacing, size, strict=False)
    ]
    voxels = apply_plans(volume.voxels, plans, fill, labels)
    return Volume(voxels, volume.geometry.reindexed(index_map(plans)))


def resample_beat(voxels: np.ndarray, frames: int, labels: bool = False) -> np.ndarray:
    """Resample one beat `(…, N)` to `(…, frames)` periodically; labels use the frame nearest in phase."""
    source = voxels.shape[-1]
    _check_beat(source, frames)
    if frames == source:
        return voxels
    if labels:
        nearest = np.floor(np.arange(frames) * source / frames + 0.5).astype(int) % source
        return _pick(voxels, nearest, voxels.ndim - 1)
    from scipy.sparse import csr_array

    return weighted(csr_array(periodic_weights(source, frames)), voxels, voxels.ndim - 1)


def repeat_beat(voxels: np.ndarray, frames: int) -> np.ndarray:
    """Repeat the cycle `(…, N)` and cut it to `(…, frames)`, as CardioDiT was published."""
    source = voxels.shape[-1]
    _check_beat(source, frames)
    return voxels if frames == source else _pick(voxels, np.arange(frames) % source, voxels.ndim - 1)


def periodic_weights(source: int, frames: int) -> np.ndarray:
    """Return weights (frames, source): frame j lies at phase j / frames of the beat, and frame 0 stays frame 0.

    Cubic convolution (Keys, IEEE TASSP 1981, a = -1/2) keeps edges sharper than linear weights and leaves coinciding
    frames unchanged. For fewer frames the kernel widens, so that no frame is skipped.
    """
    width = max(1.0, source / frames)
    positions = np.arange(frames) * source / frames
    distance = positions[:, None, None] - np.arange(source)[None, :, None]
    turns = np.arange(-4, 5) * source  # with few frames, the kernel may reach around the circle
    weights = _cubic(np.abs(distance + turns) / width).sum(axis=-1)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _check_beat(source: int, frames: int) -> None:
    if source < 2 or frames < 1:
        raise CardioDiTError(
            f"A beat of {source} frames cannot be resampled to {frames}: it needs at least 2 frames, the result at "
            "least 1."
        )


def _pick(voxels: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    """Take the voxels at some indices of an axis, in the memory order of a NIfTI file (first axis fastest)."""
    return voxels.T.take(indices, axis=voxels.ndim - 1 - axis).T


def weighted(weights: "csr_array | np.ndarray", voxels: np.ndarray, axis: int) -> np.ndarray:
    """Return weighted sums along an axis, in float32.

    The first axis of a NIfTI file is the fastest. Working in that order, a piece at a time, keeps memory access local.
    """
    memory, along = voxels.T, voxels.ndim - 1 - axis
    shape = memory.shape
    result = np.empty((*shape[:along], weights.shape[0], *shape[along + 1 :]), np.float32)
    if along == memory.ndim - 1:
        for piece in np.ndindex(shape[:-2]):
            result[piece] = (weights @ memory[piece].T.astype(np.float32, order="C")).T
        return result.T
    for piece in np.ndindex(shape[:along]):
        flat = memory[piece].astype(np.float32, order="C").reshape(shape[along], -1)
        result[piece] = (weights @ flat).reshape(result[piece].shape)
    return result.T
