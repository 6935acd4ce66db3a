"""A synthetic chest as a CT shows it: Hounsfield units of every tissue, partial volume, blur and noise; a label map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.phantom.chest import (
    FIRST_VERTEBRA,
    VERTEBRA,
    Chest,
    Points,
    Tubes,
    outside_ellipsoid,
    outside_oval,
    smooth_min,
)

LABELS = {
    "body": 1,
    "lungs": 2,
    "airways": 3,
    "vessels": 4,
    "heart": 5,
    "nodules": 6,
    "spine": 7,
    "bones": 8,  # the others: ribs, breast bone, collar bones, shoulder blades, arms
    "liver": 9,
}
AIR, TABLE, SKIN, FAT, MUSCLE, STOMACH = -1000.0, -600.0, 10.0, -105.0, 52.0, 30.0  # Hounsfield units
CORTEX, MARROW, DISC, CANAL = 560.0, 190.0, 85.0, 22.0
BREAST_BONE = (96, -48)  # z of its ends

LOWEST, HIGHEST = -1024, 3071  # range of 12 bits
MIDDLE = -8.0  # z of the middle of the image
VIEW = (384.0, 290.0, 290.0)  # mm that show the whole chest
SMALLEST = 16  # voxels along an axis
FINE = 2.75  # mm between the points on which volumes are counted
TEXTURE_PITCH, TEXTURE_SIZE = 4.0, (420.0, 320.0, 320.0)  # mm between the points of a texture, and where it repeats

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class ChestPhantom:
    """A rendered chest; axes point to the patient's left, front and head.

    Args:
        image: `(H, W, D)` int16, Hounsfield units.
        labels: `(H, W, D)` uint8, as in `LABELS`; 0 outside the body.
        geometry: voxel size and position in the scanner.
        nodules: "centre_mm" in the scanner's space, "centre_voxel" and "radius_mm" of each in the image.
        volumes_ml: volume of each label in the image; exact for nodules, otherwise counted on a separate fine grid.
    """

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    nodules: list[dict[str, Any]]
    volumes_ml: dict[str, float]


def default_spacing(size: Size) -> Spacing:
    """Return square pixels that show the whole chest."""
    plane = max(VIEW[0] / size[0], VIEW[1] / size[1])
    return plane, plane, VIEW[2] / size[2]


def render_chest(chest: Chest, size: Size, random: np.random.Generator, spacing: Spacing | None = None) -> ChestPhantom:
    """Render a chest at `size` (H, W, D); `random` draws only the noise."""
    if len(size) != 3 or min(size) < SMALLEST:
        raise CardioDiTError(f"size={tuple(size)} must be three numbers (H, W, D) of at least {SMALLEST} voxels.")
    if spacing is not None and (len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing)):
        raise CardioDiTError(f"spacing={tuple(spacing)} must be three positive numbers in mm (H, W, D).")
    spacing = spacing or default_spacing(size)
    scene = _Scene(size, spacing)
    paint_chest(chest, scene)
    extent = np.multiply(size, spacing)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])  # NIfTI's x points to the right
    affine[:3, 3] = (extent - spacing) / 2 * [1, -1, -1] + [0, 0, MIDDLE]
    nodules = []
    for nodule in chest.nodules:
        place = np.array(nodule.centre) * [-1, 1, 1]
        voxel = (np.linalg.inv(affine) @ [*place, 1])[:3]
        if (voxel > -0.5).all() and (voxel < np.array(size) - 0.5).all():
            nodules.append({"centre_mm": place.tolist(), "centre_voxel": voxel.tolist(), "radius_mm": nodule.radius})
    volumes = _count_volumes(chest, extent)
    volumes["nodules"] = float(sum(4 / 3 * np.pi * nodule["radius_mm"] ** 3 for nodule in nodules) / 1000)
    image = _acquire(scene.image, spacing, random)
    return ChestPhantom(image, scene.labels, Geometry.of_affine(affine), nodules, volumes)


def _count_volumes(chest: Chest, extent: np.ndarray) -> dict[str, float]:
    """Count mL of each label in the image on a grid that does not depend on the image's."""
    number = np.maximum(1, np.rint(extent / FINE)).astype(int)
    step = extent / number
    scene = _Scene((number[0], number[1], number[2]), (step[0], step[1], step[2]), has_image=False)
    paint_chest(chest, scene)
    counts = np.bincount(scene.labels.ravel(), minlength=max(LABELS.values()) + 1)
    return {name: float(counts[label] * np.prod(step) / 1000) for name, label in LABELS.items()}


class _Scene:
    """An image and its labels, or the labels alone, painted over from the outside to the inside."""

    def __init__(self, size: Size, spacing: Spacing, has_image: bool = True) -> None:
        self.size, self.spacing = size, spacing
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * s + (MIDDLE if axis == 2 else 0)).astype(np.float32)
            for axis, (n, s) in enumerate(zip(size, spacing, strict=True))
        ]
        self.edge = float(np.mean(spacing))
        self.has_image = has_image
        self.image = np.full(size if has_image else (0, 0, 0), AIR, np.float32)
        self.labels = np.zeros(size, np.uint8)

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Box:
        """Return the voxels between two corners, with a margin for soft edges."""
        return self.boxes(np.array([low]), np.array([high]))[0]

    def boxes(self, low: np.ndarray, high: np.ndarray) -> list[Box]:
        """Return the voxels between each two corners (N, 3)."""
        ends = (
            zip(np.searchsorted(axis, a - self.edge).tolist(), np.searchsorted(axis, b + self.edge).tolist())
            for axis, a, b in zip(self.axes, low.T, high.T, strict=True)
        )
        return [(slice(*first), slice(*second), slice(*third)) for first, second, third in zip(*ends)]

    def points(self, box: Box = WHOLE) -> Points:
        x, y, z = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def paint(
        self, outside: np.ndarray, hounsfield: float | np.ndarray, label: str | None = None, box: Box = WHOLE
    ) -> None:
        """Fill where `outside` is negative, with an edge as soft as a voxel is large."""
        if self.has_image:
            share = np.clip(0.5 - outside * np.float32(1 / self.edge), 0, 1)
            self.image[box] += share * (hounsfield - self.image[box])
        if label:
            self.labels[box][outside < 0] = LABELS[label]

    def paint_tubes(self, tubes: Tubes, hounsfield: float, label: str | None = None) -> None:
        """Fill tubes, each in its own box; a thin tube fills a part of its voxels."""
        if not (self.has_image or label):
            return
        share, inside = np.zeros(self.size, np.float32), np.zeros(self.size, bool)
        reach = np.maximum(np.maximum(tubes.start_radii, tubes.end_radii), self.edge / 2)[:, None]
        low, high = np.minimum(tubes.starts, tubes.ends) - reach, np.maximum(tubes.starts, tubes.ends) + reach
        for i, box in enumerate(self.boxes(low, high)):
            if any(part.start >= part.stop for part in box):
                continue
            axis, start_radius = tubes.ends[i] - tubes.starts[i], float(tubes.start_radii[i])
            a, b, c = axis.tolist()
            x, y, z = (p - s for p, s in zip(self.points(box), tubes.starts[i].tolist(), strict=True))
            along = np.clip((x * a + y * b + z * c) / max(float(axis @ axis), 1e-6), 0, 1)
            distance = np.sqrt((x - along * a) ** 2 + (y - along * b) ** 2 + (z - along * c) ** 2)
            radius = start_radius + along * (float(tubes.end_radii[i]) - start_radius)
            inside[box] |= distance < radius
            if not self.has_image:
                continue
            seen = np.maximum(radius, self.edge / 2)
            filled = np.clip(0.5 + (seen - distance) / self.edge, 0, 1) * (np.maximum(radius, 0) / seen) ** 2
            np.maximum(share[box], filled, out=share[box])
        if self.has_image:
            self.image += share * (hounsfield - self.image)
        if label:
            self.labels[inside] = LABELS[label]

    def texture(self, seed: int, grain: float, box: Box = WHOLE) -> np.ndarray:
        """Return smooth noise of mean 0 and deviation 1 that is fixed in space; `grain` mm wide."""
        axes = [axis[part] for axis, part in zip(self.axes, box, strict=True)]
        shape = tuple(len(axis) for axis in axes)
        if not self.has_image or 0 in shape:
            return np.zeros((1, 1, 1), np.float32)
        cells = [int(length // TEXTURE_PITCH) for length in TEXTURE_SIZE]
        noise = np.random.default_rng(seed).standard_normal(cells, np.float32)
        noise = gaussian_filter(noise, grain / TEXTURE_PITCH)
        offset = [float(axis[0]) / TEXTURE_PITCH + n / 2 for axis, n in zip(axes, cells, strict=True)]
        step = np.array(self.spacing) / TEXTURE_PITCH
        return affine_transform(noise / noise.std(), step, offset, shape, order=1, mode="grid-wrap")


def paint_chest(chest: Chest, scene: _Scene) -> None:
    """Paint all of it, from the outside to the inside."""
    _paint_body(chest, scene)
    _paint_abdomen(chest, scene)
    # Lungs: denser at the back, where the blood is; mottled by what is too small to see.
    box = scene.box(chest.place(-140, -102, -160), chest.place(140, 104, 125))
    points = scene.points(box)
    mottles = 13 * scene.texture(chest.seed + 3, 3.0, box) + 9 * scene.texture(chest.seed + 4, 9.0, box)
    scene.paint(chest.outside_lungs(points), chest.lung - 0.45 * points[1] + mottles, "lungs", box)
    airways, vessels = chest.trees
    scene.paint_tubes(vessels, chest.blood, "vessels")
    _paint_heart(chest, scene)
    _paint_bones(chest, scene)
    _paint_spine(chest, scene)
    scene.paint_tubes(airways.thickened(0.7, 1.1), SKIN)  # their walls
    scene.paint_tubes(airways, AIR, "airways")
    for nodule in chest.nodules:
        box = scene.box(np.array(nodule.centre) - nodule.radius, np.array(nodule.centre) + nodule.radius)
        offsets = [p - np.float32(c) for p, c in zip(scene.points(box), nodule.centre, strict=True)]
        distance = np.sqrt(sum(offset**2 for offset in offsets))
        scene.paint(distance - nodule.radius, nodule.hounsfield, "nodules", box)


def _paint_body(chest: Chest, scene: _Scene) -> None:
    """Paint the table, a curved shell under the back, and the body with skin, fat and muscle."""
    points = scene.points()
    x, y, z = points
    back = -122 * chest.scale[1] - chest.fat
    shell = np.abs(np.sqrt(x**2 + (y - back - 400) ** 2) - 412) - 3
    scene.paint(np.maximum(shell, np.abs(x) - 205) + 0 * z, TABLE)
    muscle = chest.outside_muscle(points)
    skin = muscle - chest.fat
    if chest.breasts:
        semi = np.array([62, 26 + chest.breasts, 64.0])
        left, right = (outside_ellipsoid(points, chest.place(side * 84, 88, -24), semi) for side in (1, -1))
        skin = smooth_min(skin, np.minimum(left, right), 24.0)
    scene.paint(skin, SKIN, "body")
    scene.paint(skin + 2, FAT)
    streaks = scene.texture(chest.seed + 1, 12.0)
    scene.paint(muscle, MUSCLE - 70 * np.clip(1.3 - np.abs(streaks) * 9, 0, 1))
    scene.paint(chest.outside_cavity(points), FAT + 8 * streaks)


def _paint_abdomen(chest: Chest, scene: _Scene) -> None:
    """Paint the diaphragm, the stomach with its air bubble, and the liver."""
    box = scene.box(chest.place(-140, -102, -170), chest.place(140, 104, -40))
    points = scene.points(box)
    under = np.maximum(chest.outside_cavity(points), chest.outside_diaphragm(points))
    scene.paint(under, MUSCLE, None, box)
    inside = under + 3
    scene.paint(inside, FAT, None, box)
    stomach = np.maximum(inside, outside_ellipsoid(points, chest.place(62, 22, -134), chest.place(44, 52, 50)))
    scene.paint(stomach, STOMACH, None, box)
    scene.paint(np.maximum(stomach + 4, 46 * chest.scale[1] - points[1]), AIR, None, box)
    liver = outside_ellipsoid(points, chest.place(-52, 6, -150), chest.place(104, 100, 96))
    mottled = 60 + 0.3 * (chest.blood - 40) + 4 * scene.texture(chest.seed + 2, 5.0, box)
    scene.paint(np.maximum(inside, liver), mottled, "liver", box)


def _paint_heart(chest: Chest, scene: _Scene) -> None:
    """Paint the heart in its fat, with the blood of its chambers, and the great vessels."""
    box = scene.box(chest.place(-75, -60, -110), chest.place(120, 95, 30))
    points = scene.points(box)
    heart = chest.outside_heart(points)
    scene.paint(heart - 4, FAT, "body", box)
    scene.paint(heart, 105.0 if chest.blood > 100 else 48.0, None, box)
    for name, wall in (("right atrium", 3), ("right ventricle", 4), ("left atrium", 3), ("left ventricle", 11)):
        scene.paint(chest.outside_chamber(name, points, wall), chest.blood, None, box)
    scene.paint_tubes(chest.great_vessels, chest.blood, "vessels")
    scene.labels[box][heart < 0] = LABELS["heart"]  # the roots of the vessels are inside its outline


def _paint_bones(chest: Chest, scene: _Scene) -> None:
    """Paint shoulders, ribs and the breast bone, hard outside and soft inside."""
    for bones, cortex in ((chest.shoulders, 2.2), (chest.ribs, 1.8)):
        scene.paint_tubes(bones, CORTEX, "bones")
        scene.paint_tubes(bones.thickened(-cortex), MARROW)
    x, y, z = scene.points()
    top, bottom = (level * chest.scale[2] for level in BREAST_BONE)
    width = 16 + 9 * np.clip((z - top + 45) / 40, 0, 1)
    plate = (outside_oval(x / width, (y - chest.breast_bone(z)) / 6.5, 3.0) - 1) * 6.5
    plate = np.maximum(plate, np.abs(z - (top + bottom) / 2) - (top - bottom) / 2)
    scene.paint(plate, CORTEX * 0.8, "bones")
    scene.paint(plate + 1.8, MARROW * 0.8)


def _paint_spine(chest: Chest, scene: _Scene) -> None:
    """Paint the vertebral bodies with the discs between them, and behind them the arches around the canal."""
    box = scene.box((-45, -140, -1000), (45, 0, 1000))
    x, y, z = scene.points(box)
    spine_x, spine_y = chest.spine(z)
    x, y, behind = x - spine_x, y - spine_y, y - spine_y + 26
    height = VERTEBRA * chest.scale[2]
    level = z / height - FIRST_VERTEBRA / VERTEBRA
    off = np.abs(level - np.round(level)) * height  # mm from the middle of the nearest vertebra
    body = (np.sqrt((x / 17.5) ** 2 + (y / 14.5) ** 2) - 0.96) * 15.5
    scene.paint(body, CORTEX * 0.7, "spine", box)
    scene.paint(np.maximum(body + 1.6, off - 8.5), MARROW, None, box)
    scene.paint(np.maximum(body, 9.6 - off), DISC, None, box)
    arch = (np.sqrt((x / 14) ** 2 + (behind / 12.5) ** 2) - 1) * 13
    scene.paint(np.maximum(arch, -body), CORTEX * 0.75, "spine", box)
    scene.paint((np.sqrt((x / 9.5) ** 2 + (behind / 8) ** 2) - 1) * 9, CANAL, "body", box)


def _acquire(image: np.ndarray, spacing: Spacing, random: np.random.Generator) -> np.ndarray:
    """Add the blur of the reconstruction and noise that is correlated over a mm; round to 12 bits."""
    image = gaussian_filter(image, 0.4)
    width = [max(0.35, 0.8 / s) for s in spacing]
    noise = gaussian_filter(random.standard_normal(image.shape, np.float32), width)
    image += noise * np.float32(random.uniform(15, 25) / noise.std())
    return np.rint(image).clip(LOWEST, HIGHEST).astype(np.int16)
