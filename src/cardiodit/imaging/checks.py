"""What can be wrong with a volume, each in a sentence. Nothing is mended here."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from cardiodit.imaging.volume import Volume

SHEAR_NOTED, SHEAR_REFUSED = 0.1, 2.0  # degrees between axes that should be perpendicular
PLANE_MM, SLICE_MM = (0.4, 4.0), (1.5, 25.0)  # what short-axis cine has
FRAMES = (8, 120)
SWAPPED = -1.0  # of the logarithm that `time_score` is
BLOCK = 4
MOST_LABELS = 8


@dataclass
class Findings:
    """What a check found: problems that forbid the use of a file, and notes worth knowing."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Findings") -> "Findings":
        self.problems += other.problems
        self.notes += other.notes
        return self


def check_cine(volume: Volume) -> Findings:
    """Everything that can be told of a cine `(H, W, D, T)` as it was stored."""
    found = check_voxels(volume.voxels)
    found += check_geometry(volume)
    shape = volume.voxels.shape
    if not volume.is_cine:
        found.problems.append(f"is 3D with the shape {shape}: a cine has four axes (H, W, D, T) and two frames or more")
        return found
    if order := _wrong_order(volume):
        found.problems.append(order)
        return found
    if not FRAMES[0] <= shape[3] <= FRAMES[1]:
        found.notes.append(f"has {shape[3]} frames, which is unusual for a heart beat")
    if volume.geometry.frame_time is None:
        found.notes.append("does not say how long a frame lasts")
    found.notes += _odd_spacing(volume)
    return found


def check_ct(volume: Volume) -> Findings:
    """Everything that can be told of a CT `(H, W, D)` in Hounsfield units."""
    found = check_voxels(volume.voxels)
    found += check_geometry(volume)
    if volume.is_cine:
        found.problems.append(f"has four axes {volume.voxels.shape}: a CT has three (H, W, D)")
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if not (low <= -200 and high <= 32768) and not found.problems:
        found.notes.append(f"has values from {low:g} to {high:g}, which do not look like Hounsfield units")
    return found


def check_voxels(voxels: np.ndarray) -> Findings:
    found = Findings()
    if voxels.dtype.kind == "f":
        broken = voxels.size - int(np.isfinite(voxels).sum())
        if broken:
            found.problems.append(f"holds {broken} values that are not numbers (NaN or infinite)")
            return found
    if voxels.min() == voxels.max():
        found.problems.append(f"is constant: every voxel is {voxels.flat[0]:g}")
        return found
    if voxels.dtype.kind != "f" and len(values := _distinct(voxels)) <= MOST_LABELS:
        found.problems.append(f"looks like a mask: it holds only the values {', '.join(map(str, values))}")
    elif voxels.ndim == 4:
        still = np.flatnonzero(np.ptp(voxels, axis=(0, 1, 3)) == 0)
        if len(still):
            found.notes.append(f"has empty slices: {', '.join(map(str, still))} (counted from 0)")
    return found


def _distinct(voxels: np.ndarray) -> list[int]:
    """The values of an integer volume, in a sample of it if that already holds many."""
    some = np.unique(voxels[::4, ::4])
    return (some if len(some) > MOST_LABELS else np.unique(voxels)).tolist()


def check_geometry(volume: Volume) -> Findings:
    found = Findings()
    if volume.geometry.spacing is None:
        found.problems.append("does not say how large its voxels are, so no volume in mL can be computed")
        return found
    shear = volume.geometry.shear_degrees
    if shear > SHEAR_REFUSED:
        found.problems.append(f"has axes that are not perpendicular: its affine is off by {shear:.1f} degrees")
    elif shear > SHEAR_NOTED:
        found.notes.append(f"has axes that are {shear:.2f} degrees from perpendicular")
    return found


def check_mask(mask: Volume, image: Volume) -> Findings:
    """Whether a label map lies on its image's grid and holds whole numbers."""
    found = Findings()
    ours, theirs = mask.voxels.shape, image.voxels.shape
    if ours[:3] != theirs[:3] or (mask.is_cine and ours != theirs):
        found.problems.append(f"has the shape {ours}, its image {theirs}")
    elif not mask.geometry.is_close(image.geometry):
        found.problems.append("lies elsewhere than its image: their affines differ")
    if mask.voxels.dtype.kind == "f" and not np.array_equal(mask.voxels, np.rint(mask.voxels)):
        found.problems.append("is no label map: it holds values that are not whole numbers")
    elif not mask.voxels.any():
        found.problems.append("is empty: every voxel is 0")
    return found


def content_of(voxels: np.ndarray) -> str:
    """The same for files with the same voxels, however they are compressed and named."""
    digest = hashlib.sha256(str((voxels.shape, voxels.dtype.kind)).encode())
    digest.update(np.ascontiguousarray(voxels.T))
    return digest.hexdigest()


def _wrong_order(volume: Volume) -> str | None:
    """Names the order that the axes seem to have, if that is not (H, W, D, T)."""
    shape, spacing = volume.voxels.shape, volume.geometry.spacing
    if spacing is not None and max(spacing) >= 2 * np.median(spacing) and np.argmax(spacing) != 2:
        axis = int(np.argmax(spacing))
        return (
            f"has its slices along axis {axis + 1} ({spacing[axis]:g} mm apart, shape {shape}): (H, W, D, T) was "
            "expected, the slices third"
        )
    plane = sorted(np.argsort(shape, kind="stable")[-2:].tolist())
    if min(shape[:2]) < shape[2] or (shape[3] > FRAMES[1] and min(shape[:2]) < shape[3]):
        return (
            f"has the shape {shape}, whose largest axes are {plane[0] + 1} and {plane[1] + 1}: (H, W, D, T) was "
            "expected, the image plane first"
        )
    if time_score(volume.voxels) < SWAPPED:
        return (
            f"has its time and slice axes swapped: along axis 3 of {shape} it moves as a heart does in time, along "
            "axis 4 it changes as from slice to slice. (H, W, D, T) was expected"
        )
    return None


def time_score(voxels: np.ndarray) -> float:
    """Above 0 when axis 4 is more like time than axis 3, below 0 when it is the other way round.

    From frame to frame less changes than from slice to slice, and the last frame leads to the first again.
    """
    height, width, depth, frames = voxels.shape
    if depth < 3 or frames < 3:
        return 0.0
    inner = voxels[: height // BLOCK * BLOCK, : width // BLOCK * BLOCK]
    blocks = inner.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, depth, frames).mean(axis=(1, 3))

    def change(axis: int) -> tuple[float, float]:
        neighbours = np.abs(np.diff(blocks, axis=axis)).mean()
        around = np.abs(blocks.take(0, axis=axis) - blocks.take(-1, axis=axis)).mean()
        return max(float(neighbours), 1e-9), max(float(around), 1e-9)

    (slices, far_slices), (times, far_times) = change(2), change(3)
    return float(np.log(slices / times) + np.log(far_slices / far_times))


def _odd_spacing(volume: Volume) -> list[str]:
    if volume.geometry.spacing is None:
        return []
    height, width, depth = volume.geometry.spacing
    is_usual = all(PLANE_MM[0] <= s <= PLANE_MM[1] for s in (height, width)) and SLICE_MM[0] <= depth <= SLICE_MM[1]
    return [] if is_usual else [f"has voxels of {height:g} × {width:g} × {depth:g} mm, which is unusual for cine"]
