"""Describe what is missing from an image (slices, frames, resolution) or is to be removed (noise), and its target grid.

An image is completed on a target grid, its own or a finer one. What was measured is linear in the completed volume
along slices and frames: `slices @ volume @ frames.T`, where a row picks a slice or averages those of a thick one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Range, to_model
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.imaging.preprocessing import FILL, Prepared, Preprocessing
from cardiodit.imaging.resampling import AxisPlan, fill_outside, take_inside
from cardiodit.imaging.volume import Volume

# Second differences along both axes of the plane: 0 on ramps, so that mostly noise remains (Immerkaer, CVIU 1996).
NOISE_MASK = np.outer((1, -2, 1), (1, -2, 1))
MEDIAN_OF_NORMAL = 0.6745  # median of |x| for a standard normal x


@dataclass(frozen=True)
class Gaps:
    """The parts of an image to complete; slices (third axis) and frames are counted from 0 as stored in its file.

    Args:
        missing_slices, missing_frames: those to be replaced, whatever the file holds there.
        insert_slices: new slices between each two neighbours.
        insert_frames: new frames after each frame; the last ones lead back to the first frame.
        split_slices: number of thin slices whose mean each slice of a thick stack is.
        noise: standard deviation of the noise to be removed, in the image's units; 0 for none.
    """

    missing_slices: tuple[int, ...] = ()
    missing_frames: tuple[int, ...] = ()
    insert_slices: int = 0
    insert_frames: int = 0
    split_slices: int = 1
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("insert_slices", 0), ("insert_frames", 0), ("split_slices", 1), ("noise", 0)):
            if not getattr(self, name) >= least:
                raise CardioDiTError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.split_slices > 1 and self.insert_slices:
            raise CardioDiTError(
                "Slices are either thick (split_slices) or have gaps between them (insert_slices): give one of both."
            )
        is_split = self.split_slices > 1
        if not any(
            (self.missing_slices, self.missing_frames, self.insert_slices, self.insert_frames, is_split, self.noise)
        ):
            raise CardioDiTError(
                "There is nothing to complete: give missing slices or frames, slices or frames to insert, the number "
                "of thin slices in a thick one, or the noise to remove."
            )


@dataclass(frozen=True)
class IncompleteVolume:
    """An image on the grid of its completion.

    Args:
        source: the image as it was read.
        filled: float32 on the target grid; gaps are interpolated by cubic splines.
        slices: (measured slices, target slices), what was measured along the third axis.
        frames: (measured frames, target frames).
        measured: `(H, W, measured slices, measured frames)`, as read.
        gaps: what is to be completed.
    """

    source: Volume
    filled: Volume
    slices: np.ndarray
    frames: np.ndarray
    measured: np.ndarray
    gaps: Gaps

    @property
    def is_exact(self) -> bool:
        """True if every measured voxel is a voxel of the target grid, and keeps its value."""
        return self.gaps.split_slices == 1 and self.gaps.noise == 0

    def with_measured(self, voxels: np.ndarray) -> Volume:
        """Return voxels of the target grid, in the image's units, with what was measured exactly as it was.

        Voxels that were measured are copied, in the image's number type. Thick slices are the mean of their thin ones
        again, in float32. Where noise was to be removed, nothing is put back.
        """
        dtype = self.source.voxels.dtype
        if not self.is_exact and self.gaps.noise == 0:
            left = self.measured - _measure(_with_frames(voxels).astype(np.float64), self.slices, self.frames)
            back = _measure(left, np.linalg.pinv(self.slices), np.linalg.pinv(self.frames))
            return replace(self.filled, voxels=(voxels + back.reshape(voxels.shape)).astype(np.float32))
        if dtype.kind in "iu":
            voxels = np.rint(voxels).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        voxels = np.array(voxels, dtype)
        if self.is_exact:
            places = [matrix.argmax(axis=1) for matrix in (self.slices, self.frames)]
            _with_frames(voxels)[np.ix_(*map(np.arange, voxels.shape[:2]), *places)] = self.measured
        return replace(self.filled, voxels=voxels)


def find_gaps(image: Volume, gaps: Gaps) -> IncompleteVolume:
    """Lay an image onto the grid of its completion, and fill its gaps by cubic interpolation."""
    if not image.is_cine and (gaps.missing_frames or gaps.insert_frames):
        raise CardioDiTError(f"A 3D image of shape {image.voxels.shape} has no frames to complete.")
    voxels = _with_frames(image.voxels)
    kept_slices = _kept("slice", voxels.shape[2], gaps.missing_slices)
    kept_frames = _kept("frame", voxels.shape[3], gaps.missing_frames)
    measured = voxels[:, :, kept_slices][..., kept_frames]
    if not np.isfinite(measured).all():
        raise CardioDiTError("The measured voxels hold values that are not numbers (NaN or infinite).")
    if gaps.split_slices > 1:
        factor, places = gaps.split_slices, np.array(kept_slices) * gaps.split_slices
        depth, step, offset = voxels.shape[2] * factor, 1 / factor, -(factor - 1) / 2 / factor
        slices = np.zeros((len(places), depth))
        for row, place in enumerate(places):
            slices[row, place : place + factor] = 1 / factor
        positions = places + (factor - 1) / 2
    else:
        factor = gaps.insert_slices + 1
        depth, step, offset = (voxels.shape[2] - 1) * factor + 1, 1 / factor, 0.0
        positions = np.array(kept_slices) * factor
        slices = np.eye(depth)[positions]
    every = gaps.insert_frames + 1
    frames = np.eye(voxels.shape[3] * every)[np.array(kept_frames) * every]
    filled = _spline(measured, positions, depth, axis=2)
    filled = _spline(filled, np.array(kept_frames) * every, frames.shape[1], axis=3, is_periodic=True)
    index_map = np.diag([1.0, 1.0, step, 1.0])
    index_map[2, 3] = offset
    geometry = image.geometry.reindexed(index_map)
    if geometry.frame_time is not None:
        geometry = geometry.with_frame_time(geometry.frame_time / every)
    target = Volume(filled.reshape(*filled.shape[: image.voxels.ndim]).astype(np.float32), geometry)
    incomplete = IncompleteVolume(image, target, slices, frames, measured, gaps)
    return replace(incomplete, filled=_consistent(incomplete))


def _consistent(incomplete: IncompleteVolume) -> Volume:
    """Let the thin slices of an interpolated volume have the means that were measured."""
    if incomplete.gaps.split_slices == 1:
        return incomplete.filled
    without_noise = replace(incomplete, gaps=replace(incomplete.gaps, noise=0.0))
    return without_noise.with_measured(incomplete.filled.voxels)


@dataclass(frozen=True)
class ModelView:
    """An incomplete volume as a model sees it.

    Args:
        incomplete: the volume in the grid of its file.
        prepared: the interpolated volume, preprocessed.
        slices: (measured slices within the model's field of view, slices of the model).
        frames: (measured frames, frames of the model).
        values: `(H, W, measured slices, measured frames)` in [-1, 1].
        noise: standard deviation of the noise, in these units.
    """

    incomplete: IncompleteVolume
    prepared: Prepared
    slices: np.ndarray
    frames: np.ndarray
    values: np.ndarray
    noise: float

    def restore(self, voxels: np.ndarray) -> np.ndarray:
        """Return the model's voxels on the target grid, float32 in the image's units; beyond its view, interpolated."""
        filled, order = self.incomplete.filled, self.prepared.source.order
        inside = np.zeros(order.apply(filled).voxels.shape, bool)
        inside[tuple(plan.inverse().inside for plan in self.prepared.plans)] = True
        is_seen = order.restore(Volume(inside, Geometry())).voxels
        return np.where(is_seen, self.prepared.inverse(voxels).voxels, filled.voxels)


def view_for_model(incomplete: IncompleteVolume, steps: Preprocessing, order: StorageOrder | None = None) -> ModelView:
    """Preprocess an incomplete volume like a model's training volumes.

    Args:
        incomplete: the volume.
        steps: the model's preprocessing.
        order: how the axes of the target grid map to ours; default: that of `steps.order_of`.
    """
    prepared = steps(incomplete.filled, order)
    order, plans = prepared.source.order, prepared.plans
    if order.axes[2] != 2:
        raise CardioDiTError(
            "The slices of this image are not its third axis, which the model would see as its slices. Reorder the "
            "file's axes first."
        )
    is_flipped = 2 in order.flips
    seen, is_whole = _from_model(incomplete.slices[:, ::-1] if is_flipped else incomplete.slices, plans[2])
    if not is_whole.any():
        raise CardioDiTError("No measured slice lies within the model's field of view.")
    frames = np.eye(1)
    if incomplete.source.is_cine:
        shown = prepared.volume.voxels.shape[3]
        basis = np.eye(shown, dtype=np.float32)[:, None, None]
        back = prepared._restore_frames(basis, incomplete.frames.shape[1])[:, 0, 0].T  # (target frames, model frames)
        frames = np.roll(incomplete.frames, -order.first_frame, axis=1) @ back
    values = _values(incomplete, order, prepared, is_flipped)[:, :, is_whole]
    low, high = prepared.source.limits
    return ModelView(incomplete, prepared, seen, frames, values, incomplete.gaps.noise * 2 / (high - low))


def _from_model(slices: np.ndarray, plan: AxisPlan) -> tuple[np.ndarray, np.ndarray]:
    """Return what was measured as a function of the model's slices, and which slices its field of view holds whole."""
    back, inverse = np.zeros((plan.source, plan.count)), plan.inverse()
    back[inverse.inside] = inverse.weights().toarray()
    is_seen = np.zeros(plan.source, bool)
    is_seen[inverse.inside] = True
    is_whole = ~((slices != 0) & ~is_seen).any(axis=1)
    return (slices @ back)[is_whole], is_whole


def _values(incomplete: IncompleteVolume, order: StorageOrder, prepared: Prepared, is_flipped: bool) -> np.ndarray:
    """Return the measured slices and frames, in their own number and order, in the model's plane and intensities."""
    measured = incomplete.measured
    turned = replace(order, first_frame=0).apply(Volume(measured, Geometry())).voxels
    turned = turned[:, :, ::-1] if is_flipped else turned
    plans = (*prepared.plans[:2], AxisPlan(1.0, 0.0, measured.shape[2], measured.shape[2]))
    limits: Range = prepared.source.limits
    return fill_outside(to_model(take_inside(turned, plans), limits), plans, FILL)


def estimate_noise(voxels: np.ndarray) -> float:
    """Estimate the standard deviation of the noise of `(H, W, …)`, from its second differences in the plane."""
    from scipy.ndimage import convolve

    mask = NOISE_MASK.reshape(3, 3, *(1,) * (voxels.ndim - 2))
    left = convolve(voxels.astype(np.float32), mask.astype(np.float32))[1:-1, 1:-1]
    return float(np.median(np.abs(left)) / MEDIAN_OF_NORMAL / np.sqrt((NOISE_MASK**2).sum()))


def _kept(kind: str, count: int, missing: Sequence[int]) -> list[int]:
    unknown = [index for index in missing if not 0 <= index < count]
    if unknown:
        raise CardioDiTError(f"There is no {kind} {unknown[0]}: the image has {count}, counted from 0.")
    kept = [index for index in range(count) if index not in set(missing)]
    if not kept:
        raise CardioDiTError(f"All {count} {kind}s are missing: at least one must have been measured.")
    return kept


def _spline(values: np.ndarray, positions: np.ndarray, count: int, axis: int, is_periodic: bool = False) -> np.ndarray:
    """Interpolate along an axis by a cubic spline, which keeps the outermost values beyond the ends or is periodic."""
    if len(positions) == count:
        return values
    if len(positions) == 1:
        return np.repeat(values, count, axis)
    from scipy.interpolate import CubicSpline

    wanted = np.arange(count)
    if is_periodic:
        values = np.concatenate([values, values.take([0], axis)], axis)
        places = np.append(positions, positions[0] + count)
        return CubicSpline(places, values.astype(np.float64), axis, "periodic")(wanted)
    return CubicSpline(positions, values.astype(np.float64), axis)(np.clip(wanted, positions[0], positions[-1]))


def _measure(volume: np.ndarray, slices: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """`(H, W, D, T)` → `(H, W, measured slices, measured frames)`."""
    return np.einsum("md,hwdt,nt->hwmn", slices, volume, frames, optimize=True)


def _with_frames(voxels: np.ndarray) -> np.ndarray:
    return voxels[..., None] if voxels.ndim == 3 else voxels
