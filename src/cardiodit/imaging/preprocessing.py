"""What is done to a volume before a model sees it: one declared object that travels in the model's config."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cycle import repeat_beat, resample_beat
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
    take_inside,
)
from cardiodit.imaging.volume import Volume

if TYPE_CHECKING:
    import torch

FILL = -1.0  # what lies outside the field of view, in the model's units: black, or air
CYCLES = ("resample", "repeat")
FITS = ("crop", "resize")
LIMITS_OF = ("file", "view")


@dataclass(frozen=True)
class Preprocessing:
    """From a volume on disk to what a model is trained on; `None` leaves a thing as it is in the file.

    Args:
        spacing: mm along H, W, D to resample to.
        size: voxels along H, W, D to crop or pad to, around the centre.
        frames: frames of a beat; 1 for volumes that do not beat.
        cycle: "resample" one beat periodically to `frames`, or "repeat" and cut it, as CardioDiT was published.
        intensity: what becomes -1 and 1.
        fit: "crop" (or pad) to `size`, or "resize" the whole field of view to it.
        orient: turn volumes to our axis order before anything else (see `orientation`).
        limits_of: which voxels percentiles are of: the whole "file"'s, or those in the field of "view", the grid of
            `spacing` and `size` without what is padded.
        pool: last of all, means over cubes of so many voxels: `size / pool` voxels of `spacing * pool` mm are left. A
            larger spacing does something else: it weighs the voxels around a new one by a triangle twice as wide as
            this box, before intensities are cut.
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

    def __post_init__(self) -> None:
        for name in ("spacing", "size"):
            given = getattr(self, name) or (None, None, None)
            if len(given) != 3 or not all(value is None or value > 0 for value in given):
                raise CardioDiTError(f"{name}={given} of the preprocessing must be three positive numbers or None.")
            object.__setattr__(self, name, tuple(given))
        if self.frames is not None and self.frames < 1:
            raise CardioDiTError(f"frames={self.frames} of the preprocessing must be at least 1.")
        if self.pool < 1 or any(size % self.pool for size in self.size if size is not None):
            raise CardioDiTError(f"pool={self.pool} of the preprocessing must divide its size {self.size}.")
        for name, known in (("cycle", CYCLES), ("fit", FITS), ("limits_of", LIMITS_OF)):
            if getattr(self, name) not in known:
                raise CardioDiTError(f"{name}={getattr(self, name)!r} of the preprocessing must be one of {known}.")
        if self.fit == "resize" and self.spacing != (None, None, None):
            raise CardioDiTError("The preprocessing has a spacing and resizes; a resized volume has its own spacing.")

    def __call__(self, volume: Volume, order: StorageOrder | None = None) -> "Prepared":
        """Prepares a volume as read from a file; `order` as `order_of` finds it by default."""
        order = order or self.order_of(volume)
        stored = volume
        volume = order.apply(volume)
        plans = self._plans(volume)
        viewed = take_inside(volume.voxels, plans)
        limits = self.intensity.limits(viewed if self.limits_of == "view" else volume.voxels)
        scaled = fill_outside(to_model(self._beat(viewed), limits), plans, FILL)
        scaled, plans = average_cubes(scaled, self.pool), [plan.pooled(self.pool) for plan in plans]
        frame_time = volume.geometry.frame_time
        if frame_time is not None and self.frames is not None and self.cycle == "resample" and volume.is_cine:
            frame_time *= volume.voxels.shape[3] / self.frames
        geometry = volume.geometry.after(index_map(plans)).with_frame_time(frame_time)
        source = Source(stored.voxels.shape, stored.voxels.dtype.str, stored.geometry, order, limits)
        return Prepared(Volume(scaled, geometry), source, tuple(plans), self)

    def order_of(
        self,
        volume: Volume,
        labels: np.ndarray | None = None,
        end_diastole: int | None = None,
        slices: str | None = None,
    ) -> StorageOrder:
        """How the volume's axes become ours; see `order_of_cine`."""
        if not self.orient:
            return StorageOrder()
        return order_of_cine(volume, labels, end_diastole, slices) if volume.is_cine else order_of_ct(volume)

    def _plans(self, volume: Volume) -> list[AxisPlan]:
        known = volume.geometry.spacing
        if known is None and self.spacing != (None, None, None):
            raise CardioDiTError("The volume's voxel size is unknown, so it cannot be resampled to a spacing in mm.")
        axes = zip(volume.voxels.shape, known or (None,) * 3, self.spacing, self.size, strict=False)
        return [plan_axis(n, s, t, m, self.fit == "resize") for n, s, t, m in axes]

    def _beat(self, voxels: np.ndarray, labels: bool = False) -> np.ndarray:
        if self.frames is None or (self.frames == 1 and voxels.ndim == 3):
            return voxels
        if voxels.ndim == 3:
            raise CardioDiTError(f"The preprocessing makes beats of {self.frames} frames, but this volume is 3D.")
        return (
            repeat_beat(voxels, self.frames) if self.cycle == "repeat" else resample_beat(voxels, self.frames, labels)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON for a model's config."""
        return {
            "spacing": list(self.spacing),
            "size": list(self.size),
            "frames": self.frames,
            "cycle": self.cycle,
            "intensity": self.intensity.to_dict(),
            "fit": self.fit,
            "orient": self.orient,
            # Left out where they change nothing, so that what was written before them is still the same.
            **({} if self.limits_of == "file" else {"limits_of": self.limits_of}),
            **({} if self.pool == 1 else {"pool": self.pool}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(values) - known):
            raise CardioDiTError(
                f"The preprocessing has the unknown setting {unknown[0]!r}; it knows {', '.join(sorted(known))}. "
                "Was it saved by a newer version of cardiodit?"
            )
        values = dict(values)
        if isinstance(values.get("intensity"), dict):
            values["intensity"] = Intensity(**values["intensity"])
        return cls(**values)


@dataclass(frozen=True)
class Source:
    """What must be remembered of a file to undo its preprocessing."""

    shape: tuple[int, ...]
    dtype: str
    geometry: Geometry
    order: StorageOrder
    limits: Range


@dataclass(frozen=True)
class Prepared:
    """A volume as the model sees it, and the way back.

    Args:
        volume: `(H, W, D, T)` or `(H, W, D)` float32 in [-1, 1], in our axis order, with true geometry.
        source: the file it came from.
    """

    volume: Volume
    source: Source
    plans: tuple[AxisPlan, ...]
    preprocessing: Preprocessing

    def tensor(self) -> "torch.Tensor":
        """`(1, D, H, W, T)` for a cine, `(1, H, W, D)` for a CT."""
        return as_tensor(self.volume.voxels)

    def follow(self, labels: Volume) -> np.ndarray:
        """A label map of the same file on the same way: nearest voxel, nearest frame, 0 outside."""
        self._check_grid(labels)
        turned = self.source.order.apply(labels).voxels
        steps = self.preprocessing
        voxels = take_inside(turned, self.plans, labels=True)
        return fill_outside(voxels if voxels.ndim == 3 else steps._beat(voxels, labels=True), self.plans, 0)

    def _check_grid(self, labels: Volume) -> None:
        """Refuses a mask that is not of its image's voxels, and says in what they differ."""
        mask, image = labels.geometry, self.source.geometry
        has_its_shape = labels.voxels.shape[:3] == self.source.shape[:3]
        if has_its_shape and mask.is_close(image):
            return
        if has_its_shape and _mm(mask.spacing) == _mm(image.spacing):
            is_moved = replace(mask, origin=image.origin).is_close(image)
            raise CardioDiTError(
                f"The mask {'lies elsewhere' if is_moved else 'is turned otherwise'} than its image, though its "
                f"voxels are as many and as large: its first one is at {_mm(mask.origin)}, the image's at "
                f"{_mm(image.origin)}. Take the mask that was drawn on this image, or mend the header that is wrong."
            )
        raise CardioDiTError(
            f"The mask's grid {labels.voxels.shape} at {_mm(mask.spacing)} is not that of its image, "
            f"{self.source.shape} at {_mm(image.spacing)}. Take the mask that was drawn on this image."
        )

    def undo(self, voxels: np.ndarray | None = None) -> Volume:
        """Voxels in [-1, 1], by default these, as a volume in the file's grid, order, units and number type.

        What lay outside the model's field of view comes back as the source's lowest value.
        """
        voxels = self.volume.voxels if voxels is None else voxels
        if voxels.shape != self.volume.voxels.shape:
            raise CardioDiTError(f"Expected voxels of shape {self.volume.voxels.shape}, got {voxels.shape}.")
        frames = self.source.shape[3] if len(self.source.shape) == 4 else None
        if frames is not None and frames != voxels.shape[3]:
            is_repeat = self.preprocessing.cycle == "repeat"
            voxels = _unrepeat(voxels, frames) if is_repeat else resample_beat(voxels, frames)
        voxels = apply_plans(voxels, [plan.inverse() for plan in self.plans], FILL)
        order = self.source.order
        turned = order.apply(Volume(np.empty(self.source.shape, np.uint8), self.source.geometry))
        units = to_source(voxels, self.source.limits, np.dtype(self.source.dtype))
        return order.restore(replace(turned, voxels=units))


def _mm(triple: Triple | None) -> str:
    return "an unknown voxel size" if triple is None else f"({', '.join(f'{mm:.4g}' for mm in triple)}) mm"


def _unrepeat(voxels: np.ndarray, frames: int) -> np.ndarray:
    """The first whole cycle; a cycle that was cut short cannot be given back."""
    if frames > voxels.shape[3]:
        raise CardioDiTError(
            f"The source has {frames} frames and the model {voxels.shape[3]}: the rest of the beat was cut off and "
            "cannot be given back."
        )
    return voxels[..., :frames]


def as_tensor(voxels: np.ndarray) -> "torch.Tensor":
    """`(H, W, D, T)` → `(1, D, H, W, T)`; `(H, W, D)` → `(1, H, W, D)`. One channel, in the models' axis order."""
    import torch

    if voxels.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(_last_axis_fastest(voxels)))[None]
    height, width, depth, frames = voxels.shape
    ordered = np.empty((depth, height, width, frames), voxels.dtype)
    for d in range(depth):
        ordered[d] = _last_axis_fastest(voxels[:, :, d])
    return torch.from_numpy(ordered)[None]


def _last_axis_fastest(voxels: np.ndarray) -> np.ndarray:
    """`(H, W, N)` as stored, with H fastest, to N fastest, then W: the first of two steps that are quicker than one."""
    height, width, number = voxels.shape
    turned = np.ascontiguousarray(voxels.T.reshape(number, -1).T)  # (W·H, N)
    return turned.reshape(width, height, number).transpose(1, 0, 2)


# PRDiT: a cube in the middle of a chest, turned to one axis order, of which its paper says nothing. Its scaling begins
# at the lowest value left by the cut, which the air of any chest takes to -1000 HU. RAD-ChestCT is cut at ±1000 HU
# before its percentile is taken: its npz files come so, other files of it do not.
PRDIT_LIDC = Preprocessing((1.0,) * 3, (256,) * 3, intensity=Intensity(-1000, "p99.9"), limits_of="view")
PRDIT_RADCHEST = replace(PRDIT_LIDC, spacing=(0.8,) * 3, intensity=Intensity(-1000, "p99.5 at most 1000"))

# What the published systems do, by the names of their models.
PRESETS: dict[str, Preprocessing] = {
    # One beat on any scanner's frames, in true millimetres: what we recommend for a new cine model.
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
