"""One axis of a new grid made of the old one: slices where voxels coincide, weighted means where they do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import Volume

CLOSE = 1e-6  # of a voxel


@dataclass(frozen=True)
class AxisPlan:
    """New voxel j lies at the old index `offset + step * j`; there are `count` new ones and `source` old ones."""

    step: float
    offset: float
    count: int
    source: int

    @property
    def positions(self) -> np.ndarray:
        return self.offset + self.step * np.arange(self.count)

    @property
    def inside(self) -> slice:
        """The new voxels whose centres lie within the old field of view."""
        held = np.flatnonzero((self.positions > -0.5 - CLOSE) & (self.positions < self.source - 0.5 + CLOSE))
        return slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(0, 0)

    @property
    def is_slice(self) -> bool:
        """Whether new voxels are old ones, none in between."""
        return abs(self.step - 1) < CLOSE and abs(self.offset - round(self.offset)) < CLOSE

    def inverse(self) -> "AxisPlan":
        """From the new grid back to the old one."""
        return AxisPlan(1 / self.step, -self.offset / self.step, self.source, self.count)

    def pooled(self, factor: int) -> "AxisPlan":
        """Of voxels that are the means of `factor` of these."""
        offset = self.offset + self.step * (factor - 1) / 2
        return AxisPlan(self.step * factor, offset, self.count // factor, self.source)

    def weights(self) -> csr_array:
        """(inside, source): a triangle that grows with the step, so that a coarser grid averages what it skips."""
        inside = self.inside
        positions = np.clip(self.positions[inside], 0, self.source - 1)
        width = max(1.0, self.step)
        taps = int(np.ceil(width)) * 2 + 1
        columns = np.floor(positions)[:, None].astype(int) + np.arange(taps) - taps // 2
        weights = np.clip(1 - np.abs(columns - positions[:, None]) / width, 0, None)
        weights[(columns < 0) | (columns >= self.source)] = 0
        weights /= weights.sum(axis=1, keepdims=True)
        held = weights > 1e-9
        ends = np.concatenate([[0], held.sum(axis=1).cumsum()])
        shape = (len(positions), self.source)
        return csr_array((weights[held].astype(np.float32), columns[held].astype(np.int32), ends), shape=shape)

    def take(self, voxels: np.ndarray, axis: int, labels: bool = False) -> np.ndarray:
        """The new voxels of an axis that lie within the old field of view; labels come from the nearest voxel."""
        inside = self.inside
        if self.is_slice:
            start = round(self.offset) + inside.start
            return voxels[(slice(None),) * axis + (slice(start, start + inside.stop - inside.start),)]
        if labels:
            nearest = np.clip(np.floor(self.positions[inside] + 0.5).astype(int), 0, self.source - 1)
            return pick(voxels, nearest, axis)
        return weigh(self.weights(), voxels, axis)


def pick(voxels: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    """The voxels at some indices of an axis, in the order of memory of a NIfTI file."""
    return voxels.T.take(indices, axis=voxels.ndim - 1 - axis).T


def weigh(weights: csr_array, voxels: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums along an axis, in float32.

    A NIfTI file has its first axis fastest. Working in that order, a piece at a time, keeps to what lies together.
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


def plan_axis(source: int, spacing: float | None, target: float | None, size: int | None, resize: bool) -> AxisPlan:
    """The grid of one axis around the same centre: resampled to `target` mm, then cropped or padded to `size`.

    With `resize` the whole field of view is fitted into `size` voxels instead. Crop and pad put an odd voxel where
    MONAI's CenterSpatialCrop and SpatialPad put it.
    """
    count, step = source, 1.0
    if resize and size is not None:
        count, step = size, source / size
    elif target is not None and spacing is not None:
        step = target / spacing
        count = max(1, round(source / step))
    offset = (source - 1) / 2 - step * (count - 1) / 2
    if size is not None and size < count:
        offset += step * (count // 2 - size // 2)
    elif size is not None:
        offset -= step * ((size - count) // 2)
    return AxisPlan(step, offset, count if size is None else size, source)


def index_map(plans: list[AxisPlan]) -> np.ndarray:
    """New index → old index, 4×4."""
    matrix = np.eye(4)
    for axis, plan in enumerate(plans):
        matrix[axis, axis], matrix[axis, 3] = plan.step, plan.offset
    return matrix


def apply_plans(voxels: np.ndarray, plans: Sequence[AxisPlan], fill: float, labels: bool = False) -> np.ndarray:
    """The new grid's voxels; `fill` where the old field of view does not reach."""
    return fill_outside(take_inside(voxels, plans, labels), plans, fill)


def take_inside(voxels: np.ndarray, plans: Sequence[AxisPlan], labels: bool = False) -> np.ndarray:
    """What of the new grid lies within the old field of view. Slices and coarser axes first: they throw most away."""
    for axis in sorted(range(len(plans)), key=lambda axis: (not plans[axis].is_slice, -plans[axis].step)):
        voxels = plans[axis].take(voxels, axis, labels)
    return voxels


def fill_outside(voxels: np.ndarray, plans: Sequence[AxisPlan], fill: float) -> np.ndarray:
    """Puts what lies within the old field of view into the whole new grid."""
    counts = tuple(plan.count for plan in plans)
    if voxels.shape[: len(plans)] == counts:
        return voxels
    whole = np.full((*counts, *voxels.shape[len(plans) :]), fill, voxels.dtype, order="F")
    whole[tuple(plan.inside for plan in plans)] = voxels
    return whole


def average_cubes(voxels: np.ndarray, factor: int) -> np.ndarray:
    """Means over cubes of `factor` voxels along the first three axes, as average pooling makes them."""
    if factor == 1:
        return voxels
    shape = voxels.shape[:3]
    if any(n % factor for n in shape):
        raise CardioDiTError(
            f"Means over cubes of {factor} voxels cannot be taken of {' × '.join(map(str, shape))} voxels: not every "
            f"axis is a multiple of {factor}. Give the preprocessing a size."
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
    """A volume on a new grid around the same centre; what stays None is left as it is."""
    known = volume.geometry.spacing or (None, None, None)
    plans = [
        plan_axis(n, s, t, m, resize) for n, s, t, m in zip(volume.voxels.shape, known, spacing, size, strict=False)
    ]
    voxels = apply_plans(volume.voxels, plans, fill, labels)
    return Volume(voxels, volume.geometry.after(index_map(plans)))
