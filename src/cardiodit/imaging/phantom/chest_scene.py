"""The chest as a CT shows it: Hounsfield units of every tissue, partial volume, blur and noise; with a label map."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.phantom.chest import (
    BACK_OF_SPINE,
    VERTEBRA,
    Chest,
    outside_ellipsoid,
    outside_oval,
    smooth_min,
)
from cardiodit.imaging.phantom.tubes import Points, Tubes, link

LABELS = {
    "body": 1,
    "lungs": 2,
    "airways": 3,
    "vessels": 4,
    "heart": 5,
    "nodules": 6,
    "spine": 7,
    "bones": 8,  # the others: ribs, breast bone, collar bones, shoulder blades
    "liver": 9,
}

HOUNSFIELD = {
    "air": -1000.0,
    "table": -600.0,
    "skin": 10.0,
    "fat": -105.0,
    "muscle": 52.0,
    "gland": 15.0,
    "cortex": 560.0,
    "marrow": 190.0,
    "cartilage": 105.0,
    "disc": 85.0,
    "canal": 22.0,
    "wall": 25.0,
    "stomach": 30.0,
}
# Of each rib: how far it falls from the spine to its front end (mm), the angle of that end (degrees from the side to
# the front), and the height at which its cartilage meets the breast bone; the last two end in the muscle.
RIBS = (
    (36, 62, 86), (54, 62, 67), (70, 63, 46), (83, 64, 27), (94, 63, 10), (102, 60, -6), (107, 54, -20),
    (106, 47, -28), (100, 38, -34), (88, 27, -38), (55, -8, None), (32, -35, None),
)  # fmt: skip
BREAST_BONE = (96, -48)  # where it begins and ends

LOWEST, HIGHEST = -1024, 3071  # what twelve bits hold
MIDDLE = -8.0  # z of the middle of the picture
VIEW = (384.0, 290.0, 290.0)  # mm that show the whole chest
SMALLEST = 16  # voxels along an axis
FINE = 2.75  # mm between the points that volumes are counted on
FINEST_GRAIN = 4.0  # mm between the points of a texture
TEXTURED = (420.0, 320.0, 320.0)  # mm after which a texture repeats

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class ChestPhantom:
    """A rendered chest; axes go to the patient's left, to the front and to the head.

    Args:
        image: `(H, W, D)` int16, Hounsfield units.
        labels: `(H, W, D)` uint8, by `LABELS`; 0 is what lies outside the body.
        geometry: voxel size and place in the scanner.
        nodules: of each in the picture, "centre_mm" in the scanner's space, "centre_voxel" and "radius_mm".
        volumes_ml: what of each label the picture shows; exact for nodules, else counted on a grid of its own.
    """

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry
    nodules: list[dict[str, Any]]
    volumes_ml: dict[str, float]


def default_spacing(size: Size) -> Spacing:
    """Square pixels that show the whole chest."""
    plane = max(VIEW[0] / size[0], VIEW[1] / size[1])
    return plane, plane, VIEW[2] / size[2]


def render_chest(chest: Chest, size: Size, random: np.random.Generator, spacing: Spacing | None = None) -> ChestPhantom:
    """Images a chest at `size` (H, W, D); `random` makes only the noise."""
    _check(size, spacing)
    spacing = spacing or default_spacing(size)
    scene = _Scene(size, spacing)
    paint_chest(chest, scene)
    geometry = _geometry(size, spacing)
    nodules = _nodules_in(chest, geometry, size)
    return ChestPhantom(
        _acquire(scene.image, spacing, random), scene.labels, geometry, nodules, _volumes(chest, size, spacing, nodules)
    )


def _check(size: Size, spacing: Spacing | None) -> None:
    if len(size) != 3 or min(size) < SMALLEST:
        raise CardioDiTError(f"size={tuple(size)} must be three numbers (H, W, D) of at least {SMALLEST} voxels.")
    if spacing is not None and (len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing)):
        raise CardioDiTError(f"spacing={tuple(spacing)} must be three positive numbers in mm (H, W, D).")


def _geometry(size: Size, spacing: Spacing) -> Geometry:
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])  # NIfTI's x runs to the right
    corner = [-(n - 1) / 2 * s for n, s in zip(size, spacing, strict=True)]
    affine[:3, 3] = -corner[0], corner[1], corner[2] + MIDDLE
    return Geometry.of_affine(affine)


def _nodules_in(chest: Chest, geometry: Geometry, size: Size) -> list[dict[str, Any]]:
    found = []
    for nodule in chest.nodules:
        x, y, z = nodule.centre
        voxel = (np.linalg.inv(geometry.affine) @ [-x, y, z, 1])[:3]
        if (voxel > -0.5).all() and (voxel < np.array(size) - 0.5).all():
            found.append({"centre_mm": [-x, y, z], "centre_voxel": voxel.tolist(), "radius_mm": nodule.radius})
    return found


def _volumes(chest: Chest, size: Size, spacing: Spacing, nodules: list[dict[str, Any]]) -> dict[str, float]:
    """mL of each label within the picture."""
    extent = [n * s for n, s in zip(size, spacing, strict=True)]
    number = [max(1, round(length / FINE)) for length in extent]
    step = [length / n for length, n in zip(extent, number, strict=True)]
    scene = _Scene((number[0], number[1], number[2]), (step[0], step[1], step[2]), has_image=False)
    paint_chest(chest, scene)
    counts = np.bincount(scene.labels.ravel(), minlength=max(LABELS.values()) + 1)
    volumes = {name: float(counts[label] * np.prod(step) / 1000) for name, label in LABELS.items()}
    volumes["nodules"] = float(sum(4 / 3 * np.pi * nodule["radius_mm"] ** 3 for nodule in nodules) / 1000)
    return volumes


class _Scene:
    """A picture and its labels, or the labels alone, painted over from the outside to the inside."""

    def __init__(self, size: Size, spacing: Spacing, has_image: bool = True) -> None:
        self.size, self.spacing = size, spacing
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * s + (MIDDLE if axis == 2 else 0)).astype(np.float32)
            for axis, (n, s) in enumerate(zip(size, spacing, strict=True))
        ]
        self.edge = float(np.mean(spacing))
        self.has_image = has_image
        self.image = np.full(size if has_image else (0, 0, 0), HOUNSFIELD["air"], np.float32)
        self.labels = np.zeros(size, np.uint8)

    def box(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Box:
        """The voxels between two corners, with a margin for soft edges."""
        bounds = [
            (np.searchsorted(axis, a - self.edge), np.searchsorted(axis, b + self.edge))
            for axis, a, b in zip(self.axes, low, high, strict=True)
        ]
        first, second, third = (slice(int(start), int(stop)) for start, stop in bounds)
        return first, second, third

    def points(self, box: Box = WHOLE) -> Points:
        x, y, z = (axis[part] for axis, part in zip(self.axes, box, strict=True))
        return x[:, None, None], y[None, :, None], z[None, None, :]

    def paint(
        self,
        outside: np.ndarray,
        hounsfield: float | np.ndarray,
        label: str | None = None,
        box: Box = WHOLE,
    ) -> None:
        """Fills where one is not outside, with an edge as soft as a voxel is large."""
        if self.has_image:
            share = np.clip(0.5 - outside * np.float32(1 / self.edge), 0, 1)
            self.image[box] += share * (hounsfield - self.image[box])
        if label:
            self.labels[box][outside < 0] = LABELS[label]

    def paint_tubes(self, tubes: Tubes, hounsfield: float, label: str | None = None) -> None:
        if not (self.has_image or label):
            return
        share, inside = self._tubes(tubes)
        if self.has_image:
            self.image += share * (hounsfield - self.image)
        if label:
            self.labels[inside] = LABELS[label]

    def _tubes(self, tubes: Tubes) -> tuple[np.ndarray, np.ndarray]:
        """The share of each voxel within tubes, and whether its middle is; each tube in its own box."""
        share, inside = np.zeros(self.size, np.float32), np.zeros(self.size, bool)
        for number, box in self._boxes(tubes):
            start, first = tubes.starts[number], float(tubes.start_radii[number])
            a, b, c = (tubes.ends[number] - start).tolist()
            x, y, z = (p - s for p, s in zip(self.points(box), start.tolist(), strict=True))
            along = np.clip((x * a + y * b + z * c) / max(a * a + b * b + c * c, 1e-6), 0, 1)
            distance = np.sqrt((x - along * a) ** 2 + (y - along * b) ** 2 + (z - along * c) ** 2)
            radius = first + along * (float(tubes.end_radii[number]) - first)
            inside[box] |= distance < radius
            if self.has_image:
                seen = np.maximum(radius, self.edge / 2)  # a thin tube fills a part of its voxels
                filled = np.clip(0.5 + (seen - distance) / self.edge, 0, 1) * (radius / seen) ** 2
                np.maximum(share[box], filled, out=share[box])
        return share, inside

    def _boxes(self, tubes: Tubes) -> Iterator[tuple[int, Box]]:
        """The tubes that the picture shows, each with its voxels."""
        reach = np.maximum(np.maximum(tubes.start_radii, tubes.end_radii), self.edge / 2) + self.edge
        low = np.minimum(tubes.starts, tubes.ends) - reach[:, None]
        high = np.maximum(tubes.starts, tubes.ends) + reach[:, None]
        first = np.stack([np.searchsorted(axis, low[:, i]) for i, axis in enumerate(self.axes)], axis=1)
        last = np.stack([np.searchsorted(axis, high[:, i]) for i, axis in enumerate(self.axes)], axis=1)
        for number in np.flatnonzero((first < last).all(axis=1)):
            (a, b, c), (d, e, f) = first[number].tolist(), last[number].tolist()
            yield int(number), (slice(a, d), slice(b, e), slice(c, f))

    def texture(self, seed: int, grain: float, box: Box = WHOLE) -> np.ndarray:
        """Smooth noise of mean 0 and deviation 1 that is fixed in space; `grain` mm wide."""
        if not self.has_image:
            return np.zeros((1, 1, 1), np.float32)
        axes = [axis[part] for axis, part in zip(self.axes, box, strict=True)]
        shape = tuple(len(axis) for axis in axes)
        if 0 in shape:
            return np.zeros(shape, np.float32)
        pitch = max(FINEST_GRAIN, 0.7 * grain)
        cells = [int(length // pitch) for length in TEXTURED]
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal(cells, np.float32), grain / pitch)
        offset = [float(axis[0]) / pitch + n / 2 for axis, n in zip(axes, cells, strict=True)]
        step = np.array(self.spacing) / pitch
        return affine_transform(noise / noise.std(), step, offset, shape, order=1, mode="grid-wrap")


def paint_chest(chest: Chest, scene: _Scene) -> None:
    """All of it, from the outside to the inside."""
    _table(chest, scene)
    _body(chest, scene)
    _abdomen(chest, scene)
    _lungs(chest, scene)
    _vessels_and_heart(chest, scene)
    _bones(chest, scene)
    _spine(chest, scene)
    _airways(chest, scene)
    for nodule in chest.nodules:
        box = scene.box(np.array(nodule.centre) - nodule.radius, np.array(nodule.centre) + nodule.radius)
        away = [p - np.float32(c) for p, c in zip(scene.points(box), nodule.centre, strict=True)]
        scene.paint(np.sqrt(sum(a**2 for a in away)) - nodule.radius, nodule.hounsfield, "nodules", box)


def _table(chest: Chest, scene: _Scene) -> None:
    """A curved shell under the back."""
    x, y, _ = scene.points()
    back = -122 * chest.scale[1] - chest.fat
    shell = np.abs(np.sqrt(x**2 + (y - back - 400) ** 2) - 412) - 3
    scene.paint(np.maximum(shell, np.abs(x) - 205) + 0 * scene.points()[2], HOUNSFIELD["table"])


def _body(chest: Chest, scene: _Scene) -> None:
    points = scene.points()
    muscle = chest.outside_muscle(points)
    skin = muscle - chest.fat
    if chest.breasts:
        breasts = _outside_breasts(chest, points)
        skin = smooth_min(skin, breasts, 24.0)
    scene.paint(skin, HOUNSFIELD["skin"], "body")
    scene.paint(skin + 2, HOUNSFIELD["fat"])
    if chest.breasts:
        inner = np.maximum(breasts + 9, 0.5 * muscle + 4 * scene.texture(chest.seed + 5, 5.0) - 8)
        scene.paint(inner, HOUNSFIELD["gland"])
    streaks = scene.texture(chest.seed + 1, 12.0)
    cavity = chest.outside_cavity(points)
    sheet = np.clip(1.5 - np.abs(cavity - 18 - 3 * streaks) / 1.2, 0, 1)  # fat between the muscles
    scene.paint(muscle, HOUNSFIELD["muscle"] - 120 * sheet - 70 * np.clip(1.3 - np.abs(streaks) * 9, 0, 1))
    for side in (-1, 1):  # armpits
        hollow = chest.place(side * 140, 2, 66)
        scene.paint(outside_ellipsoid(points, hollow, chest.place(17, 34, 42)), HOUNSFIELD["fat"])
    scene.paint(cavity, HOUNSFIELD["fat"] + 8 * streaks)


def _outside_breasts(chest: Chest, points: Points) -> np.ndarray:
    left, right = (
        outside_ellipsoid(points, chest.place(side * 84, 88, -24), np.array([62, 26 + chest.breasts, 64.0]))
        for side in (1, -1)
    )
    return np.minimum(left, right)


def _abdomen(chest: Chest, scene: _Scene) -> None:
    """Liver, stomach and spleen under the diaphragm."""
    box = scene.box(chest.place(-140, -102, -170), chest.place(140, 104, -40))
    points = scene.points(box)
    contrast = chest.blood - 40
    under = np.maximum(chest.outside_cavity(points), chest.outside_diaphragm(points))
    scene.paint(under, HOUNSFIELD["muscle"], None, box)
    inside = under + 3
    scene.paint(inside, HOUNSFIELD["fat"], None, box)
    spleen = outside_ellipsoid(points, chest.place(98, -48, -136), chest.place(32, 42, 52))
    scene.paint(np.maximum(inside, spleen), 50 + 0.4 * contrast, None, box)
    stomach = np.maximum(inside, outside_ellipsoid(points, chest.place(62, 22, -134), chest.place(44, 52, 50)))
    scene.paint(stomach, HOUNSFIELD["wall"], None, box)
    scene.paint(stomach + 4, HOUNSFIELD["stomach"], None, box)
    scene.paint(np.maximum(stomach + 4, 46 * chest.scale[1] - points[1]), HOUNSFIELD["air"], None, box)
    liver = outside_ellipsoid(points, chest.place(-52, 6, -150), chest.place(104, 100, 96))
    mottled = 60 + 0.3 * contrast + 4 * scene.texture(chest.seed + 2, 5.0, box)
    scene.paint(np.maximum(inside, liver), mottled, "liver", box)


def _lungs(chest: Chest, scene: _Scene) -> None:
    """Air held by thin walls: denser where it hangs down, mottled by what is too small to see."""
    box = scene.box(chest.place(-140, -102, -160), chest.place(140, 104, 125))
    points = scene.points(box)
    x, y, _ = points
    mottles = 13 * scene.texture(chest.seed + 3, 3.0, box) + 9 * scene.texture(chest.seed + 4, 9.0, box)
    oblique, horizontal = chest.above_fissures(points)
    nearest = np.minimum(np.abs(oblique), np.where((x < 0) & (oblique > 0), np.abs(horizontal), 99))
    wide = max(1.0, scene.edge)  # a fissure is thinner than a voxel
    fissures = np.clip(1.2 - nearest / wide, 0, 1) * (110 / wide)
    scene.paint(chest.outside_lungs(points), chest.lung - 0.45 * y + mottles + fissures, "lungs", box)


def _vessels_and_heart(chest: Chest, scene: _Scene) -> None:
    _, vessels = chest.trees
    scene.paint_tubes(vessels, chest.blood, "vessels")
    box = scene.box(chest.place(-75, -60, -110), chest.place(120, 95, 30))
    points = scene.points(box)
    heart = chest.outside_heart(points)
    muscle = 105.0 if chest.blood > 100 else 48.0
    scene.paint(heart - 4, HOUNSFIELD["fat"], "body", box)
    scene.paint(heart, muscle, None, box)
    for name, wall in (("right atrium", 3), ("right ventricle", 4), ("left atrium", 3)):
        scene.paint(chest.outside_chamber(name, points, wall), chest.blood, None, box)
    scene.paint(chest.outside_chamber("left ventricle", points, 1), muscle, None, box)
    scene.paint(chest.outside_chamber("left ventricle", points, 11), chest.blood, None, box)
    scene.paint_tubes(chest.gullet, HOUNSFIELD["muscle"])
    scene.paint_tubes(chest.great_vessels, chest.blood, "vessels")
    scene.labels[box][heart < 0] = LABELS["heart"]  # the roots of the vessels are within its outline


def ribs_of(chest: Chest) -> tuple[Tubes, Tubes]:
    """Ribs and their cartilages."""
    bones, cartilages = [], []
    way = np.linspace(0, 1, 30)
    tall = chest.scale[2]
    for level, (fall, end, meets) in zip(chest.vertebrae, RIBS, strict=False):
        z = level + tall * (6 * np.sin(np.pi * np.minimum(4 * way, 1)) - fall * way)
        path = chest.on_ribcage(np.deg2rad(np.linspace(-74, end, 30)), z, 6.5)
        spine_x, spine_y = chest.spine(z[:1])
        head = np.array([[spine_x[0] + 19, spine_y[0] - 12, z[0]]])
        bend = 0.45 * head + 0.55 * path[:1] - np.array([0, 7, 0])
        bones.append(_flat_tube(np.concatenate([head, bend, path]), 3.8, 2.6))
        if meets is not None:
            joint = np.array([16.0, chest.breast_bone(np.array([meets * tall]))[0], meets * tall])
            height = (z[-1:] + 2 * joint[2:]) / 3 - 12
            between = chest.on_ribcage(np.deg2rad([0.35 * end + 55]), height, 5.0)
            cartilages.append(_flat_tube(np.stack([path[-1], between[0], joint]), 3.8, 2.0))
    return _both_sides(bones), _both_sides(cartilages)


def _flat_tube(path: np.ndarray, radius: float, apart: float) -> Tubes:
    """A tube that is taller than thick: two, one above the other."""
    lanes = [path + np.array([0, 0, shift]) for shift in (-apart, apart)]
    full = np.full(len(path) - 1, radius)
    return Tubes.joined([Tubes(lane[:-1], lane[1:], full, full) for lane in lanes])


def _both_sides(parts: Sequence[Tubes]) -> Tubes:
    left, mirror = Tubes.joined(parts), np.array([-1.0, 1, 1])
    return Tubes.joined([left, Tubes(left.starts * mirror, left.ends * mirror, left.start_radii, left.end_radii)])


def limbs_of(chest: Chest) -> Tubes:
    """Collar bones, shoulders and upper arms, raised."""
    return _both_sides(
        [
            chest.curve([(13, 44, 94, 8), (44, 46, 100, 5.5), (90, 20, 113, 5), (142, -10, 126, 6)]),  # collar bone
            chest.curve([(78, -94, 92, 3.5), (120, -76, 108, 5), (150, -40, 126, 7)]),  # ridge of the shoulder blade
            chest.curve([(138, -42, 98, 10), (146, -36, 106, 11)]),  # its socket
            chest.curve([(164, -22, 118, 20), (176, -12, 160, 13)]),  # upper arm
        ]
    )


def processes_of(chest: Chest) -> Tubes:
    """What the vertebral arches carry: a spine at the back, and a prop for each rib."""
    parts = []
    for level in chest.vertebrae:
        x, y = (float(value[0]) for value in chest.spine(np.array([level])))
        tips = {(0, -24, -20): ((0, 0, 0), 4.5), (33, -3, 6): ((9, 6, 2), 5.0), (-33, -3, 6): ((-9, 6, 2), 5.0)}
        arch = np.array([x, y - BACK_OF_SPINE - 10, level - 2])
        parts += [link(arch + np.array(base), arch + np.array(tip), r, r - 1) for tip, (base, r) in tips.items()]
    return Tubes.joined(parts)


def _bones(chest: Chest, scene: _Scene) -> None:
    ribs, cartilages = ribs_of(chest)
    for side in (-1, 1):
        _shoulder_blade(chest, scene, side)
    limbs = limbs_of(chest)
    scene.paint_tubes(limbs, HOUNSFIELD["cortex"], "bones")
    scene.paint_tubes(limbs.grown(-2.2), HOUNSFIELD["marrow"])
    scene.paint_tubes(cartilages, HOUNSFIELD["cartilage"])
    scene.paint_tubes(ribs, HOUNSFIELD["cortex"], "bones")
    scene.paint_tubes(ribs.grown(-1.8), HOUNSFIELD["marrow"])
    x, y, z = scene.points()
    top, bottom = (level * chest.scale[2] for level in BREAST_BONE)
    width = 16 + 9 * np.clip((z - top + 45) / 40, 0, 1)
    plate = (outside_oval(x / width, (y - chest.breast_bone(z)) / 6.5, 3.0) - 1) * 6.5
    plate = np.maximum(plate, np.abs(z - (top + bottom) / 2) - (top - bottom) / 2)
    scene.paint(plate, HOUNSFIELD["cortex"] * 0.8, "bones")
    scene.paint(plate + 1.8, HOUNSFIELD["marrow"] * 0.8)


def _shoulder_blade(chest: Chest, scene: _Scene, side: int) -> None:
    """A thin plate behind the ribs, narrow below."""
    middle = chest.place(side * 104, -76, 72)
    half = np.array([62, 62, 66])
    box = scene.box(middle - half, middle + half)
    x, y, z = (p - np.float32(c) for p, c in zip(scene.points(box), middle, strict=True))
    x = x * side
    across, along = 0.80 * x + 0.60 * y, -0.60 * x + 0.80 * y  # along and across the plate
    thick = np.abs(along + 0.0035 * across**2 + 0.12 * z - 3) - 2.6 - 2.5 * np.clip((across - 24) / 12, 0, 1)
    rim = np.abs(across - 0.12 * z) - 21 - 0.36 * z
    plate = np.maximum(np.maximum(thick, rim), np.abs(z) - 54)
    scene.paint(plate, HOUNSFIELD["cortex"] * 0.9, "bones", box)


def _spine(chest: Chest, scene: _Scene) -> None:
    box = scene.box((-45, -140, -1000), (45, 0, 1000))
    x, y, z = scene.points(box)
    spine_x, spine_y = chest.spine(z)
    x, y = x - spine_x, y - spine_y
    tall = chest.scale[2]
    beyond = (z - float(chest.vertebrae[0])) / (VERTEBRA * tall)
    off = np.abs(beyond - np.round(beyond)) * VERTEBRA * tall  # mm from the middle of the nearest vertebra
    waist = 1 - 0.08 * np.cos(np.pi * np.clip(off / 9, 0, 1))
    body = (np.sqrt((x / 17.5) ** 2 + (y / 14.5) ** 2) - waist) * 15.5
    scene.paint(body, HOUNSFIELD["cortex"] * 0.7, "spine", box)
    scene.paint(np.maximum(body + 1.6, off - 8.5), HOUNSFIELD["marrow"], None, box)
    scene.paint(np.maximum(body, 9.6 - off), HOUNSFIELD["disc"], None, box)
    behind = y + BACK_OF_SPINE
    ring = (np.sqrt((x / 14) ** 2 + (behind / 12.5) ** 2) - 1) * 13
    scene.paint(np.maximum(ring, off - 9), HOUNSFIELD["cortex"] * 0.75, "spine", box)
    scene.paint((np.sqrt((x / 9.5) ** 2 + (behind / 8) ** 2) - 1) * 9, HOUNSFIELD["canal"], "body", box)
    processes = processes_of(chest)
    scene.paint_tubes(processes, HOUNSFIELD["cortex"] * 0.8, "spine")
    scene.paint_tubes(processes.grown(-1.6), HOUNSFIELD["marrow"])


def _airways(chest: Chest, scene: _Scene) -> None:
    airways, _ = chest.trees
    wall = Tubes(airways.starts, airways.ends, airways.start_radii * 1.1 + 0.7, airways.end_radii * 1.1 + 0.7)
    scene.paint_tubes(wall, HOUNSFIELD["wall"])
    scene.paint_tubes(airways, HOUNSFIELD["air"], "airways")


def _acquire(image: np.ndarray, spacing: Spacing, random: np.random.Generator) -> np.ndarray:
    """Blur of the reconstruction, noise that hangs together over a mm, and twelve bits."""
    image = gaussian_filter(image, 0.4)
    width = [max(0.35, 0.8 / s) for s in spacing]
    noise = gaussian_filter(random.standard_normal(image.shape, np.float32), width)
    image += noise * np.float32(random.uniform(15, 25) / noise.std())
    return np.rint(image).clip(LOWEST, HIGHEST).astype(np.int16)
