"""The anatomy of a synthetic chest: outlines of body, lungs and organs, and the tubes of airways, vessels and bones.

Positions are in mm from the middle of the chest: x to the patient's left, y to the front, z to the head. Lengths in
the code are those of an average adult; `Chest.scale` stretches them. An outline is a function that returns how far
points are outside it, in mm, negative inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y and z, of shapes that broadcast
Outline = Callable[[Points], np.ndarray]
Waypoints = Sequence[tuple[float, float, float, float]]  # x, y, z and radius

# Cross-sections from the waist to the neck: half width, and y of the front and the back.
LEVELS = (-170, -100, -50, 0, 40, 70, 95, 115, 150)
CAVITY = (
    PchipInterpolator(LEVELS, (126, 132, 132, 125, 113, 98, 79, 56, 40)),
    PchipInterpolator(LEVELS, (90, 93, 92, 80, 63, 47, 31, 18, 8)),
    PchipInterpolator(LEVELS, (-94, -93, -92, -89, -82, -73, -63, -53, -42)),
)
BODY = (
    PchipInterpolator(LEVELS, (140, 147, 149, 150, 152, 157, 163, 166, 168)),
    PchipInterpolator(LEVELS, (106, 110, 110, 101, 92, 80, 68, 56, 46)),
    PchipInterpolator(LEVELS, (-114, -118, -120, -120, -116, -112, -106, -100, -86)),
)
SPINE = PchipInterpolator(LEVELS, (-56, -60, -62, -60, -54, -48, -42, -36, -24))  # y of the vertebral bodies
POWER = 2.25  # exponent of the oval of the ribcage

VERTEBRA, FIRST_VERTEBRA, VERTEBRAE = 24.0, 128.0, 13  # height, z of the first, number
# Each rib: how far it falls from the spine to its front end (mm), and the angle of that end from the side to the front.
RIBS = (
    (36, 62), (54, 62), (70, 63), (83, 64), (94, 63), (102, 60), (107, 54), (106, 47), (100, 38), (88, 27), (55, -8),
    (32, -35),
)  # fmt: skip

# Where the bronchi and arteries of the five lobes begin, and their radii; the same for the four pulmonary veins.
LOBES = {(-41, -24, 28): 4.4, (-46, -14, -5): 3.4, (-40, -33, -14): 4.8, (50, -16, 17): 4.6, (46, -38, -6): 4.8}
VEINS = {(-44, 2, 2): 6.0, (-42, -22, -24): 6.0, (46, 4, 4): 6.0, (44, -26, -20): 6.0}
ARTERY = 1.35  # radius of an artery over that of the bronchus beside it
BESIDE = np.array([0.0, 7.0, 4.0])  # mm from a bronchus to its artery
TWIGS = 1000  # of each of the two trees
THINNEST_AIRWAY = 1.4  # mm; thinner ones cannot be seen in a CT

# The axis of the left ventricle from the base to the apex, and two axes across it.
APEX = np.array([0.68, 0.50, -0.54])
LEFT_AXES = np.linalg.qr(np.stack([APEX, [0, 0, 1.0], [0, 1.0, 0]], axis=1))[0].T


def outside_ellipsoid(points: Points, centre: np.ndarray, semi: np.ndarray) -> np.ndarray:
    """Approximate the distance to an ellipsoid's surface to first order."""
    steps = [p - c for p, c in zip(points, centre.tolist(), strict=True)]
    first = np.sqrt(sum((step / s) ** 2 for step, s in zip(steps, semi.tolist(), strict=True)))
    second = np.sqrt(sum((step / s**2) ** 2 for step, s in zip(steps, semi.tolist(), strict=True)))
    return first * (first - 1) / np.maximum(second, 1e-6)


def outside_oval(across: np.ndarray, along: np.ndarray, power: float) -> np.ndarray:
    """Return the radius relative to an oval of half axes 1, which becomes a rectangle as `power` grows."""
    return (np.abs(across) ** power + np.abs(along) ** power) ** (1 / power)


def smooth_min(one: np.ndarray, two: np.ndarray, width: float) -> np.ndarray:
    """Return the union of two outlines, with the seam rounded over `width` mm."""
    share = np.clip(0.5 + (two - one) * (0.5 / width), 0, 1)
    return two + (one - two) * share - width * share * (1 - share)


def outside_at(outside: Outline, places: np.ndarray) -> np.ndarray:
    """Evaluate an outline at places (N, 3)."""
    x, y, z = places.T
    return outside((x, y, z))


@dataclass(frozen=True)
class Tubes:
    """Straight conical tubes with round ends: starts and ends (N, 3), radii (N,)."""

    starts: np.ndarray
    ends: np.ndarray
    start_radii: np.ndarray
    end_radii: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[Tubes]") -> "Tubes":
        fields = ("starts", "ends", "start_radii", "end_radii")
        return cls(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))

    def with_mirrored(self) -> "Tubes":
        """Return these tubes and their mirror images on the other side of the body."""
        mirror = np.array([-1.0, 1, 1])
        return Tubes.joined([self, Tubes(self.starts * mirror, self.ends * mirror, self.start_radii, self.end_radii)])

    def moved(self, by: np.ndarray) -> "Tubes":
        return Tubes(self.starts + by, self.ends + by, self.start_radii, self.end_radii)

    def thickened(self, by: float, factor: float = 1.0) -> "Tubes":
        return Tubes(self.starts, self.ends, self.start_radii * factor + by, self.end_radii * factor + by)

    def thicker_than(self, radius: float) -> "Tubes":
        keep = self.end_radii >= radius
        return Tubes(self.starts[keep], self.ends[keep], self.start_radii[keep], self.end_radii[keep])

    def distance(self, point: np.ndarray) -> float:
        """Return the distance from a point to the nearest wall."""
        axes = self.ends - self.starts
        share = ((point - self.starts) * axes).sum(1) / np.maximum((axes**2).sum(1), 1e-9)
        nearest = self.starts + np.clip(share, 0, 1)[:, None] * axes
        return float((np.linalg.norm(point - nearest, axis=1) - self.start_radii).min())


def grow_tree(root: np.ndarray, ends: np.ndarray, radius: float, outside: Outline) -> Tubes:
    """Fill a region with a tree: a branch goes part of the way to the middle of the points it feeds, then they split.

    The method of Tawhai et al., Ann Biomed Eng 28:793 (2000), one generation at a time. The cube of a branch's radius
    is proportional to the number of points it feeds (Murray's law).
    """
    starts, fed, parent_counts, parts = root[None], [ends], np.array([len(ends)]), []
    while fed:
        counts = np.array([len(points) for points in fed])
        middles = np.array([points.mean(axis=0) for points in fed])
        tips = starts + np.where(counts > 1, 0.42, 0.85)[:, None] * (middles - starts)
        for i in np.flatnonzero(outside_at(outside, tips) > -2):  # the points themselves are inside
            tips[i] = fed[i][np.linalg.norm(fed[i] - tips[i], axis=1).argmin()]
        start_radii, end_radii = (radius * (n / len(ends)) ** (1 / 3) for n in (parent_counts, counts))
        parts.append(Tubes(starts, tips, start_radii, end_radii))
        forks = np.flatnonzero(counts > 1)
        fed = [half for i in forks for half in _halves(fed[i], tips[i] - starts[i])]
        starts, parent_counts = np.repeat(tips[forks], 2, axis=0), np.repeat(counts[forks], 2)
    return Tubes.joined(parts)


def _halves(points: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split points where they spread widest, mostly across the direction of flow."""
    along = way / max(np.linalg.norm(way), 1e-9)
    spread = points - points.mean(axis=0)
    spread = spread - 0.7 * (spread @ along)[:, None] * along
    order = np.argsort(spread @ np.linalg.eigh(spread.T @ spread)[1][:, -1])
    return points[order[: len(points) // 2]], points[order[len(points) // 2 :]]


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
    """One chest. Lengths in mm; the positions of twigs and nodules follow from the seed.

    Args:
        scale: width, depth and height relative to the average.
        fat: thickness under the skin.
        breasts: how far they stand out; 0 for none.
        heart: its size, 1 for average.
        domes: how much higher than average the right and the left diaphragm are.
        aorta: width of the vessels, 1 for average.
        blood: Hounsfield units; about 40 without contrast medium.
        lung: Hounsfield units half-way between front and back.
        bend: sideways bend of the spine.
        nodule_radii: from large to small.
        seed: random seed of the trees, the nodules and the texture.
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
        """Return where a position of the average chest is in this one."""
        return np.array([x, y, z]) * self.scale

    def curve(self, waypoints: Waypoints, step: float = 8.0, width: float = 1.0) -> Tubes:
        """Return a smooth tube through waypoints of the average chest."""
        through = np.array(waypoints, dtype=float) * [*self.scale, width]
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(through[:, :3], axis=0), axis=1))]
        smooth = PchipInterpolator(length, through)(np.linspace(0, length[-1], max(2, round(length[-1] / step) + 1)))
        return Tubes(smooth[:-1, :3], smooth[1:, :3], smooth[:-1, 3], smooth[1:, 3])

    # ---- Outlines

    def outside_cavity(self, points: Points) -> np.ndarray:
        """The inside of the ribs."""
        return self._outside_ovals(points, CAVITY, POWER)

    def outside_muscle(self, points: Points) -> np.ndarray:
        """Everything under the fat."""
        return self._outside_ovals(points, BODY, 2.5)

    def _outside_ovals(self, points: Points, profiles: Sequence[PchipInterpolator], power: float) -> np.ndarray:
        """Distance to the oval of each point's own level."""
        x, y, z = points
        width, front, back = (self._at_level(z, profile) for profile in profiles)
        y = y - (front + back) * (self.scale[1] / 2)
        share = outside_oval(x / (width * self.scale[0]), y / ((front - back) * (self.scale[1] / 2)), power)
        return np.sqrt(x**2 + y**2) * (1 - 1 / np.maximum(share, 0.05))

    def _at_level(self, z: np.ndarray, profile: PchipInterpolator) -> np.ndarray:
        return profile(np.clip(z / self.scale[2], LEVELS[0], LEVELS[-1])).astype(z.dtype)

    def spine(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the middle of the vertebral bodies."""
        return self.bend * np.cos(z / (55 * self.scale[2])), self._at_level(z, SPINE) * self.scale[1]

    def breast_bone(self, z: np.ndarray) -> np.ndarray:
        """Return y of its middle."""
        return self._at_level(z, CAVITY[1]) * self.scale[1] + 7

    def outside_diaphragm(self, points: Points) -> np.ndarray:
        """The two domes over the abdomen."""
        right = outside_ellipsoid(points, self.place(-66, 13, -142 + self.domes[0]), self.place(76, 86, 76))
        left = outside_ellipsoid(points, self.place(68, 11, -148 + self.domes[1]), self.place(74, 86, 72))
        middle = outside_ellipsoid(points, self.place(4, 28, -142), self.place(66, 66, 56))
        return smooth_min(smooth_min(right, left, 6.0), middle, 12.0)

    @cached_property
    def chambers(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Centre and half axes of the heart's chambers with their walls; the left ventricle has its own axes."""
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
        """One chamber inside a wall."""
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
        """Add the mediastinum: heart, great vessels, trachea and spine, surrounded by fat."""
        x, y, z = points
        spine_x, spine_y = self.spine(z)
        front = self._at_level(z, CAVITY[1]) * self.scale[1]
        behind_bone = np.clip((y - front + 20) / 20, 0, 1) ** 2
        joined = np.abs(x - 3) - 2 - 14 * behind_bone - 16 * np.clip((z / self.scale[2] - 40) / 60, 0, 1)
        joined = smooth_min(joined, np.sqrt((x - spine_x) ** 2 + (y - spine_y) ** 2) - 22, 8.0)
        joined = smooth_min(joined, np.sqrt((x - spine_x) ** 2 + (y - spine_y + 36) ** 2) - 25, 8.0)
        joined = smooth_min(joined, self.outside_heart(points) - 4, 8.0)
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
            joined = smooth_min(joined, outside_ellipsoid(points, self.place(*centre), self.place(*semi)), 9.0)
        return joined

    def outside_lungs(self, points: Points) -> np.ndarray:
        """Inside the ribs, above the diaphragm, beside the mediastinum, and round at both ends."""
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

    # ---- Tubes

    @cached_property
    def windpipe(self) -> Tubes:
        """Trachea and main bronchi down to the lobes."""
        right, left = (-33, -25, 4, 5.4), (40, -27, 12, 5.4)
        trunks = [
            self.curve([(0, 6, 150, 8.2), (0, -6, 105, 8.4), (2, -17, 70, 8.6), (2, -22, 43, 8.8)]),
            self.curve([(2, -22, 43, 7.5), (-12, -24, 32, 6.8), (-26, -25, 22, 6.2), right]),
            self.curve([(2, -22, 43, 7.2), (16, -25, 30, 6.2), (32, -27, 18, 5.8), left]),
        ]
        return Tubes.joined([*trunks, *(self.curve([right if x < 0 else left, (x, y, z, r)])
                                        for (x, y, z), r in LOBES.items())])  # fmt: skip

    @cached_property
    def great_vessels(self) -> Tubes:
        """Arteries and veins of the mediastinum."""
        paths: list[Waypoints] = [
            [(6, 14, -16, 15), (-10, 25, 4, 16), (-18, 27, 28, 16), (-13, 18, 48, 15), (0, 0, 58, 14),
             (15, -20, 56, 13), (24, -37, 42, 13), (26, -43, 18, 12.5), (24, -45, -40, 12), (16, -38, -100, 11.5),
             (7, -32, -170, 11)],  # aorta
            [(-9, 12, 56, 7), (-18, 8, 80, 6), (-30, 2, 118, 5.5), (-34, 6, 160, 5)],  # to the head, on the right
            [(14, -18, 64, 6), (22, -20, 90, 5), (22, 4, 160, 4)],  # to the head, on the left
            [(-27, 16, -14, 11), (-27, 20, 52, 10), (-24, 22, 72, 9), (-40, 16, 160, 7)],  # superior vena cava
            [(-22, 4, -50, 12), (-22, 0, -90, 12), (-18, -8, -170, 12)],  # inferior vena cava
            [(24, 44, -14, 14), (22, 36, 6, 14), (19, 20, 20, 13)],  # pulmonary trunk
            [(18, 18, 20, 12), (30, 0, 26, 11), (42, -16, 22, 9.5), (46, -24, 10, 8)],  # left pulmonary artery
            [(17, 14, 16, 12), (0, 0, 16, 11), (-24, -4, 13, 10), (-42, -10, 10, 8.5)],  # right pulmonary artery
        ]  # fmt: skip
        return Tubes.joined([self.curve(path, width=self.aorta) for path in paths])

    @cached_property
    def trees(self) -> tuple[Tubes, Tubes]:
        """Airways and vessels of the lungs: arteries beside the airways, veins between them."""
        random = np.random.default_rng([self.seed, 1])
        bronchi, veins = self._grow(LOBES, random, depth=10), self._grow(VEINS, random, depth=3)
        links = []
        for x, y, z in LOBES:
            trunk = (46, -24, 10) if x > 0 else (-42, -10, 10)
            links.append(self.curve([(*trunk, 6.5), (x, y + BESIDE[1], z + BESIDE[2], 6.0)]))
        links += [self.curve([(np.sign(x) * 24, -14, -14, 7), (x, y, z, 6)]) for x, y, z in VEINS]
        arteries = bronchi.moved(BESIDE).thickened(0, ARTERY)
        airways = Tubes.joined([self.windpipe, bronchi.thicker_than(THINNEST_AIRWAY)])
        return airways, Tubes.joined([arteries, veins, *links])

    def _grow(self, roots: dict[tuple[int, int, int], float], random: np.random.Generator, depth: float) -> Tubes:
        """Grow one tree from each root to the ends that are nearest to it, `depth` mm inside the lungs."""
        ends = self._places_in_lungs(random, TWIGS, depth)
        starts = np.array([self.place(*root) for root in roots])
        nearest = (((ends[:, None] - starts) * [2, 1, 1]) ** 2).sum(axis=2).argmin(axis=1)  # on its own side
        return Tubes.joined(
            [
                grow_tree(start, ends[nearest == i], radius, self.outside_lungs)
                for i, (start, radius) in enumerate(zip(starts, roots.values(), strict=True))
            ]
        )

    def _places_in_lungs(self, random: np.random.Generator, number: int, depth: float) -> np.ndarray:
        """Draw points (N, 3) at least `depth` mm inside the lungs."""
        places = np.zeros((0, 3))
        while len(places) < number:
            tried = random.uniform((-135, -95, -145), (135, 95, 115), (4 * number, 3)) * self.scale
            places = np.concatenate([places, tried[outside_at(self.outside_lungs, tried) < -depth]])
        return places[:number]

    @cached_property
    def nodules(self) -> tuple[Nodule, ...]:
        """Wholly inside the lungs, apart from each other and from visible vessels and airways."""
        random = np.random.default_rng([self.seed, 2])
        airways, vessels = self.trees
        obstacles = Tubes.joined([airways, vessels.thicker_than(1.8)])
        nodules: list[Nodule] = []
        for radius in self.nodule_radii:
            for place in self._places_in_lungs(random, TWIGS, 1.3 * radius + 2):
                apart = all(np.linalg.norm(place - other.centre) > radius + other.radius + 5 for other in nodules)
                if apart and obstacles.distance(place) > radius + 1:
                    centre = (float(place[0]), float(place[1]), float(place[2]))
                    nodules.append(Nodule(centre, radius, float(random.uniform(15, 70))))
                    break
        return tuple(nodules)

    @cached_property
    def ribs(self) -> Tubes:
        bones, share = [], np.linspace(0, 1, 24)
        for (fall, end), level in zip(RIBS, FIRST_VERTEBRA - VERTEBRA * np.arange(VERTEBRAE), strict=False):
            z = self.scale[2] * (level + 6 * np.sin(np.pi * np.minimum(4 * share, 1)) - fall * share)
            angle = np.deg2rad(np.linspace(-74, end, len(share)))
            width, front, back = (self._at_level(z, profile) for profile in CAVITY)
            x = width * np.abs(np.cos(angle)) ** (2 / POWER) * self.scale[0] + 6.5 * np.cos(angle)
            oval = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / POWER)
            y = ((front + back) + (front - back) * oval) / 2 * self.scale[1] + 6.5 * np.sin(angle)
            spine_x, spine_y = self.spine(z[:1])
            path = np.concatenate([[[spine_x[0] + 19, spine_y[0] - 12, z[0]]], np.stack([x, y, z], axis=1)])
            radius = np.full(len(path) - 1, 4.8)
            bones.append(Tubes(path[:-1], path[1:], radius, radius))
        return Tubes.joined(bones).with_mirrored()

    @cached_property
    def shoulders(self) -> Tubes:
        """Collar bones, shoulder blades and upper arms, raised."""
        paths: list[Waypoints] = [
            [(13, 44, 94, 8), (44, 46, 100, 5.5), (90, 20, 113, 5), (142, -10, 126, 6)],  # collar bone
            [(78, -94, 92, 3.5), (120, -76, 108, 5), (150, -40, 126, 7)],  # ridge of the shoulder blade
            [(78, -94, 92, 3.5), (96, -98, 24, 3.5), (138, -42, 98, 8)],  # its edges
            [(138, -42, 98, 10), (146, -36, 106, 11)],  # its socket
            [(164, -22, 118, 20), (176, -12, 160, 13)],  # upper arm
        ]
        return Tubes.joined([self.curve(path) for path in paths]).with_mirrored()


def draw_chest(random: np.random.Generator) -> Chest:
    """Draw an adult's chest, with or without contrast medium, and a few nodules."""

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
        # 4 to 15 mm; small ones are common.
        nodule_radii=tuple(sorted((4 + 11 * random.random(count) ** 2).tolist(), reverse=True)),
        seed=int(random.integers(2**31)),
    )
