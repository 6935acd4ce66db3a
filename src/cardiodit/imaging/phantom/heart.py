"""The shape of a synthetic heart at end-diastole and its motion, with volumes known in closed form.

Shapes are in polar coordinates around the long axis of the left ventricle: radii in mm over the angle and over z, the
distance from the base towards the apex. The base stays in its plane and the apex moves towards it. Each piece of muscle
keeps its volume: it thickens as it shortens and moves inwards.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

ANGLES = 360  # samples of the circle
LEVELS = 240  # samples from base to apex
THETA = np.arange(ANGLES) * 2 * np.pi / ANGLES
ML = 1000.0  # mm³

# Share of the stroke volume that is out of the ventricle over one beat: ejection, fast filling, diastasis, atrial kick.
CYCLE_TIMES = (0.0, 0.05, 0.15, 0.25, 0.35, 0.42, 0.50, 0.60, 0.70, 0.80, 0.88, 0.95, 1.0)
CYCLE_VALUES = (0.0, 0.03, 0.45, 0.86, 1.0, 0.97, 0.66, 0.26, 0.14, 0.11, 0.09, 0.01, 0.0)
ejection = PchipInterpolator(CYCLE_TIMES, CYCLE_VALUES)


@dataclass(frozen=True)
class Group:
    """Ranges in adults by short-axis cine MRI: volumes in mL, ejection fractions, wall in mm."""

    lv_edv: tuple[float, float]
    lv_ef: tuple[float, float]
    wall: tuple[float, float]
    septum: tuple[float, float]  # thickness relative to the free wall
    rv_edv: tuple[float, float]
    rv_ef: tuple[float, float]
    shortening: tuple[float, float]  # of the long axis
    has_scar: bool = False


GROUPS = {
    "normal": Group((110, 165), (0.56, 0.70), (7.5, 9.5), (1.0, 1.1), (115, 170), (0.50, 0.62), (0.12, 0.17)),
    "dilated": Group((210, 270), (0.15, 0.34), (6.5, 8.5), (1.0, 1.1), (130, 190), (0.30, 0.48), (0.04, 0.08)),
    "hypertrophic": Group((85, 125), (0.66, 0.78), (12.5, 16.0), (1.1, 1.45), (95, 140), (0.52, 0.65), (0.09, 0.13)),
    "infarct": Group((150, 205), (0.30, 0.46), (7.0, 9.0), (1.0, 1.1), (110, 160), (0.45, 0.58), (0.07, 0.11), True),
}


@dataclass(frozen=True)
class Heart:
    """One heart. Volumes in mm³, lengths in mm, angles in radians with the picture's right at 0."""

    group: str
    lv_edv: float
    lv_ef: float
    length: float  # of the left cavity at end-diastole
    wall: float
    septum: float
    rv_edv: float
    rv_ef: float
    rv_direction: float
    rv_width: float  # half the angle that the right ventricle covers
    shortening: float
    twist: float  # of the apex relative to the base at end-systole
    scar_direction: float
    scar_width: float
    scar_depth: float  # 0: moves like the rest, 1: does not move
    heart_rate: float  # beats per minute
    papillary_size: float

    @cached_property
    def z(self) -> np.ndarray:
        """Levels at end-diastole, from the base to the outer apex: (LEVELS,)."""
        depth = self.length + 0.7 * self.wall
        return (np.arange(LEVELS) + 0.5) * depth / LEVELS

    @cached_property
    def endo_at_rest(self) -> np.ndarray:
        """Inner radius at end-diastole (LEVELS,): half an ellipsoid with the end-diastolic volume."""
        profile = np.clip(1 - (self.z / self.length) ** 2, 0, None)
        step = self.z[1] - self.z[0]
        return np.sqrt(profile * self.lv_edv / (np.pi * profile.sum() * step))

    @cached_property
    def epi_at_rest(self) -> np.ndarray:
        """Outer radius at end-diastole, (LEVELS, ANGLES); the septum may be thicker."""
        profile = np.sqrt(np.clip(1 - (self.z / (self.length + 0.7 * self.wall)) ** 2, 0, None))
        towards_septum = np.clip(np.cos(THETA - self.rv_direction), 0, None) ** 2
        wall = self.wall * (1 + (self.septum - 1) * towards_septum)
        outer = (self.endo_at_rest.max() + wall) * profile[:, None]
        return np.maximum(outer, self.endo_at_rest[:, None])

    @cached_property
    def motion(self) -> np.ndarray:
        """Share of the contraction in each direction of the wall, (ANGLES,)."""
        distance = np.abs((THETA - self.scar_direction + np.pi) % (2 * np.pi) - np.pi)
        scar = 0.5 * (1 + np.cos(np.pi * np.clip((distance - 0.6 * self.scar_width) / (0.4 * self.scar_width), 0, 1)))
        return 1 - self.scar_depth * scar

    def volumes(self, phase: float) -> tuple[float, float]:
        """Return left and right cavity in mm³ at a phase of the beat in [0, 1)."""
        done = float(ejection(phase % 1))
        return self.lv_edv * (1 - self.lv_ef * done), self.rv_edv * (1 - self.rv_ef * done)

    def at(self, phase: float) -> "Shape":
        """Return the radii at a phase of the beat."""
        done = float(ejection(phase % 1))
        lv, rv = self.volumes(phase)
        squeeze = 1 - self.shortening * done  # of the long axis
        # Volume relative to that at rest: squeeze · mean((1 − c·motion)²); solved for the contraction c.
        first, second = self.motion.mean(), (self.motion**2).mean()
        target = 1 - lv / (self.lv_edv * squeeze)
        contraction = (first - np.sqrt(first**2 - second * target)) / second
        endo = self.endo_at_rest[:, None] * (1 - contraction * self.motion)  # (LEVELS, ANGLES)
        muscle = (self.epi_at_rest**2 - self.endo_at_rest[:, None] ** 2) / squeeze  # area of each piece, times 2
        epi = np.sqrt(endo**2 + muscle)
        z = self.z * squeeze
        return Shape(z, endo, epi, self._right(z, epi, rv), self.twist * done * self.z / self.z[-1])

    def _right(self, z: np.ndarray, epi: np.ndarray, volume: float) -> np.ndarray:
        """Return the width of the right cavity outside the left muscle, (LEVELS, ANGLES), for a volume."""
        distance = np.abs((THETA - self.rv_direction + np.pi) % (2 * np.pi) - np.pi)
        crescent = np.clip(np.cos(np.pi / 2 * np.clip(distance / self.rv_width, 0, 1)), 0, None) ** 0.75
        reach = 0.86 * z[-1]
        shape = np.sqrt(np.clip(1 - (z / reach) ** 2, 0, None))[:, None] * crescent
        cell = (z[1] - z[0]) * 2 * np.pi / ANGLES
        linear, square = (epi * shape).sum() * cell, (shape**2).sum() * cell / 2
        size = (-linear + np.sqrt(linear**2 + 4 * square * volume)) / (2 * square)
        return size * shape


@dataclass(frozen=True)
class Shape:
    """A heart at one moment: radii (LEVELS, ANGLES) at the levels z, and the twist of each level."""

    z: np.ndarray
    endo: np.ndarray
    epi: np.ndarray
    right: np.ndarray
    twist: np.ndarray

    def volumes_between(self, top: float, bottom: float) -> tuple[float, float, float]:
        """Return left cavity, right cavity and left muscle in mm³ between two levels."""
        step = self.z[1] - self.z[0]
        inside = np.clip(np.minimum(self.z + step / 2, bottom) - np.maximum(self.z - step / 2, top), 0, None)

        def volume(squared_radius: np.ndarray) -> float:
            return float((squared_radius.mean(axis=1) * inside).sum() * np.pi)

        left = volume(self.endo**2)
        return left, volume((self.epi + self.right) ** 2 - self.epi**2), volume(self.epi**2) - left


def draw_heart(group: str, random: np.random.Generator) -> Heart:
    """Draw a heart of a group; values that do not depend on the group are drawn from the range of healthy adults."""
    ranges = GROUPS[group]

    def between(limits: tuple[float, float]) -> float:
        return float(random.uniform(*limits))

    edv = between(ranges.lv_edv) * ML
    return Heart(
        group=group,
        lv_edv=edv,
        lv_ef=between(ranges.lv_ef),
        # Slimmer or wider than the proportions of a healthy heart.
        length=float(np.clip((edv / ML) ** (1 / 3) * between((15.8, 17.2)), 68, 98)),
        wall=between(ranges.wall),
        septum=between(ranges.septum),
        rv_edv=between(ranges.rv_edv) * ML,
        rv_ef=between(ranges.rv_ef),
        rv_direction=np.deg2rad(between((160, 190))),
        rv_width=np.deg2rad(between((82, 96))),
        shortening=between(ranges.shortening),
        twist=np.deg2rad(between((6, 14))) * (0.4 if group in ("dilated", "infarct") else 1.0),
        scar_direction=np.deg2rad(between((40, 320))),
        scar_width=np.deg2rad(between((45, 65))) if ranges.has_scar else 1.0,
        scar_depth=between((0.85, 1.05)) if ranges.has_scar else 0.0,
        heart_rate=between((55, 85)),
        papillary_size=between((0.15, 0.19)),
    )
