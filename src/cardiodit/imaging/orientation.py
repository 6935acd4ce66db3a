"""One order of axes for every volume: read in any, written back in the source's own.

A cine's slices go from base to apex; in its picture the patient's left is at the right and the front or the head is
above, as a radiologist sees it. A CT's axes go to the left, to the front and to the head.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from typing import Any, Self

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import Volume

TO_LEFT, TO_FRONT, TO_HEAD = np.array([-1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
CT_DIRECTION = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # of these axes, as `Geometry` holds it
# A heart lies with its apex to the left, to the front and down; its short axis is seen from the apex.
TO_APEX = np.array([-0.6, 0.55, -0.55])
PICTURE_RIGHT, PICTURE_UP = np.array([-1.0, -0.6, 0.0]), np.array([0.0, 0.5, 1.0])
OBLIQUE = 10.0  # degrees; a plane closer to an axis of the patient than this is not a short axis of a heart

SAME_POOL = 0.98

SCANNER, MASK, MANIFEST, ASSUMED = "scanner", "mask", "manifest", "as stored"
BASE_TO_APEX, APEX_TO_BASE = "base to apex", "apex to base"


@dataclass(frozen=True)
class StorageOrder:
    """How the axes of a file become ours, so that they can be put back.

    Args:
        axes: our axis i is the file's axis `axes[i]`.
        flips: our axes that run against the file's.
        first_frame: the file's frame that is our frame 0.
        slices_from: what told where the base is: "manifest", "mask", "scanner", or "as stored" when nothing did.
        first_frame_from: what told which frame is end-diastole: "manifest", "mask", or "as stored".
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    first_frame: int = 0
    slices_from: str = ASSUMED
    first_frame_from: str = ASSUMED

    def apply(self, volume: Volume) -> Volume:
        """From the file's order to ours."""
        volume = volume.permute(self.axes)
        for axis in self.flips:
            volume = volume.flip(axis)
        return volume.roll(self.first_frame) if volume.is_cine else volume

    def restore(self, volume: Volume, frames: int | None = None) -> Volume:
        """From our order to the file's; of `frames` in the file when the volume has another number."""
        if volume.is_cine:
            here = volume.voxels.shape[3]
            volume = volume.roll(-round(self.first_frame * here / (frames or here)))
        for axis in self.flips:
            volume = volume.flip(axis)
        first, second, third = np.argsort(self.axes)
        return volume.permute((int(first), int(second), int(third)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        first, second, third = values["axes"]
        return cls(**{**values, "axes": (first, second, third), "flips": tuple(values["flips"])})


def order_of_cine(
    volume: Volume, labels: np.ndarray | None = None, end_diastole: int | None = None, slices: str | None = None
) -> StorageOrder:
    """How a short-axis cine as stored becomes one from base to apex that begins at end-diastole.

    Args:
        volume: as read from the file.
        labels: in the volume's own grid, with the muscle and both cavities labelled; `(H, W, D)` or `(H, W, D, T)`.
        end_diastole: the frame that the manifest calls so.
        slices: "base to apex" or "apex to base", where the manifest knows.
    """
    if end_diastole is not None and not 0 <= end_diastole < (volume.voxels.shape[3] if volume.is_cine else 1):
        raise CardioDiTError(
            f"End-diastole cannot be frame {end_diastole} (counted from 0) of a volume of shape {volume.voxels.shape}."
        )
    direction = np.array(volume.geometry.direction)
    to_apex, slices_from = _apex_direction(volume, labels, slices)
    if not volume.geometry.in_scanner:
        axes: tuple[int, int, int] = (0, 1, 2)
        flips: tuple[int, ...] = (2,) if to_apex < 0 else ()
    else:
        right, up = _in_plane(direction, to_apex if slices_from != ASSUMED else 0)
        flips = tuple(i for i, sign in enumerate((right[1], up[1], to_apex)) if sign < 0)
        axes = (right[0], up[0], 2)
    first, first_from = _first_frame(labels if volume.is_cine else None, end_diastole)
    return StorageOrder(axes, flips, first, slices_from, first_from)


def order_of_ct(volume: Volume) -> StorageOrder:
    """How a CT as stored becomes one whose axes go to the left, the front and the head."""
    if not volume.geometry.in_scanner:
        return StorageOrder()
    direction = np.array(volume.geometry.direction)
    targets = (TO_LEFT, TO_FRONT, TO_HEAD)
    along = np.array([[target @ direction[:, axis] for axis in range(3)] for target in targets])
    best = max(permutations(range(3)), key=lambda axes: sum(abs(along[i, axis]) for i, axis in enumerate(axes)))
    flips = tuple(i for i, axis in enumerate(best) if along[i, axis] < 0)
    return StorageOrder((best[0], best[1], best[2]), flips, slices_from=SCANNER)


def _apex_direction(volume: Volume, labels: np.ndarray | None, slices: str | None) -> tuple[int, str]:
    """1 when the stored slices go from base to apex, -1 when they go the other way, and what told."""
    if slices:
        if slices not in (BASE_TO_APEX, APEX_TO_BASE):
            raise CardioDiTError(f"slices={slices!r} must be {BASE_TO_APEX!r} or {APEX_TO_BASE!r}.")
        return (1 if slices == BASE_TO_APEX else -1), MANIFEST
    by_mask = 0 if labels is None else slices_towards_apex(labels)
    if by_mask:
        return by_mask, MASK
    normal = np.array(volume.geometry.direction)[:, 2]
    is_oblique = np.abs(normal).max() < np.cos(np.deg2rad(OBLIQUE))
    if volume.geometry.in_scanner and is_oblique and abs(normal @ TO_APEX) > 0.3:
        return (1 if normal @ TO_APEX > 0 else -1), SCANNER
    return 1, ASSUMED


def slices_towards_apex(labels: np.ndarray) -> int:
    """1 or -1 when labels show where the apex is, else 0: towards it the heart grows smaller."""
    frames = labels[..., None] if labels.ndim == 3 else labels
    areas = (frames > 0).sum(axis=(0, 1)).max(axis=-1)  # (D,), in the frame where each slice shows most
    held = np.flatnonzero(areas)
    if len(held) < 3:
        return 0
    third = max(1, len(held) // 3)
    first, last = areas[held[:third]].mean(), areas[held[-third:]].mean()
    if max(first, last) < 1.15 * min(first, last):
        return 0
    return 1 if first > last else -1


def _in_plane(direction: np.ndarray, to_apex: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The stored axis and its sign for the picture's right and for its upwards; no mirrored heart once the apex is
    known."""
    choices = []
    for (right, up), signs in product([(0, 1), (1, 0)], product((1, -1), repeat=2)):
        x, y = direction[:, right] * signs[0], direction[:, up] * signs[1]
        if to_apex and np.cross(x, y) @ direction[:, 2] * to_apex < 0:
            continue
        choices.append((x @ PICTURE_RIGHT + y @ PICTURE_UP, (right, signs[0]), (up, signs[1])))
    _, right_axis, up_axis = max(choices)
    return right_axis, up_axis


def _first_frame(labels: np.ndarray | None, end_diastole: int | None) -> tuple[int, str]:
    if end_diastole is not None:
        return end_diastole, MANIFEST
    if labels is None or labels.ndim != 4:
        return 0, ASSUMED
    sizes = (labels > 0).sum(axis=(0, 1, 2))
    is_whole = (sizes > 0).all()  # a cohort that labels two frames says which in its table
    return (largest_pool(labels), MASK) if is_whole else (0, ASSUMED)


def largest_pool(labels: np.ndarray, pools: Sequence[int] = (1, 3)) -> int:
    """The frame in which the cavities hold most; in every cohort's labels the muscle is 2 and they are 1 and 3.

    Frame 0 stays when it holds as much within the accuracy of an outline.
    """
    sizes = np.isin(labels, pools).sum(axis=(0, 1, 2))
    return 0 if sizes[0] >= SAME_POOL * sizes.max() else int(sizes.argmax())
