"""Options of heart phantoms: scanner styles, the base with its moving valve plane, trabeculae, visible scars, rhythms.

The default style leaves every phantom of a seed as it always was, to the byte. What a style adds is drawn from a
generator of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter1d

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.phantom.heart import ANGLES, THETA, Heart, Shape

# Signal of balanced steady-state free precession: blood is bright.
SIGNAL: Mapping[str, float] = MappingProxyType(
    {
        "air": 0.0,
        "lung": 0.07,
        "muscle": 0.27,
        "fat": 0.72,
        "liver": 0.40,
        "bone": 0.33,
        "blood": 0.90,
        "myocardium": 0.30,
    }
)
SINUS, PREMATURE, IRREGULAR = "sinus", "premature", "irregular"
RHYTHMS = (SINUS, PREMATURE, IRREGULAR)
EARLY = 0.7  # share of the beat after which a premature one begins
OUTFLOW_MM, OUTFLOW_WIDTH = 10.0, np.deg2rad(35)  # below the valve plane, and half of the angle
OUTFLOW_FROM_RV = -np.deg2rad(70)  # direction from that of the right ventricle: towards the front
RIM = 1.0  # mm, wall of the outflow tract
TRABECULAE_MM, SMOOTH_DEGREES = 4.0, 6.0


@dataclass(frozen=True)
class Vendor:
    """How a scanner shows the same heart.

    Args:
        signal: signals that differ from `SIGNAL`.
        noise, shading: factors of the noise and of the coils' shading.
        blur: standard deviation of the point spread in voxels.
        spacing: factor of the voxel size in the plane, where none is given.
    """

    signal: Mapping[str, float] = field(default_factory=dict)
    noise: float = 1.0
    shading: float = 1.0
    blur: float = 0.45
    spacing: float = 1.0


VENDORS = {
    "plain": Vendor(),
    "bright": Vendor({"blood": 1.0, "myocardium": 0.22, "fat": 0.95, "muscle": 0.22}, 0.7, 0.6, 0.35, 0.92),
    "grey": Vendor({"blood": 0.70, "myocardium": 0.36, "fat": 0.60, "lung": 0.12, "liver": 0.46}, 1.5, 1.4, 0.7, 1.1),
    "coarse": Vendor({"blood": 0.82, "myocardium": 0.27, "fat": 0.45, "muscle": 0.33}, 2.2, 2.0, 0.9, 1.2),
}


@dataclass(frozen=True)
class Style:
    """Options that change how a phantom looks and moves; the defaults give the plain one.

    Args:
        vendor: name from `VENDORS`.
        base: open the outflow tract below the valve plane, and show the atria above it.
        valve_motion: the valve plane moves towards the apex, which stays, so that basal slices show the atrium in
            systole; otherwise the base stays, and the apex moves.
        trabeculae: strength of trabeculae and of the papillary muscles' variation, 0 for none, 1 for much.
        fat: factor of the fat around the heart.
        scar_signal: factor of the signal of infarcted muscle; 1 does not show it.
        rhythm: "sinus", "premature" (the next beat begins before this one ends) or "irregular" (every slice is
            acquired in a beat of another duration).
    """

    vendor: str = "plain"
    base: bool = False
    valve_motion: bool = False
    trabeculae: float = 0.0
    fat: float = 1.0
    scar_signal: float = 1.0
    rhythm: str = SINUS

    def __post_init__(self) -> None:
        if self.vendor not in VENDORS:
            raise CardioDiTError(f"There is no vendor {self.vendor!r}; choose one of {', '.join(VENDORS)}.")
        if self.rhythm not in RHYTHMS:
            raise CardioDiTError(f"There is no rhythm {self.rhythm!r}; choose one of {', '.join(RHYTHMS)}.")
        for name in ("trabeculae", "fat", "scar_signal"):
            if getattr(self, name) < 0:
                raise CardioDiTError(f"{name}={getattr(self, name)} must not be negative.")

    @property
    def is_plain(self) -> bool:
        return self == Style()

    @property
    def scanner(self) -> Vendor:
        return VENDORS[self.vendor]

    @property
    def signal(self) -> Mapping[str, float]:
        return SIGNAL if not self.scanner.signal else {**SIGNAL, **self.scanner.signal}

    def describe(self) -> dict[str, str]:
        """Return what differs from the plain style, as columns of a manifest."""
        plain = Style()
        return {
            f.name: str(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)
        }

    def phases(self, depth: int, frames: int, random: np.random.Generator) -> np.ndarray:
        """Return the phase of the beat at each slice and frame, (depth, frames)."""
        even = np.arange(frames) / frames
        if self.rhythm == PREMATURE:
            even = np.where(even < EARLY, even, even - EARLY)
        stretch = random.uniform(0.75, 1.25, (depth, 1)) if self.rhythm == IRREGULAR else np.ones((depth, 1))
        return even[None] * stretch

    def heart(self, heart: Heart, random: np.random.Generator) -> Heart:
        """Vary the papillary muscles."""
        if not self.trabeculae:
            return heart
        return replace(heart, papillary_size=heart.papillary_size * random.uniform(1 - 0.4 * self.trabeculae, 1.2))

    def shape(self, heart: Heart, phase: float) -> Shape:
        """Return the radii at a phase, with the outflow tract open if the style shows the base."""
        shape = heart.at(phase)
        if not self.base:
            return shape
        distance = np.abs((THETA - heart.rv_direction - OUTFLOW_FROM_RV + np.pi) % (2 * np.pi) - np.pi)
        is_open = (shape.z < OUTFLOW_MM)[:, None] & (distance < OUTFLOW_WIDTH)[None]
        return replace(shape, endo=np.where(is_open, np.maximum(shape.endo, shape.epi - RIM), shape.endo))

    def drop(self, heart: Heart, shape: Shape) -> float:
        """Return by how many mm the valve plane lies below its place at end-diastole."""
        return float(heart.z[-1] - shape.z[-1]) if self.valve_motion else 0.0

    def trabecular_depth(self, random: np.random.Generator) -> np.ndarray | None:
        """Return the depth in mm of the trabecular layer in each direction, (ANGLES,); None without one."""
        if not self.trabeculae:
            return None
        rough = gaussian_filter1d(random.standard_normal(ANGLES), SMOOTH_DEGREES * ANGLES / 360, mode="wrap")
        return TRABECULAE_MM * self.trabeculae * np.clip(rough / rough.std(), 0, 2) / 2
