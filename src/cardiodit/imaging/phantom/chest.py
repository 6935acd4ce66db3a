"""A chest as numbers: the outlines of body, ribcage, lungs and heart, and the trees of airways and vessels.

Positions are in mm from the middle of the chest: x to the patient's left, y to the front, z to the head. Lengths in
the code are those of an average adult; a chest stretches them by its `scale`. An outline is a function that says how
far a point lies outside it, in mm, negative within.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

from cardiodit.imaging.phantom.tubes import Points, Tubes, grow_tree, link, outside_at

Waypoints = Sequence[tuple[float, float, float, float]]  # x, y, z and radius

# Outlines from the waist to the neck: half widths, and where they end in front and at the back.
LEVELS = (-170, -100, -50, 0, 40, 70, 95, 115, 150)
CAVITY_WIDTH = PchipInterpolator(LEVELS, (126, 132, 132, 125, 113, 98, 79, 56, 40))
CAVITY_FRONT = PchipInterpolator(LEVELS, (90, 93, 92, 80, 63, 47, 31, 18, 8))
CAVITY_BACK = PchipInterpolator(LEVELS, (-94, -93, -92, -89, -82, -73, -63, -53, -42))
BODY_WIDTH = PchipInterpolator(LEVELS, (140, 147, 149, 150, 152, 157, 163, 166, 168))
BODY_FRONT = PchipInterpolator(LEVELS, (106, 110, 110, 101, 92, 80, 68, 56, 46))
BODY_BACK = PchipInterpolator(LEVELS, (-114, -118, -120, -120, -116, -112, -106, -100, -86))
SPINE = PchipInterpolator(LEVELS, (-56, -60, -62, -60, -54, -48, -42, -36, -24))  # y of the vertebral bodies

POWER = 2.25  # of the oval that the ribs form

VERTEBRA = 24.0  # from one to the next
FIRST_VERTEBRA = 128.0
VERTEBRAE = 13  # the last without ribs
BACK_OF_SPINE = 24.0  # from the middle of a vertebral body to that of the canal

# What a lobe's bronchus and artery begin with: where they begin and their radii.
LOBES = {
    "right upper": ((-41, -24, 28), 4.4, 5.8),
    "right middle": ((-46, -14, -5), 3.4, 4.4),
    "right lower": ((-40, -33, -14), 4.8, 6.8),
    "left upper": ((50, -16, 17), 4.6, 6.0),
    "left lower": ((46, -38, -6), 4.8, 6.8),
}
# Where the pulmonary veins leave the lungs, and the lobes that they drain.
VEINS = {
    (-44, 2, 2): ("right upper", "right middle"),
    (-42, -22, -24): ("right lower",),
    (46, 4, 4): ("left upper",),
    (44, -26, -20): ("left lower",),
}

# The left ventricle's axis, from the base to the apex, and two across it.
APEX = np.array([0.68, 0.50, -0.54])
LEFT_AXES = np.linalg.qr(np.stack([APEX, [0, 0, 1.0], [0, 1.0, 0]], axis=1))[0].T

ENDS = 1500  # twigs of each of the two trees
THINNEST_AIRWAY = 1.4  # mm; a CT shows none that are thinner


def outside_ellipsoid(points: Points, centre: np.ndarray, semi: np.ndarray) -> np.ndarray:
    """To first order, as far from the surface as one is."""
    steps = [p - c for p, c in zip(points, centre.tolist(), strict=True)]
    first = np.sqrt(sum((step / s) ** 2 for step, s in zip(steps, semi.tolist(), strict=True)))
    second = np.sqrt(sum((step / s**2) ** 2 for step, s in zip(steps, semi.tolist(), strict=True)))
    return first * (first - 1) / np.maximum(second, 1e-6)


def outside_oval(across: np.ndarray, along: np.ndarray, power: float) -> np.ndarray:
    """Share by which one is outside an oval of half axes 1, which becomes a rectangle as `power` grows."""
    return (np.abs(across) ** power + np.abs(along) ** power) ** (1 / power)


def smooth_min(one: np.ndarray, two: np.ndarray, width: float) -> np.ndarray:
    """The union of two outlines, with the seam filled over `width` mm."""
    share = np.clip(0.5 + (two - one) * (0.5 / width), 0, 1)
    return two + (one - two) * share - width * share * (1 - share)


@dataclass(frozen=True)
class Nodule:
    centre: tuple[float, float, float]  # mm
    radius: float  # mm
    hounsfield: float

    @property
    def volume_ml(self) -> float:
        return 4 / 3 * np.pi * self.radius**3 / 1000


@dataclass(frozen=True)
class Chest:
    """One chest. Lengths in mm; positions of the twigs and nodules follow from the seed.

    Args:
        scale: how much wider, deeper and taller than average.
        fat: thickness under the skin.
        breasts: how far they stand out; 0 for none.
        heart: its size, 1 for average.
        domes: how much higher than average the right and the left diaphragm stand.
        aorta: width of the vessels, 1 for average.
        blood: Hounsfield units; about 40 without contrast medium.
        lung: Hounsfield units half-way between front and back.
        bend: the side to which the spine bends, and how far.
        nodule_radii: from large to small.
        seed: of the trees, of where the nodules lie and of the texture.
    """

    scale: tuple[float, float, float]
    fat: float
    breasts: float
    heart: float
    domes: tuple[float, float]
    aorta: float
    blood: float
    lung: float
    bend: float
    nodule_radii: tuple[float, ...]
    seed: int

    def place(self, x: float, y: float, z: float) -> np.ndarray:
        """Where a place of the average chest lies in this one."""
        return np.array([x, y, z]) * self.scale

    def curve(self, waypoints: Waypoints, step: float = 7.0) -> Tubes:
        """A smooth tube through waypoints of the average chest."""
        through = np.array(waypoints, dtype=float)
        through[:, :3] *= self.scale
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(through[:, :3], axis=0), axis=1))]
        smooth = PchipInterpolator(length, through)(np.linspace(0, length[-1], max(2, round(length[-1] / step) + 1)))
        return Tubes(smooth[:-1, :3], smooth[1:, :3], smooth[:-1, 3], smooth[1:, 3])

    def outside_cavity(self, points: Points) -> np.ndarray:
        """The inside of the ribs."""
        return self._outside_ovals(points, (CAVITY_WIDTH, CAVITY_FRONT, CAVITY_BACK), POWER)

    def outside_muscle(self, points: Points) -> np.ndarray:
        """All that lies under the fat."""
        return self._outside_ovals(points, (BODY_WIDTH, BODY_FRONT, BODY_BACK), 2.5)

    def _outside_ovals(self, points: Points, profiles: Sequence[PchipInterpolator], power: float) -> np.ndarray:
        """How far outside the oval of one's own level."""
        x, y, z = points
        width, front, back = self._levels(z, *profiles)
        y = y - (front + back) * (self.scale[1] / 2)
        share = outside_oval(x / (width * self.scale[0]), y / ((front - back) * (self.scale[1] / 2)), power)
        return np.sqrt(x**2 + y**2) * (1 - 1 / np.maximum(share, 0.05))

    def _levels(self, z: np.ndarray, *profiles: PchipInterpolator) -> list[np.ndarray]:
        level = np.clip(z / self.scale[2], LEVELS[0], LEVELS[-1])
        return [profile(level).astype(z.dtype) for profile in profiles]

    def spine(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the middle of the vertebral bodies."""
        (y,) = self._levels(z, SPINE)
        return self.bend * np.cos(z / (55 * self.scale[2])), y * self.scale[1]

    def outside_diaphragm(self, points: Points) -> np.ndarray:
        """What the two domes are above."""
        right = outside_ellipsoid(points, self.place(-66, 13, -142 + self.domes[0]), self.place(76, 86, 76))
        left = outside_ellipsoid(points, self.place(68, 11, -148 + self.domes[1]), self.place(74, 86, 72))
        middle = outside_ellipsoid(points, self.place(4, 28, -142), self.place(66, 66, 56))
        return smooth_min(smooth_min(right, left, 6.0), middle, 12.0)

    @cached_property
    def chambers(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Middle and half axes of the heart's parts, muscle included; the left ventricle lies along its own axis."""
        centre = np.array([14.0, 16.0, -36.0])
        average = {
            "left atrium": ((4, -10, -18), (34, 22, 26)),
            "right atrium": ((-27, 19, -34), (22, 28, 36)),
            "right ventricle": ((18, 46, -46), (44, 26, 36)),
            "left ventricle": ((42, 21, -48), (49, 32, 32)),
        }
        size = self.heart * np.array(self.scale)
        return {
            name: (self.scale * centre + size * (np.array(place) - centre), size * np.array(semi))
            for name, (place, semi) in average.items()
        }

    def outside_chamber(self, name: str, points: Points, wall: float = 0.0) -> np.ndarray:
        """A part of the heart within a wall."""
        centre, semi = self.chambers[name]
        if name != "left ventricle":
            return outside_ellipsoid(points, centre, semi - wall)
        x, y, z = (p - np.float32(c) for p, c in zip(points, centre, strict=True))
        x, y, z = (x * a + y * b + z * c for a, b, c in LEFT_AXES.tolist())
        return outside_ellipsoid((x, y, z), np.zeros(3), semi - wall)

    def outside_heart(self, points: Points) -> np.ndarray:
        first, *rest = (self.outside_chamber(name, points) for name in self.chambers)
        for other in rest:
            first = smooth_min(first, other, 12.0)
        return first

    def outside_mediastinum(self, points: Points) -> np.ndarray:
        """What lies between the lungs: heart, great vessels, windpipe and spine, wrapped in fat."""
        x, y, z = points
        spine_x, spine_y = self.spine(z)
        (front,) = self._levels(z, CAVITY_FRONT)
        behind_bone = np.clip((y - front * self.scale[1] + 20) / 20, 0, 1) ** 2
        found = np.abs(x - 3) - 2 - 14 * behind_bone - 16 * np.clip((z / self.scale[2] - 40) / 60, 0, 1)  # two pleurae
        found = smooth_min(found, np.sqrt((x - spine_x) ** 2 + (y - spine_y) ** 2) - 22, 8.0)
        found = smooth_min(found, np.sqrt((x - spine_x) ** 2 + (y - spine_y + 36) ** 2) - 25, 8.0)
        found = smooth_min(found, self.outside_heart(points) - 4, 8.0)
        for centre, semi in (
            ((-2, 0, 105), (34, 34, 70)),  # windpipe and the vessels of the neck
            ((-4, 18, 32), (40, 30, 52)),  # ascending aorta, pulmonary trunk, superior vena cava
            ((4, -12, 48), (34, 40, 26)),  # aortic arch
            ((2, -14, 10), (46, 28, 30)),  # roots of the lungs
            ((24, -42, -20), (17, 16, 120)),  # descending aorta
            ((6, -24, -50), (18, 30, 90)),  # oesophagus
            ((-8, 6, -72), (26, 30, 28)),  # inferior vena cava
            ((16, 34, -82), (46, 40, 20)),  # where the heart lies on the diaphragm
        ):
            found = smooth_min(found, outside_ellipsoid(points, self.place(*centre), self.place(*semi)), 9.0)
        return found

    def outside_lungs(self, points: Points) -> np.ndarray:
        """Within the ribs, above the diaphragm, beside the mediastinum, and round at both ends."""
        x, y, z = points
        across, deep, tall = self.scale
        level = z / tall + 70
        height = np.minimum(np.maximum(level / 184, -level / 86), 1.2) ** 2.6
        middle_x, middle_y = across * (66 - 0.1 * level), deep * (-2 - 0.11 * level)
        width = outside_oval((np.abs(x) - middle_x) / (across * 84), (y - middle_y) / (deep * 112), 2.6)
        dome = ((width**2.6 + height) ** (1 / 2.6) - 1) * 80
        within = -smooth_min(-(self.outside_cavity(points) + 1.5), -dome, 6.0)
        beside = smooth_min(self.outside_mediastinum(points), self.outside_diaphragm(points) - 3, 5.0)
        return np.maximum(within, -beside)

    def lobe_of(self, places: np.ndarray) -> np.ndarray:
        """Names of the lobes of points (N, 3)."""
        x, y, z = places.T
        oblique, horizontal = self.above_fissures((x, y, z))
        part = np.where(oblique < 0, "lower", np.where((x < 0) & (horizontal < 0), "middle", "upper"))
        return np.char.add(np.where(x < 0, "right ", "left "), part)

    def above_fissures(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """How far above the oblique fissures, and above the horizontal one of the right lung."""
        x, y, z = (p / np.float32(s) for p, s in zip(points, self.scale, strict=True))
        bow = 14 * ((np.abs(x) - 75) / 60) ** 2
        oblique = (z - 50 + 0.86 * (y + 85) + bow - 8 * np.sin(y / 28)) * 0.76
        return oblique, z - 2 - 10 * np.cos((y - 20) / 40) + bow

    def on_ribcage(self, angle: np.ndarray, z: np.ndarray, off: float) -> np.ndarray:
        """Places (N, 3) on the left wall of the chest, `off` mm outside; angles run from the side to the front."""
        level = np.clip(z / self.scale[2], LEVELS[0], LEVELS[-1])
        width, front, back = CAVITY_WIDTH(level), CAVITY_FRONT(level), CAVITY_BACK(level)
        cosine, sine = np.cos(angle), np.sin(angle)
        x = width * np.abs(cosine) ** (2 / POWER) * self.scale[0]
        y = ((front + back) + (front - back) * np.sign(sine) * np.abs(sine) ** (2 / POWER)) / 2 * self.scale[1]
        return np.stack([x + off * cosine, y + off * sine, z], axis=1)

    @cached_property
    def gullet(self) -> Tubes:
        return self.curve([(3, -8, 160, 7), (4, -20, 108, 7), (7, -34, 60, 7), (5, -37, 30, 7), (4, -38, -30, 8),
                           (14, -28, -90, 8), (22, -16, -108, 8)])  # fmt: skip

    def breast_bone(self, z: np.ndarray) -> np.ndarray:
        """y of its middle."""
        (front,) = self._levels(z, CAVITY_FRONT)
        return front * self.scale[1] + 7

    @cached_property
    def windpipe(self) -> Tubes:
        """Trachea and main bronchi down to the lobes."""
        return Tubes.joined(
            [
                self.curve([(0, 6, 150, 8.2), (0, -6, 105, 8.4), (2, -17, 70, 8.6), (2, -22, 43, 8.8)]),
                self.curve([(2, -22, 43, 7.5), (-12, -24, 32, 6.8), (-26, -25, 22, 6.2), (-33, -25, 4, 5.4)]),
                self.curve([(2, -22, 43, 7.2), (16, -25, 30, 6.2), (32, -27, 18, 5.8), (40, -27, 12, 5.4)]),
                self.curve([(-24, -25, 25, 5.0), (*LOBES["right upper"][0], 4.4)]),
                self.curve([(-33, -25, 4, 4.0), (*LOBES["right middle"][0], 3.4)]),
                self.curve([(-33, -25, 4, 5.2), (*LOBES["right lower"][0], 4.8)]),
                self.curve([(40, -27, 12, 5.0), (*LOBES["left upper"][0], 4.6)]),
                self.curve([(40, -27, 12, 5.2), (*LOBES["left lower"][0], 4.8)]),
            ]
        )

    @cached_property
    def great_vessels(self) -> Tubes:
        """Arteries and veins of the mediastinum."""
        width = self.aorta
        paths: list[Waypoints] = [
            [(6, 14, -16, 15), (-10, 25, 4, 16), (-18, 27, 28, 16), (-13, 18, 48, 15), (0, 0, 58, 14),
             (15, -20, 56, 13), (24, -37, 42, 13), (26, -43, 18, 12.5), (24, -45, -40, 12), (16, -38, -100, 11.5),
             (7, -32, -170, 11)],  # aorta
            [(-9, 12, 56, 7), (-18, 8, 80, 6), (-30, 2, 118, 5.5), (-34, 6, 160, 5)],  # to the right arm and the head
            [(3, -2, 66, 5), (14, -2, 95, 4), (22, 4, 160, 4)],  # to the head
            [(14, -18, 64, 6), (22, -20, 90, 5), (34, -16, 116, 5), (66, -6, 124, 4.5)],  # to the left arm
            [(-27, 16, -14, 11), (-29, 17, 20, 10), (-27, 20, 52, 10), (-24, 22, 72, 9), (-36, 16, 112, 8),
             (-40, 16, 160, 7)],  # superior vena cava
            [(60, -6, 124, 4.5), (118, 6, 88, 4), (148, 4, 100, 3.5), (160, 4, 150, 3)],  # to the left armpit
            [(-30, 2, 118, 5), (-60, -6, 124, 4.5), (-118, 6, 88, 4), (-148, 4, 100, 3.5), (-160, 4, 150, 3)],
            [(-24, 22, 68, 8), (-2, 30, 76, 7), (22, 24, 94, 7), (36, 14, 118, 7)],  # from the left arm
            [(-22, 4, -50, 12), (-22, 0, -90, 12), (-18, -8, -170, 12)],  # inferior vena cava
            [(24, 44, -14, 14), (22, 36, 6, 14), (19, 20, 20, 13)],  # pulmonary trunk
            [(18, 18, 20, 12), (30, 0, 26, 11), (42, -16, 22, 9.5), (46, -24, 10, 8)],  # left pulmonary artery
            [(17, 14, 16, 12), (0, 0, 16, 11), (-24, -4, 13, 10), (-42, -10, 10, 8.5)],  # right pulmonary artery
        ]  # fmt: skip
        return Tubes.joined([self.curve([(x, y, z, r * width) for x, y, z, r in path]) for path in paths])

    @cached_property
    def trees(self) -> tuple[Tubes, Tubes]:
        """Airways and vessels of the lungs: arteries run beside the airways, veins between them."""
        random = np.random.default_rng([self.seed, 1])
        airways, vessels = [], []
        ends = self._twigs(random)
        lobes = self.lobe_of(ends)
        for name, (root, air, blood) in LOBES.items():
            tree = grow_tree(self.place(*root), ends[lobes == name], random, self.outside_lungs)
            airways.append(tree.tubes(tree.radii(air, 2.6), THINNEST_AIRWAY))
            radii = tree.radii(blood, 2.8)
            beside = tree.beside(random.standard_normal(3), radii + tree.radii(air, 2.6) + 1.0)
            vessels.append(beside.tubes(radii))
            side = 1 if root[0] > 0 else -1
            trunk = self.place(46, -24, 10) if side > 0 else self.place(-42, -10, 10)
            vessels.append(link(trunk, beside.positions[0], blood + 0.5, blood))
        ends = self._twigs(random)
        lobes = self.lobe_of(ends)
        for root, names in VEINS.items():
            tree = grow_tree(self.place(*root), ends[np.isin(lobes, names)], random, self.outside_lungs)
            vessels.append(tree.tubes(tree.radii(6.0, 2.8)))
            vessels.append(link(self.place(np.sign(root[0]) * 24, -14, -14), self.place(*root), 7.0, 6.0))
        return Tubes.joined([self.windpipe, *airways]), Tubes.joined(vessels)

    def _twigs(self, random: np.random.Generator) -> np.ndarray:
        """Points (N, 3) spread over both lungs, where twigs end."""
        found = np.zeros((0, 3))
        while len(found) < ENDS:
            tried = random.uniform((-135, -95, -145), (135, 95, 115), (4 * ENDS, 3)) * self.scale
            found = np.concatenate([found, tried[outside_at(self.outside_lungs, tried) < -3]])
        return found[:ENDS]

    @cached_property
    def nodules(self) -> tuple[Nodule, ...]:
        """Wholly within the lungs, apart from each other and from vessels and airways that one would name."""
        random = np.random.default_rng([self.seed, 2])
        airways, vessels = self.trees
        found: list[Nodule] = []
        for radius in self.nodule_radii:
            places = self._twigs(random)
            for place in places[outside_at(self.outside_lungs, places) < -1.3 * radius - 2]:
                free = vessels.distance(place, 1.8) > radius + 1 and airways.distance(place) > radius + 1
                apart = [np.linalg.norm(place - other.centre) > radius + other.radius + 5 for other in found]
                if free and all(apart):
                    centre = (float(place[0]), float(place[1]), float(place[2]))
                    found.append(Nodule(centre, radius, float(random.uniform(15, 70))))
                    break
        return tuple(found)

    @cached_property
    def vertebrae(self) -> np.ndarray:
        """z of the middle of each vertebral body, from the first of the chest down."""
        return (FIRST_VERTEBRA - VERTEBRA * np.arange(VERTEBRAE)) * self.scale[2]


def draw_chest(random: np.random.Generator) -> Chest:
    """An adult's chest, with or without contrast medium, and a few nodules."""

    def between(low: float, high: float) -> float:
        return float(random.uniform(low, high))

    has_contrast, has_breasts = random.random(2) < 0.5
    size = between(0.95, 1.05)
    count = int(random.integers(2, 13))
    return Chest(
        scale=(size * between(0.98, 1.02), size * between(0.95, 1.05), size * between(0.98, 1.01)),
        fat=between(6, 18),
        breasts=between(8, 26) if has_breasts else 0.0,
        heart=between(0.9, 1.1),
        domes=(between(-10, 8), between(-10, 6)),
        aorta=between(0.9, 1.1),
        blood=between(150, 240) if has_contrast else between(36, 46),
        lung=between(-880, -820),
        bend=between(-3, 3),
        # Small ones are common; each 4 to 15 mm.
        nodule_radii=tuple(sorted((4 + 11 * random.random(count) ** 2).tolist(), reverse=True)),
        seed=int(random.integers(2**31)),
    )
