"""Checks of stored volumes and masks. Each finding is the second half of a sentence that begins with the file."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from cardiodit.imaging.volume import Volume

SHEAR_NOTED, SHEAR_REFUSED = 0.1, 2.0  # degrees from perpendicular axes
PLANE_MM, SLICE_MM = (0.4, 4.0), (1.5, 25.0)  # usual voxel size of short-axis cine, in the plane and across slices
FRAMES = (8, 120)  # usual number of frames
SWAPPED = -1.0  # `time_score` below which axes 3 and 4 count as swapped
BLOCK = 4  # edge length of the in-plane blocks that `time_score` averages
MOST_LABELS = 8  # an integer volume with at most this many values looks like a mask


@dataclass
class Findings:
    """Results of a check: problems that rule out the use of a file, and notes worth knowing."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Findings") -> "Findings":
        self.problems += other.problems
        self.notes += other.notes
        return self


def check_cine(volume: Volume) -> Findings:
    """Check a cine `(H, W, D, T)` as stored."""
    findings = check_voxels(volume.voxels)
    findings += check_geometry(volume)
    shape = volume.voxels.shape
    if not volume.is_cine:
        findings.problems.append(
            f"is 3D with the shape {shape}: a cine has four axes (H, W, D, T) and at least two frames"
        )
        return findings
    if order := _wrong_order(volume):
        findings.problems.append(order)
        return findings
    if not FRAMES[0] <= shape[3] <= FRAMES[1]:
        findings.notes.append(f"has {shape[3]} frames, which is unusual for a heart beat")
    if volume.geometry.frame_time is None:
        findings.notes.append("does not say how long a frame lasts")
    findings.notes += _odd_spacing(volume)
    return findings


def check_ct(volume: Volume) -> Findings:
    """Check a CT `(H, W, D)` in Hounsfield units."""
    findings = check_voxels(volume.voxels)
    findings += check_geometry(volume)
    if volume.is_cine:
        findings.problems.append(f"has four axes {volume.voxels.shape}: a CT has three (H, W, D)")
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if not (low <= -200 and high <= 32768) and not findings.problems:
        findings.notes.append(f"has values from {low:g} to {high:g}, which do not look like Hounsfield units")
    return findings


def check_voxels(voxels: np.ndarray) -> Findings:
    """Check that voxels are finite, not constant, not a mask, and that no slice is empty."""
    findings = Findings()
    if voxels.dtype.kind == "f":
        broken = voxels.size - int(np.isfinite(voxels).sum())
        if broken:
            findings.problems.append(f"holds {broken} values that are not numbers (NaN or infinite)")
            return findings
    if voxels.min() == voxels.max():
        findings.problems.append(f"is constant: every voxel is {voxels.flat[0]:g}")
        return findings
    if voxels.dtype.kind != "f" and len(values := _distinct(voxels)) <= MOST_LABELS:
        findings.problems.append(f"looks like a mask: it holds only the values {', '.join(map(str, values))}")
    elif voxels.ndim == 4:
        still = np.flatnonzero(np.ptp(voxels, axis=(0, 1, 3)) == 0)
        if len(still):
            findings.notes.append(f"has empty slices: {', '.join(map(str, still))} (counted from 0)")
    return findings


def _distinct(voxels: np.ndarray) -> list[int]:
    """Return the distinct values of an integer volume, or of a sample if that already has too many for a mask."""
    sample = np.unique(voxels[::4, ::4])
    return (sample if len(sample) > MOST_LABELS else np.unique(voxels)).tolist()


def check_geometry(volume: Volume) -> Findings:
    """Check that the voxel size is known and the axes are perpendicular."""
    findings = Findings()
    if volume.geometry.spacing is None:
        findings.problems.append("does not say how large its voxels are, so no volume in mL can be computed")
        return findings
    shear = volume.geometry.shear_degrees
    if shear > SHEAR_REFUSED:
        findings.problems.append(f"has axes that are not perpendicular: its affine is off by {shear:.1f} degrees")
    elif shear > SHEAR_NOTED:
        findings.notes.append(f"has axes that are {shear:.2f} degrees from perpendicular")
    return findings


def check_mask(mask: Volume, image: Volume) -> Findings:
    """Check that a mask lies on its image's grid and holds whole numbers."""
    findings = Findings()
    ours, theirs = mask.voxels.shape, image.voxels.shape
    if ours[:3] != theirs[:3] or (mask.is_cine and ours != theirs):
        findings.problems.append(f"has the shape {ours}, its image {theirs}")
    elif not mask.geometry.is_close(image.geometry):
        findings.problems.append("lies elsewhere than its image: their affines differ")
    if mask.voxels.dtype.kind == "f" and not np.array_equal(mask.voxels, np.rint(mask.voxels)):
        findings.problems.append("is not a label map: it holds values that are not whole numbers")
    elif not mask.voxels.any():
        findings.problems.append("is empty: every voxel is 0")
    return findings


def content_of(voxels: np.ndarray) -> str:
    """Return a hash of the voxels, which does not depend on how a file is compressed or named."""
    digest = hashlib.sha256(str((voxels.shape, voxels.dtype.kind)).encode())
    digest.update(np.ascontiguousarray(voxels.T))
    return digest.hexdigest()


def _wrong_order(volume: Volume) -> str | None:
    """Return a description of the axis order if it does not seem to be (H, W, D, T)."""
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
            f"has its time and slice axes swapped: axis 3 of {shape} looks like time, axis 4 like slices. (H, W, D, T) "
            "was expected"
        )
    return None


def time_score(voxels: np.ndarray) -> float:
    """Return a positive number if axis 4 resembles time more than axis 3 does, a negative one if less.

    Less changes from frame to frame than from slice to slice, and the last frame leads back to the first.
    """
    height, width, depth, frames = voxels.shape
    if depth < 3 or frames < 3:
        return 0.0
    inner = voxels[: height // BLOCK * BLOCK, : width // BLOCK * BLOCK]
    blocks = inner.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, depth, frames).mean(axis=(1, 3))

    def change(axis: int) -> tuple[float, float]:
        neighbours = np.abs(np.diff(blocks, axis=axis)).mean()
        first_to_last = np.abs(blocks.take(0, axis=axis) - blocks.take(-1, axis=axis)).mean()
        return max(float(neighbours), 1e-9), max(float(first_to_last), 1e-9)

    (slices, far_slices), (times, far_times) = change(2), change(3)
    return float(np.log(slices / times) + np.log(far_slices / far_times))


def _odd_spacing(volume: Volume) -> list[str]:
    if volume.geometry.spacing is None:
        return []
    height, width, depth = volume.geometry.spacing
    is_usual = all(PLANE_MM[0] <= s <= PLANE_MM[1] for s in (height, width)) and SLICE_MM[0] <= depth <= SLICE_MM[1]
    return [] if is_usual else [f"has voxels of {height:g} × {width:g} × {depth:g} mm, which is unusual for cine"]
