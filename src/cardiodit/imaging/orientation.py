"""One axis order for every volume: read in any order, written back in the source's own.

The slices of a cine run from base to apex; in its picture the patient's left is on the right and the front or the head
is up, as a radiologist sees it. Where headers do not tell, or tell it wrongly, so that the right ventricle of a mask
would lie on the right, the picture is turned until it lies on the left. The axes of a CT point to the left, to the
front and to the head.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations, product
from typing import Any, Self

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import Volume

TO_LEFT, TO_FRONT, TO_HEAD = np.array([-1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
CT_DIRECTION = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # `Geometry.direction` of a CT in our order
# The apex of a heart points to the left, to the front and down; its short axis is viewed from the apex.
TO_APEX = np.array([-0.6, 0.55, -0.55])
PICTURE_RIGHT, PICTURE_UP = np.array([-1.0, -0.6, 0.0]), np.array([0.0, 0.5, 1.0])
OBLIQUE = 10.0  # degrees; a plane closer to an axis of the patient than this is not a short axis of a heart
LEAST_ALIGNED = 0.3  # cosine between slice normal and TO_APEX above which the geometry determines the apex
LEAST_TAPER = 1.15  # ratio of the areas at both ends above which a mask determines the apex
SAME_POOL = 0.98  # relative blood volume above which frame 0 counts as end-diastole

# What determined an order.
SCANNER, MASK, MANIFEST, ASSUMED = "scanner", "mask", "manifest", "as stored"
BASE_TO_APEX, APEX_TO_BASE = "base to apex", "apex to base"
TURNS = (0, 90, 180, 270)  # degrees counter-clockwise
OPPOSITE = 90.0  # degrees from the left of the picture, beyond which the right ventricle lies on its right


@dataclass(frozen=True)
class StorageOrder:
    """The mapping from the axes of a file to ours, so that they can be restored.

    Args:
        axes: our axis i is the file's axis `axes[i]`.
        flips: our axes that run against the file's.
        first_frame: the file's frame that is our frame 0.
        slices_from: what determined the base: "manifest", "mask", "scanner", or "as stored" if nothing did.
        first_frame_from: what determined end-diastole: "manifest", "mask", or "as stored".
        turn: degrees counter-clockwise by which the picture was turned, on top of what the header says; already
            contained in `axes` and `flips`.
        plane_from: what determined the picture: "manifest", "mask", "scanner", or "as stored" if nothing did.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()
    first_frame: int = 0
    slices_from: str = ASSUMED
    first_frame_from: str = ASSUMED
    turn: int = 0
    plane_from: str = ASSUMED

    def apply(self, volume: Volume) -> Volume:
        """Convert a volume from the file's order to ours."""
        volume = volume.permute(self.axes)
        for axis in self.flips:
            volume = volume.flip(axis)
        return volume.roll(self.first_frame) if volume.is_cine else volume

    def restore(self, volume: Volume) -> Volume:
        """Convert a volume from our order to the file's."""
        if volume.is_cine:
            volume = volume.roll(-self.first_frame)
        for axis in self.flips:
            volume = volume.flip(axis)
        return volume.permute(np.argsort(self.axes).tolist())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        first, second, third = values["axes"]
        return cls(**{**values, "axes": (first, second, third), "flips": tuple(values["flips"])})


def order_of_cine(
    volume: Volume,
    labels: np.ndarray | None = None,
    end_diastole: int | None = None,
    slices: str | None = None,
    turn: int | None = None,
    ventricles: tuple[int, int] | None = None,
) -> StorageOrder:
    """Determine how a stored short-axis cine becomes one that runs from base to apex and begins at end-diastole.

    Args:
        volume: cine as read from the file.
        labels: masks in the volume's own grid, with myocardium and both cavities; `(H, W, D)` or `(H, W, D, T)`.
        end_diastole: end-diastolic frame, if the manifest gives it.
        slices: "base to apex" or "apex to base", if the manifest gives it.
        turn: degrees counter-clockwise by which the picture is turned after it is oriented by its header, if the
            manifest gives it.
        ventricles: labels of the right and the left ventricle, by which `labels` determine the turn.
    """
    if end_diastole is not None and not 0 <= end_diastole < (volume.voxels.shape[3] if volume.is_cine else 1):
        raise CardioDiTError(
            f"End-diastole cannot be frame {end_diastole} (counted from 0) of a volume of shape {volume.voxels.shape}."
        )
    if turn is not None and turn not in TURNS:
        raise CardioDiTError(f"turn={turn} must be one of {', '.join(map(str, TURNS))} degrees.")
    to_apex, slices_from = _apex_direction(volume, labels, slices)
    right, up, plane_from = (0, 1), (1, 1), ASSUMED
    if volume.geometry.in_scanner:
        right, up = _in_plane(np.array(volume.geometry.direction), to_apex if slices_from != ASSUMED else 0)
        plane_from = SCANNER
    if turn is None and labels is not None and ventricles is not None:
        turn = _turn_of_ventricles(labels, ventricles, right, up, volume.geometry.spacing)
        plane_from = MASK if turn else plane_from
    elif turn:
        plane_from = MANIFEST
    for _ in range((turn or 0) // 90):
        right, up = (up[0], -up[1]), right  # what was on the right is now up
    axes = (right[0], up[0], 2)
    flips = tuple(i for i, sign in enumerate((right[1], up[1], to_apex)) if sign < 0)
    first_frame, first_frame_from = _first_frame(labels if volume.is_cine else None, end_diastole)
    return StorageOrder(axes, flips, first_frame, slices_from, first_frame_from, turn or 0, plane_from)


def order_of_ct(volume: Volume) -> StorageOrder:
    """Determine how a stored CT becomes one whose axes point to the left, the front and the head."""
    if not volume.geometry.in_scanner:
        return StorageOrder()
    # (target, axis): cosines between the directions wanted and those of the file's axes
    cosines = np.stack([TO_LEFT, TO_FRONT, TO_HEAD]) @ np.array(volume.geometry.direction)
    axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[i, axis]) for i, axis in enumerate(order)))
    flips = tuple(i for i, axis in enumerate(axes) if cosines[i, axis] < 0)
    return StorageOrder((axes[0], axes[1], axes[2]), flips, slices_from=SCANNER)


def slices_towards_apex(labels: np.ndarray) -> int:
    """Return 1 if the slices of a mask run from base to apex, -1 if the other way, 0 if it cannot tell.

    The heart grows smaller towards the apex.
    """
    frames = labels[..., None] if labels.ndim == 3 else labels
    areas = (frames > 0).sum(axis=(0, 1)).max(axis=-1)  # (D,), in the frame in which each slice shows most
    labelled = np.flatnonzero(areas)
    if len(labelled) < 3:
        return 0
    third = max(1, len(labelled) // 3)
    first, last = areas[labelled[:third]].mean(), areas[labelled[-third:]].mean()
    if max(first, last) < LEAST_TAPER * min(first, last):
        return 0
    return 1 if first > last else -1


def largest_pool(labels: np.ndarray, pools: Sequence[int] = (1, 3)) -> int:
    """Return the frame in which the cavities hold most blood.

    Frame 0 is preferred if it holds as much within the accuracy of an outline.

    Args:
        labels: masks `(H, W, D, T)`.
        pools: labels of the cavities: in every cohort the myocardium is 2 and the cavities are 1 and 3.
    """
    sizes = np.isin(labels, pools).sum(axis=(0, 1, 2))
    return 0 if sizes[0] >= SAME_POOL * sizes.max() else int(sizes.argmax())


def _apex_direction(volume: Volume, labels: np.ndarray | None, slices: str | None) -> tuple[int, str]:
    """Return 1 if the stored slices run from base to apex, -1 if the other way, and what determined it."""
    if slices:
        if slices not in (BASE_TO_APEX, APEX_TO_BASE):
            raise CardioDiTError(f"slices={slices!r} must be {BASE_TO_APEX!r} or {APEX_TO_BASE!r}.")
        return (1 if slices == BASE_TO_APEX else -1), MANIFEST
    by_mask = 0 if labels is None else slices_towards_apex(labels)
    if by_mask:
        return by_mask, MASK
    normal = np.array(volume.geometry.direction)[:, 2]
    is_oblique = np.abs(normal).max() < np.cos(np.deg2rad(OBLIQUE))
    if volume.geometry.in_scanner and is_oblique and abs(normal @ TO_APEX) > LEAST_ALIGNED:
        return (1 if normal @ TO_APEX > 0 else -1), SCANNER
    return 1, ASSUMED


def _in_plane(direction: np.ndarray, to_apex: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the stored axis and its sign for the picture's right, and for its up.

    Once the apex is known (`to_apex` is not 0), the heart is never mirrored.
    """
    choices = []
    for (right, up), signs in product([(0, 1), (1, 0)], product((1, -1), repeat=2)):
        x, y = direction[:, right] * signs[0], direction[:, up] * signs[1]
        if to_apex and np.cross(x, y) @ direction[:, 2] * to_apex < 0:
            continue
        choices.append((x @ PICTURE_RIGHT + y @ PICTURE_UP, (right, signs[0]), (up, signs[1])))
    _, right_axis, up_axis = max(choices)
    return right_axis, up_axis


def _turn_of_ventricles(
    labels: np.ndarray,
    ventricles: tuple[int, int],
    right: tuple[int, int],
    up: tuple[int, int],
    spacing: tuple[float, float, float] | None,
) -> int:
    """Return the turn that brings the right ventricle to the left of the picture; 0 if it is not on its right.

    Args:
        right, up: stored axis and its sign for the picture's right, and for its up.
    """
    still = labels if labels.ndim == 3 else labels[..., int((labels > 0).sum(axis=(0, 1, 2)).argmax())]
    centres = [np.argwhere(still == label)[:, :2] for label in ventricles]
    if not all(map(len, centres)):
        return 0
    away = (centres[0].mean(axis=0) - centres[1].mean(axis=0)) * (1.0 if spacing is None else np.array(spacing[:2]))
    x, y = away[right[0]] * right[1], away[up[0]] * up[1]
    from_left = np.degrees(np.arctan2(y, -x))  # 0 on the left, 90 at the top
    if abs(from_left) <= OPPOSITE:
        return 0
    # Counter-clockwise, what is at the top comes to the left.
    return int(round(from_left / 90) * 90) % 360


def _first_frame(labels: np.ndarray | None, end_diastole: int | None) -> tuple[int, str]:
    if end_diastole is not None:
        return end_diastole, MANIFEST
    if labels is None or labels.ndim != 4:
        return 0, ASSUMED
    # A cohort that labels only two frames names them in its table.
    every_frame_labelled = ((labels > 0).sum(axis=(0, 1, 2)) > 0).all()
    return (largest_pool(labels), MASK) if every_frame_labelled else (0, ASSUMED)
