"""A synthetic heart as a scanner shows it: tissues, neighbours, partial volume, shading, flow, breathing, noise."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.orientation import PICTURE_RIGHT, TO_APEX
from cardiodit.imaging.phantom.heart import ANGLES, ML, Heart, Shape
from cardiodit.imaging.phantom.style import SINUS, Style, Vendor

RV, MYOCARDIUM, LV = 1, 2, 3  # the label order of ACDC

RV_WALL, ATRIAL_WALL = 3.0, 2.0  # mm
SUBSLICES = 3  # layers averaged in each thick slice
GREY_LEVELS = 1000


@dataclass(frozen=True)
class Phantom:
    """A rendered heart.

    Args:
        image: `(H, W, D, T)` int16, arbitrary units, slices from base to apex, frame 0 end-diastole.
        labels: `(H, W, D, T)` uint8: RV 1, myocardium 2, LV 3; papillary muscles belong to the cavity.
        volumes: mL of each frame inside the imaged slab: `lv`, `rv`, `myocardium`.
        geometry: voxel size, frame time and an oblique position in the scanner.
    """

    image: np.ndarray
    labels: np.ndarray
    volumes: dict[str, list[float]]
    geometry: Geometry


def default_spacing(size: tuple[int, int, int, int]) -> tuple[float, float, float]:
    """Return a field of view that shows the heart with its neighbours, and slices that cover it to the apex."""
    plane = max(1.4, 144 / max(size[:2]))
    return plane, plane, 100 / size[2]


def render(
    heart: Heart,
    size: tuple[int, int, int, int],
    random: np.random.Generator,
    spacing: tuple[float, float, float] | None = None,
    style: Style | None = None,
) -> Phantom:
    """Render a heart as a cine of `size` (H, W, D, T); what a style adds is drawn from a generator of its own."""
    style = style or Style()
    own = np.random.default_rng() if style.is_plain else random.spawn(1)[0]  # of a plain style, nothing is drawn
    height, width, depth, frames = size
    if spacing is None:
        along_h, along_w, along_d = default_spacing(size)
        spacing = along_h * style.scanner.spacing, along_w * style.scanner.spacing, along_d
    heart = style.heart(heart, own)
    phases = style.phases(depth, frames, own)
    look = _Look(style, style.trabecular_depth(own))
    shapes = [[style.shape(heart, phase) for phase in phases[0]]]
    shapes += [shapes[0] if style.rhythm != "irregular" else [style.shape(heart, p) for p in row] for row in phases[1:]]
    plane = _Plane((height, width), spacing[:2], random)
    image = np.zeros(size, np.float32)
    labels = np.zeros(size, np.uint8)
    rows = np.zeros((frames, 3))
    for d in range(depth):
        shift = random.normal(0, 1.2, 2)  # every slice is acquired in its own breath-hold
        surroundings = plane.surroundings(d / max(1, depth - 1), shift, random, style.signal)
        polar = plane.polar(shift)
        for t, shape in enumerate(shapes[d]):
            drop = style.drop(heart, shape)
            levels = (d + (np.arange(SUBSLICES) + 0.5) / SUBSLICES) * spacing[2] - drop
            layers = [_heart_layer(heart, shape, level, polar, surroundings, plane.voxel, look) for level in levels]
            image[:, :, d, t] = np.mean(layers, axis=0)
            labels[:, :, d, t] = _labels(shape, (d + 0.5) * spacing[2] - drop, polar)
            if style.rhythm != SINUS:
                rows[t] += shape.volumes_between(d * spacing[2] - drop, (d + 1) * spacing[2] - drop)
    image = _acquire(image, labels, heart, spacing, random, style.scanner)
    if style.rhythm == SINUS:
        drops = [style.drop(heart, shape) for shape in shapes[0]]
        ends = [(-drop, depth * spacing[2] - drop) if drop else (0, depth * spacing[2]) for drop in drops]
        rows = np.array([shape.volumes_between(*end) for shape, end in zip(shapes[0], ends, strict=True)])
    volumes = {name: [float(row[i]) / ML for row in rows] for i, name in enumerate(("lv", "rv", "myocardium"))}
    geometry = _short_axis(size, spacing, random).with_frame_time(60 / heart.heart_rate / frames)
    return Phantom(image, labels, volumes, geometry)


@dataclass(frozen=True)
class _Look:
    """A style, and the depth of the trabecular layer in each direction, if there is one."""

    style: Style
    trabeculae: np.ndarray | None = None


def _short_axis(
    size: tuple[int, int, int, int], spacing: tuple[float, float, float], random: np.random.Generator
) -> Geometry:
    """Return an oblique plane as a radiographer plans it, with the heart left of and above the scanner's centre."""
    apex = TO_APEX + random.uniform(-0.08, 0.08, 3)
    apex /= np.linalg.norm(apex)
    right = PICTURE_RIGHT - (PICTURE_RIGHT @ apex) * apex
    right /= np.linalg.norm(right)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right, np.cross(apex, right), apex], axis=1) * spacing
    centre = np.array([-25.0, 35.0, 10.0]) + random.uniform(-10, 10, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(size[:3]) - 1) / 2)
    return Geometry.of_affine(affine)


@dataclass(frozen=True)
class _Polar:
    radius: np.ndarray  # mm from the axis of the left ventricle
    angle: np.ndarray  # index into the angles


class _Plane:
    """Positions in mm around the left ventricle: x to the right of the picture, y upwards."""

    def __init__(self, shape: tuple[int, int], spacing: tuple[float, float], random: np.random.Generator) -> None:
        self.voxel = float(np.mean(spacing))
        turn = np.deg2rad(random.uniform(-12, 12))
        centre = np.array([14.0, 0.0]) + random.uniform(-4, 4, 2)
        x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)), indexing="ij")
        x, y = x - centre[0], y - centre[1]
        self.x = (np.cos(turn) * x + np.sin(turn) * y).astype(np.float32)
        self.y = (-np.sin(turn) * x + np.cos(turn) * y).astype(np.float32)
        self.body = random.uniform(0.95, 1.1)
        self.lung_vessels = gaussian_filter(random.standard_normal(shape), 1.5).astype(np.float32)
        self.liver_texture = gaussian_filter(random.standard_normal(shape), 2.5).astype(np.float32)

    def polar(self, shift: np.ndarray) -> _Polar:
        x, y = self.x - shift[0], self.y - shift[1]
        angle = np.arctan2(y, x) * (ANGLES / (2 * np.pi))
        return _Polar(np.hypot(x, y), np.rint(angle).astype(int) % ANGLES)

    def surroundings(
        self, towards_apex: float, shift: np.ndarray, random: np.random.Generator, signal: Mapping[str, float]
    ) -> np.ndarray:
        """Draw everything but the heart in one slice; the liver grows and the lungs shrink towards the apex."""
        x, y = self.x - 0.5 * shift[0], self.y - 0.5 * shift[1]

        def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
            """1 inside, 0 outside, and a soft edge of a voxel."""
            distance = (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * min(rx, ry)
            return np.clip(0.5 - distance / self.voxel, 0, 1)

        b = self.body
        picture = np.full_like(x, signal["air"])

        def paint(mask: np.ndarray, value: float | np.ndarray) -> None:
            picture[...] = picture * (1 - mask) + value * mask

        paint(ellipse(-18, -28, 178 * b, 122 * b), signal["fat"])
        paint(ellipse(-18, -29, 166 * b, 108 * b), signal["muscle"])
        cavity = ellipse(-18, -26, 152 * b, 93 * b)
        paint(cavity, signal["lung"] + 0.25 * np.clip(self.lung_vessels - 0.12, 0, 0.4))
        paint(ellipse(-34, 57, 54, 15), signal["fat"] * 0.75)  # fat behind the breast bone
        rise = 14 + 26 * towards_apex
        paint(cavity * ellipse(-72, -112 + rise, 92, 56), signal["liver"] + 0.10 * self.liver_texture)
        paint(cavity * ellipse(62, -104 + 0.8 * rise, 44, 36), signal["muscle"] * 1.1)  # stomach and spleen
        paint(ellipse(-62, -96, 25, 23), signal["bone"])  # spine
        paint(ellipse(-62, -114, 9, 8), signal["blood"] * 0.8)  # spinal canal
        paint(ellipse(-26, -72, 12, 12), signal["muscle"])
        paint(ellipse(-26, -72, 10.5, 10.5), signal["blood"])  # descending aorta
        return picture


def _row(table: np.ndarray, z: np.ndarray, level: float) -> np.ndarray:
    """Interpolate a table (LEVELS, ANGLES) at one level; 0 beyond the apex."""
    position = np.interp(level, z, np.arange(len(z)))
    below = int(position)
    above = min(below + 1, len(z) - 1)
    row = table[below] * (1 - (position - below)) + table[above] * (position - below)
    return row if level <= z[-1] else np.zeros_like(row)


def _inside(boundary: np.ndarray, polar: _Polar, voxel: float) -> np.ndarray:
    """Return the share of each voxel inside a boundary given over the angles."""
    return np.clip((boundary[polar.angle] - polar.radius) / voxel + 0.5, 0, 1)


def _heart_layer(
    heart: Heart,
    shape: Shape,
    level: float,
    polar: _Polar,
    surroundings: np.ndarray,
    voxel: float,
    look: _Look,
) -> np.ndarray:
    """Draw the heart over its surroundings at one level and moment."""
    picture, signal = surroundings, look.style.signal
    if level > shape.z[-1]:
        return picture
    if level < 0 and look.style.base:
        return _atria(heart, shape, level, polar, surroundings, voxel, signal)
    endo, epi, right = (_row(table, shape.z, level) for table in (shape.endo, shape.epi, shape.right))
    wall = np.where(right > 1.0, RV_WALL, 0.0)
    fat = 3.5 * np.clip(np.sin(np.arange(ANGLES) * 2 * np.pi / ANGLES * 2 + heart.rv_direction), 0, 1)
    fat = fat * look.style.fat if look.style.fat != 1.0 else fat
    for boundary, value in [
        (epi + right + wall + fat, signal["fat"] * 0.8),
        (epi + right + wall, signal["myocardium"]),
        (epi + right, signal["blood"]),
        (epi, signal["myocardium"]),
        (endo, signal["blood"]),
    ]:
        inside = _inside(boundary, polar, voxel)
        picture = picture * (1 - inside) + value * inside
    if look.style.scar_signal != 1.0:
        is_scar = np.clip(1 - heart.motion, 0, 1)[polar.angle]
        ring = _inside(epi, polar, voxel) - _inside(endo, polar, voxel)
        picture = picture * (1 + (look.style.scar_signal - 1) * ring * is_scar)
    if look.trabeculae is not None:
        layer = _inside(endo, polar, voxel) - _inside(np.maximum(endo - look.trabeculae, 0), polar, voxel)
        picture = picture * (1 - layer) + 0.5 * (signal["myocardium"] + signal["blood"]) * layer
    return _papillaries(heart, shape, level, polar, picture, float(endo.mean()), voxel, signal)


def _atria(
    heart: Heart,
    shape: Shape,
    level: float,
    polar: _Polar,
    surroundings: np.ndarray,
    voxel: float,
    signal: Mapping[str, float],
) -> np.ndarray:
    """Draw both atria above the valve plane: thin walls, and a septum between them."""
    picture = surroundings
    left, right = shape.epi[0] * (1 - 0.004 * abs(level)), shape.right[0]
    for boundary, value in [
        (left + right + ATRIAL_WALL, signal["myocardium"]),
        (left + right, signal["blood"]),
        (left, signal["myocardium"]),
        (left - ATRIAL_WALL, signal["blood"]),
    ]:
        inside = _inside(boundary, polar, voxel)
        picture = picture * (1 - inside) + value * inside
    return picture


def _papillaries(
    heart: Heart,
    shape: Shape,
    level: float,
    polar: _Polar,
    picture: np.ndarray,
    radius: float,
    voxel: float,
    signal: Mapping[str, float],
) -> np.ndarray:
    """Draw the two papillary muscles of the middle third; they turn with the twisting wall."""
    share = level / shape.z[-1]
    size = heart.papillary_size * float(heart.endo_at_rest.max()) * np.clip(4 * min(share - 0.2, 0.75 - share), 0, 1)
    if size <= 0.5:
        return picture
    angle = polar.angle * (2 * np.pi / ANGLES)
    for direction in (-0.65, 2.0):  # posteromedial and anterolateral, away from the septum
        there = direction + heart.rv_direction - np.pi + float(np.interp(level, shape.z, shape.twist))
        reach = max(radius - 0.9 * size, 0.0)
        distance = np.sqrt(
            np.clip(polar.radius**2 + reach**2 - 2 * polar.radius * reach * np.cos(angle - there), 0, None)
        )
        inside = np.clip((min(size, 0.45 * radius) - distance) / voxel + 0.5, 0, 1)
        picture = picture * (1 - inside) + signal["myocardium"] * inside
    return picture


def _labels(shape: Shape, level: float, polar: _Polar) -> np.ndarray:
    labels = np.zeros(polar.radius.shape, np.uint8)
    if not 0 <= level <= shape.z[-1]:
        return labels
    endo, epi, right = (_row(table, shape.z, level)[polar.angle] for table in (shape.endo, shape.epi, shape.right))
    labels[polar.radius < epi + right] = RV
    labels[polar.radius < epi] = MYOCARDIUM
    labels[polar.radius < endo] = LV
    return labels


def _acquire(
    image: np.ndarray,
    labels: np.ndarray,
    heart: Heart,
    spacing: tuple[float, float, float],
    random: np.random.Generator,
    scanner: Vendor,
) -> np.ndarray:
    """Add flow, the blur of the point spread, coil shading and Rician noise; convert to grey levels."""
    height, width, _, frames = image.shape
    flow = gaussian_filter(random.standard_normal(image.shape), (6 / spacing[0], 6 / spacing[1], 0, 1.0))
    flow /= flow.std()
    speed = np.abs(np.gradient([heart.volumes(t / frames)[0] for t in range(frames)]))
    blood = (labels == LV) | (labels == RV)
    image = image * (1 - 0.05 * np.abs(flow) * (0.4 + speed / max(speed.max(), 1e-9)) * blood)
    image = gaussian_filter(image, (scanner.blur, scanner.blur, 0, 0))
    x, y = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    slope = random.uniform(-0.12, 0.12, 2)
    shading = 1 + slope[0] * x + slope[1] * y + 0.18 * np.clip(y, -1, 1) - 0.08 * (x**2 + y**2)
    shading = 1 + (shading - 1) * scanner.shading if scanner.shading != 1.0 else shading
    image = image * shading[:, :, None, None]
    sigma = random.uniform(0.018, 0.032) * scanner.noise
    noise = random.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    magnitude = np.hypot(image + noise[0], noise[1])
    return np.rint(magnitude * GREY_LEVELS).clip(0, np.iinfo(np.int16).max).astype(np.int16)
