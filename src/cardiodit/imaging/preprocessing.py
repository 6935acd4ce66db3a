"""The preprocessing of volumes: one object that is saved in the model's config, applied to files, and inverted."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cardiodit._util.typed_yaml import Reader, to_yaml
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.alignment import METHODS, Beat, BeatAlignment, FramePlan, plan_frames
from cardiodit.imaging.geometry import Geometry, Triple
from cardiodit.imaging.intensity import Intensity, Range, to_model, to_source
from cardiodit.imaging.orientation import StorageOrder, order_of_cine, order_of_ct
from cardiodit.imaging.resampling import (
    AxisPlan,
    apply_plans,
    average_cubes,
    fill_outside,
    index_map,
    plan_axis,
    repeat_beat,
    resample_beat,
    take_inside,
)
from cardiodit.imaging.volume import Volume

if TYPE_CHECKING:
    import torch

FILL = -1.0  # value outside the field of view, in the model's units: black, or air
MOST_NAMED = 5  # images in a note
CYCLES = ("resample", "repeat", *METHODS)
FITS = ("crop", "resize")
LIMITS_OF = ("file", "view")


@dataclass(frozen=True)
class Preprocessing:
    """Settings that turn a volume on disk into what a model is trained on; None keeps a property of the file.

    Args:
        spacing: voxel size in mm along H, W, D to resample to; None (null in YAML) keeps the file's.
        size: number of voxels along H, W, D to crop or pad to, around the centre; None (null in YAML) keeps the file's.
        frames: number of frames per heartbeat; 1 for 3D volumes.
        cycle: how a beat gets this number of frames: "resample" interpolates it periodically, "repeat" repeats it and
            cuts it off, as CardioDiT was published; "linear" and "fourier" interpolate evenly, "piecewise" between
            keyframes of the manifest, and "dtw" warps it to a template.
        intensity: intensities that become -1 and 1.
        fit: how volumes get their `size`: "crop" (or pad), or "resize" the whole field of view.
        orient: first reorder and flip the axes so that all volumes have the same orientation; slices of cines then run
            from base to apex, and frames from end-diastole if it is known.
        limits_of: voxels from which percentiles, minimum and maximum are computed: those of the whole "file", or those
            in the field of "view", which is given by `spacing` and `size`, without padding.
        pool: average cubes of this edge length at the end, so that `size / pool` voxels of `spacing * pool` mm remain.
            A larger `spacing` instead would interpolate over a wider neighbourhood, before intensities are clipped.
        frame_multiple: without `frames`, each beat keeps its own and is repeated to a multiple of this number, as a VQ
            model that divides them needs; the inverse cuts what was repeated.
        alignment: for "piecewise" and "dtw", where keyframes lie and how beats are warped, see `BeatAlignment`.
    """

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    frames: int | None = None
    cycle: str = "resample"
    intensity: Intensity = field(default_factory=Intensity)
    fit: str = "crop"
    orient: bool = True
    limits_of: str = "file"
    pool: int = 1
    frame_multiple: int = 1
    alignment: BeatAlignment | None = None

    def __post_init__(self) -> None:
        for name in ("spacing", "size"):
            values = getattr(self, name) or (None, None, None)
            if len(values) != 3 or not all(value is None or value > 0 for value in values):
                raise CardioDiTError(f"{name}={values} of the preprocessing must be three positive numbers or None.")
            object.__setattr__(self, name, tuple(values))
        if self.frames is not None and self.frames < 1:
            raise CardioDiTError(f"frames={self.frames} of the preprocessing must be at least 1.")
        if self.pool < 1 or any(size % self.pool for size in self.size if size is not None):
            raise CardioDiTError(f"pool={self.pool} of the preprocessing must divide its size {self.size}.")
        for name, allowed in (("cycle", CYCLES), ("fit", FITS), ("limits_of", LIMITS_OF)):
            if getattr(self, name) not in allowed:
                raise CardioDiTError(f"{name}={getattr(self, name)!r} of the preprocessing must be one of {allowed}.")
        if self.frame_multiple < 1 or (self.frame_multiple > 1 and self.frames is not None):
            raise CardioDiTError(
                f"frame_multiple={self.frame_multiple} of the preprocessing must be at least 1, and is for beats that "
                f"keep their own frames; frames={self.frames}."
            )
        if self.cycle in METHODS and self.frames is None:
            raise CardioDiTError(f"cycle={self.cycle!r} of the preprocessing needs the number of frames.")
        if self.alignment is not None and self.cycle not in ("piecewise", "dtw"):
            raise CardioDiTError(
                f"The alignment of the preprocessing is for piecewise and dtw, and cycle={self.cycle!r}."
            )
        if self.fit == "resize" and self.spacing != (None, None, None):
            raise CardioDiTError(
                'The preprocessing has both a spacing and fit="resize", which determines the spacing itself. '
                'Remove the spacing, or use fit="crop".'
            )

    def __call__(self, volume: Volume, order: StorageOrder | None = None, beat: Beat | None = None) -> "Prepared":
        """Preprocess a volume as read from a file.

        Args:
            volume: the volume.
            order: how its axes map to ours; default: that of `order_of`.
            beat: keyframes and curve of the file's frames, by which beats are aligned.
        """
        order = order or self.order_of(volume)
        stored, volume = volume, order.apply(volume)
        plans = self._plans(volume)
        viewed = take_inside(volume.voxels, plans)
        limits = self.intensity.limits(viewed if self.limits_of == "view" else volume.voxels)
        timing = self._frame_plan(volume, (beat or Beat()).rolled(order.first_frame))
        scaled = fill_outside(to_model(self.change_frames(viewed, timing=timing), limits), plans, FILL)
        scaled, plans = average_cubes(scaled, self.pool), [plan.pooled(self.pool) for plan in plans]
        source = Source(stored.voxels.shape, stored.voxels.dtype.str, stored.geometry, order, limits)
        return Prepared(Volume(scaled, self._geometry(volume, plans)), source, tuple(plans), self, timing)

    def geometry_of(self, volume: Volume, order: StorageOrder) -> Geometry:
        """Return the geometry that the preprocessed volume will have, without computing its voxels."""
        volume = order.apply(volume)
        return self._geometry(volume, [plan.pooled(self.pool) for plan in self._plans(volume)])

    def slices_of(self, volume: Volume, order: StorageOrder) -> tuple[int, int]:
        """Return how many slices the preprocessed volume takes from the file, and how many it will have."""
        return self._plans(order.apply(volume))[2].slices

    def _geometry(self, volume: Volume, plans: Sequence[AxisPlan]) -> Geometry:
        frame_time = volume.geometry.frame_time
        if frame_time is not None and self.frames is not None and self.cycle != "repeat" and volume.is_cine:
            frame_time *= volume.voxels.shape[3] / self.frames  # of an aligned beat, the mean over its frames
        return volume.geometry.reindexed(index_map(plans)).with_frame_time(frame_time)

    def order_of(
        self,
        volume: Volume,
        labels: np.ndarray | None = None,
        end_diastole: int | None = None,
        slices: str | None = None,
        turn: int | None = None,
    ) -> StorageOrder:
        """Determine how the volume's axes map to ours; see `order_of_cine`."""
        if not self.orient:
            return StorageOrder()
        return order_of_cine(volume, labels, end_diastole, slices, turn) if volume.is_cine else order_of_ct(volume)

    def _frame_plan(self, volume: Volume, beat: Beat) -> FramePlan | None:
        """Plan the frames of an aligned beat; None for the other cycles and for volumes."""
        if self.cycle not in METHODS or self.frames is None or not volume.is_cine:
            return None
        alignment = self.alignment or BeatAlignment()
        return plan_frames(self.cycle, volume.voxels.shape[3], self.frames, alignment, beat.keyframes, beat.curve)

    def change_frames(self, voxels: np.ndarray, labels: bool = False, timing: FramePlan | None = None) -> np.ndarray:
        """Convert `(H, W, D, N)` to `(H, W, D, frames)`; a 3D volume passes unchanged if one frame or none is set."""
        if self.frames is None and voxels.ndim == 4:
            return repeat_beat(voxels, -(-voxels.shape[3] // self.frame_multiple) * self.frame_multiple)
        if self.frames is None or (self.frames == 1 and voxels.ndim == 3):
            return voxels
        if voxels.ndim == 3:
            raise CardioDiTError(
                f"The preprocessing makes beats of {self.frames} frames, but this volume is 3D: {voxels.shape}."
            )
        if self.cycle == "repeat":
            return repeat_beat(voxels, self.frames)
        if timing is not None:
            return timing.apply(voxels, labels)
        return resample_beat(voxels, self.frames, labels)

    def _plans(self, volume: Volume) -> list[AxisPlan]:
        known = volume.geometry.spacing
        if known is None and self.spacing != (None, None, None):
            raise CardioDiTError(
                f"The volume's voxel size is unknown, so it cannot be resampled to a spacing of {self.spacing} mm."
            )
        axes = zip(volume.voxels.shape, known or (None,) * 3, self.spacing, self.size, strict=False)
        return [plan_axis(n, s, t, m, self.fit == "resize") for n, s, t, m in axes]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values for a model's config."""
        return {
            "spacing": list(self.spacing),
            "size": list(self.size),
            "frames": self.frames,
            "cycle": self.cycle,
            "intensity": self.intensity.to_dict(),
            "fit": self.fit,
            "orient": self.orient,
            # Omitted at their defaults, so that configs and hashes from before these settings existed stay the same.
            **({} if self.limits_of == "file" else {"limits_of": self.limits_of}),
            **({} if self.pool == 1 else {"pool": self.pool}),
            **({} if self.frame_multiple == 1 else {"frame_multiple": self.frame_multiple}),
            **({} if self.alignment is None else {"alignment": to_yaml(asdict(self.alignment))}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Create a preprocessing from what `to_dict` returned."""
        if not isinstance(values, Mapping):
            raise CardioDiTError(f"The preprocessing must be a section of settings, found {str(values)[:80]!r}.")
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(values) - known):
            raise CardioDiTError(
                f"The preprocessing has the unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}. "
                "Was it saved by a newer version of cardiodit?"
            )
        given = {k: v.to_dict() if isinstance(v, Intensity) else to_yaml(v) for k, v in values.items()}
        known_axes = {key: value for key, value in given.items() if value is not None or key not in ("spacing", "size")}
        return Reader("The preprocessing").section(cls, known_axes, "")


def note_on_padding(slices: Mapping[Path, tuple[int, int]]) -> str:
    """Return a note on images with fewer slices than they are padded to; empty if there are none.

    Args:
        slices: for each image its slices, and those after preprocessing (`Preprocessing.slices_of`).
    """
    padded = [(path.name, counts) for path, counts in slices.items() if counts[0] < counts[1]]
    if not padded:
        return ""
    fewest = sorted(padded, key=lambda item: item[1][0])[:MOST_NAMED]
    named = ", ".join(f"{name} (has {own} of {needed})" for name, (own, needed) in fewest)
    more = "" if len(padded) <= MOST_NAMED else f" and {len(padded) - MOST_NAMED} more"
    return f"{len(padded)} of {len(slices)} images have too few slices and are padded with empty ones: {named}{more}."


def without_typical(steps: Preprocessing) -> Preprocessing:
    """Return the settings that determine a volume's values; what is typical of a cohort is measured afterwards."""
    return replace(steps, intensity=replace(steps.intensity, typical=None))


@dataclass(frozen=True)
class Source:
    """Properties of a file that are needed to invert its preprocessing."""

    shape: tuple[int, ...]
    dtype: str
    geometry: Geometry
    order: StorageOrder
    limits: Range


@dataclass(frozen=True)
class Prepared:
    """A preprocessed volume, and how to get back to its file.

    Args:
        volume: `(H, W, D, T)` or `(H, W, D)` float32 in [-1, 1], in our axis order, with its true geometry.
        source: properties of the file.
        plans: how the grid of each spatial axis was made.
        preprocessing: the settings that were applied.
        timing: how the frames of an aligned beat were made.
    """

    volume: Volume
    source: Source
    plans: tuple[AxisPlan, ...]
    preprocessing: Preprocessing
    timing: FramePlan | None = None

    def tensor(self) -> "torch.Tensor":
        """Return `(1, D, H, W, T)` for a cine, `(1, H, W, D)` for a CT."""
        return as_tensor(self.volume.voxels)

    def apply_to_mask(self, labels: Volume) -> np.ndarray:
        """Preprocess a mask of the same file identically: nearest voxel, nearest frame, 0 outside."""
        self._check_grid(labels)
        voxels = take_inside(self.source.order.apply(labels).voxels, self.plans, labels=True)
        if voxels.ndim == 4:
            voxels = self.preprocessing.change_frames(voxels, labels=True, timing=self.timing)
        return fill_outside(voxels, self.plans, 0)

    def _check_grid(self, labels: Volume) -> None:
        mask, image = labels.geometry, self.source.geometry
        same_shape = labels.voxels.shape[:3] == self.source.shape[:3]
        if same_shape and mask.is_close(image):
            return
        if same_shape and _mm(mask.spacing) == _mm(image.spacing):
            is_moved = replace(mask, origin=image.origin).is_close(image)
            raise CardioDiTError(
                f"The mask {'lies elsewhere' if is_moved else 'has another orientation'} than its image, although "
                f"number and size of their voxels agree: its first voxel is at {_mm(mask.origin)}, the image's at "
                f"{_mm(image.origin)}. Use the mask that was drawn on this image, or fix the header that is wrong."
            )
        raise CardioDiTError(
            f"The mask's grid {labels.voxels.shape} at {_mm(mask.spacing)} is not that of its image, "
            f"{self.source.shape} at {_mm(image.spacing)}. Use the mask that was drawn on this image."
        )

    def inverse(self, voxels: np.ndarray | None = None) -> Volume:
        """Return voxels in the file's grid, axis order, units and number type.

        Voxels outside the model's field of view get the source's lowest value.

        Args:
            voxels: in [-1, 1], shaped like `volume`; by default those of `volume`.
        """
        voxels = self.volume.voxels if voxels is None else voxels
        if voxels.shape != self.volume.voxels.shape:
            raise CardioDiTError(f"Expected voxels of shape {self.volume.voxels.shape}, got {voxels.shape}.")
        if len(self.source.shape) == 4:
            voxels = self._restore_frames(voxels, self.source.shape[3])
        voxels = apply_plans(voxels, [plan.inverse() for plan in self.plans], FILL)
        order = self.source.order
        turned = order.apply(Volume(np.empty(self.source.shape, np.uint8), self.source.geometry))
        units = to_source(voxels, self.source.limits, np.dtype(self.source.dtype))
        return order.restore(replace(turned, voxels=units))

    def _restore_frames(self, voxels: np.ndarray, frames: int) -> np.ndarray:
        """Return the `frames` of the file; a cycle that was cut short cannot be restored."""
        if self.timing is not None:
            return self.timing.inverse(voxels)
        if self.preprocessing.cycle != "repeat" and self.preprocessing.frames is not None:
            return resample_beat(voxels, frames) if frames != voxels.shape[3] else voxels
        if frames > voxels.shape[3]:
            raise CardioDiTError(
                f"The source has {frames} frames and the model {voxels.shape[3]}: the rest of the beat was cut off and "
                "cannot be restored."
            )
        return voxels[..., :frames]

    def undo(self, voxels: np.ndarray | None = None) -> Volume:
        """Deprecated: use `inverse`."""
        warnings.warn("Prepared.undo is deprecated; use Prepared.inverse.", DeprecationWarning, stacklevel=2)
        return self.inverse(voxels)

    def follow(self, labels: Volume) -> np.ndarray:
        """Deprecated: use `apply_to_mask`."""
        warnings.warn("Prepared.follow is deprecated; use Prepared.apply_to_mask.", DeprecationWarning, stacklevel=2)
        return self.apply_to_mask(labels)


def _mm(triple: Triple | None) -> str:
    return "an unknown voxel size" if triple is None else f"({', '.join(f'{mm:.4g}' for mm in triple)}) mm"


def as_tensor(voxels: np.ndarray) -> "torch.Tensor":
    """Convert `(H, W, D, T)` to `(1, D, H, W, T)`, or `(H, W, D)` to `(1, H, W, D)`: one channel, the models' axes."""
    import torch

    if voxels.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(_last_axis_fastest(voxels)))[None]
    height, width, depth, frames = voxels.shape
    ordered = np.empty((depth, height, width, frames), voxels.dtype)
    for d in range(depth):
        ordered[d] = _last_axis_fastest(voxels[:, :, d])
    return torch.from_numpy(ordered)[None]


def _last_axis_fastest(voxels: np.ndarray) -> np.ndarray:
    """Reorder the memory of `(H, W, N)` from H fastest to N fastest, then W: two steps are faster than one."""
    height, width, number = voxels.shape
    turned = np.ascontiguousarray(voxels.T.reshape(number, -1).T)  # (W·H, N)
    return turned.reshape(width, height, number).transpose(1, 0, 2)


# PRDiT: a cube in the middle of the chest. Its paper states no axis order, so we use ours. Its scaling starts at
# the lowest value after clipping, which is -1000 HU for any chest that contains air. RAD-ChestCT is clipped to ±1000 HU
# before its percentile is computed: its npz files are already clipped, other releases of it are not.
PRDIT_LIDC = Preprocessing((1.0,) * 3, (256,) * 3, intensity=Intensity(-1000, "p99.9"), limits_of="view")
PRDIT_RADCHEST = replace(PRDIT_LIDC, spacing=(0.8,) * 3, intensity=Intensity(-1000, "p99.5 at most 1000"))

# The settings of the published systems, by the names of their models.
PRESETS: dict[str, Preprocessing] = {
    # Recommended for a new cine model: one beat from any scanner's frames, in true millimetres.
    "cine": Preprocessing((1.4, 1.4, None), (128, 128, 10), 32, intensity=Intensity("p0.5", "p99.5")),
    "cardiodit": Preprocessing(size=(256, 256, None), frames=32, cycle="repeat", orient=False),
    "cardiodit-volume": Preprocessing(size=(256, 256, 6), frames=32, cycle="repeat", orient=False),
    "voldit": Preprocessing(size=(512, 512, 256), intensity=Intensity(-1000, 1000), fit="resize", orient=False),
    "voldit-tgca": Preprocessing(size=(512, 512, 256), intensity=Intensity(-1000, 1000), orient=False),
    "prdit-lidc": PRDIT_LIDC,
    "prdit-lidc-128": replace(PRDIT_LIDC, pool=2),
    "prdit-lidc-64": replace(PRDIT_LIDC, pool=4),
    "prdit-radchest": PRDIT_RADCHEST,
    "prdit-radchest-128": replace(PRDIT_RADCHEST, pool=2),
    "prdit-radchest-64": replace(PRDIT_RADCHEST, pool=4),
}
