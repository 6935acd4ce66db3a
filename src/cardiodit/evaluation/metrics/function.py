"""Heart function: the volumes a heart holds, what it ejects and how fast, and the shape of its wall, from label maps.

Label maps are cines `(H, W, D, T)` of one beat, slices from base to apex, with RV 1, myocardium 2, LV 3. Frames that
are not a whole beat, such as a repeated and cut beat, or end-diastole and end-systole alone, have volumes but no rates
(`closes=False`).

Voxels are counted whole, so that the accuracy depends on the slice thickness: on phantoms the worst frame is off by
0.3% with slices of 4 mm, by 1% with 5 mm and larger voxels in the plane, and by 2 to 3% with slices of 12.5 mm.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure
from scipy.ndimage import label as connected_components

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import FUNCTION
from cardiodit.imaging.geometry import Geometry

RV, MYO, LV = 1, 2, 3
MYOCARDIAL_DENSITY = 1.05  # g/mL
# Harmonics of the Fourier series that smooths a volume curve before its slope is taken. Four represent a beat's
# ejection, rapid filling and atrial kick; the rest of a curve counted in voxels is mostly counting noise.
HARMONICS = 4
FEWEST_FRAMES = 2 * HARMONICS + 1  # that determine as many harmonics
FINE = 16  # moments per frame at which the slope is evaluated
SMALLEST_CAVITY = 12  # voxels of the left ventricle in a slice, below which it has no shape
SECTORS = 12
NEIGHBOURHOOD = generate_binary_structure(3, 3)  # all 26 neighbours
VENTRICLES = {"lv": "LV", "rv": "RV"}
OF_A_VENTRICLE = {
    "edv_ml": ("end-diastolic volume", "mL"),
    "esv_ml": ("end-systolic volume", "mL"),
    "sv_ml": ("stroke volume", "mL"),
    "ef_percent": ("ejection fraction", "%"),
    "peak_ejection_ml_s": ("peak ejection rate", "mL/s"),
    "peak_filling_ml_s": ("peak filling rate", "mL/s"),
    "peak_ejection_edv_s": ("peak ejection rate over its EDV", "1/s"),
    "peak_filling_edv_s": ("peak filling rate over its EDV", "1/s"),
}
QUANTITIES = (
    *(
        Quantity(f"{ventricle}_{name}", f"{VENTRICLES[ventricle]} {title}", unit)
        for ventricle in VENTRICLES
        for name, (title, unit) in OF_A_VENTRICLE.items()
    ),
    Quantity("lv_mass_g", "LV mass", "g"),
    Quantity("wall_thickening_percent", "LV wall thickening", "%"),
)
CURVES = {"lv_volume_ml": ("LV volume over the beat", LV), "rv_volume_ml": ("RV volume over the beat", RV)}

register_quantities(
    QUANTITIES,
    group=FUNCTION,
    if_unknown=f"no volume has this number. Rates need a known frame time and at least {FEWEST_FRAMES} frames.",
)


@dataclass(frozen=True)
class Function:
    """Function of one ventricle over a beat.

    Args:
        volumes_ml: in each frame.
        frame_time: seconds between frames. Without it there are volumes but no rates.
        closes: whether the last frame is followed by the first, as in one whole beat; rates need this.
    """

    volumes_ml: tuple[float, ...]
    frame_time: float | None = None
    closes: bool = True

    @property
    def edv(self) -> float:
        """End-diastolic volume in mL: the largest."""
        return max(self.volumes_ml)

    @property
    def esv(self) -> float:
        """End-systolic volume in mL: the smallest."""
        return min(self.volumes_ml)

    @property
    def ed_frame(self) -> int:
        return int(np.argmax(self.volumes_ml))

    @property
    def es_frame(self) -> int:
        return int(np.argmin(self.volumes_ml))

    @property
    def sv(self) -> float:
        """Stroke volume in mL."""
        return self.edv - self.esv

    @property
    def ef(self) -> float:
        """Ejection fraction in percent."""
        return ejection_fraction(self.volumes_ml)

    @property
    def peak_ejection_rate(self) -> float | None:
        """Fastest loss of volume in mL/s, positive; None without a frame time or with too few frames."""
        slope = self._slope()
        return None if slope is None else max(0.0, float(-slope.min()))

    @property
    def peak_filling_rate(self) -> float | None:
        """Fastest gain of volume in mL/s; None without a frame time or with too few frames."""
        slope = self._slope()
        return None if slope is None else max(0.0, float(slope.max()))

    def _slope(self) -> np.ndarray | None:
        if not self.closes or self.frame_time is None or len(self.volumes_ml) < FEWEST_FRAMES:
            return None
        return periodic_slope(np.asarray(self.volumes_ml), self.frame_time)

    def numbers(self) -> dict[str, float | None]:
        """Return all numbers by name; unknown ones are None. Rates over EDV are in 1/s.

        Frames that are not one whole beat have no rates, not even unknown ones.
        """
        volumes: dict[str, float | None] = {
            "edv_ml": self.edv,
            "esv_ml": self.esv,
            "sv_ml": self.sv,
            "ef_percent": self.ef,
        }
        if not self.closes:
            return volumes
        ejection, filling = self.peak_ejection_rate, self.peak_filling_rate
        return {
            **volumes,
            "peak_ejection_ml_s": ejection,
            "peak_filling_ml_s": filling,
            "peak_ejection_edv_s": None if ejection is None or self.edv == 0 else ejection / self.edv,
            "peak_filling_edv_s": None if filling is None or self.edv == 0 else filling / self.edv,
        }


@dataclass(frozen=True)
class HeartFunction:
    """Function of both ventricles, and the LV mass in grams at end-diastole."""

    lv: Function
    rv: Function
    lv_mass_g: float

    def numbers(self) -> dict[str, float | None]:
        """Return `lv_edv_ml`, `rv_ef_percent`, `lv_mass_g` and so on."""
        ventricles = {"lv": self.lv, "rv": self.rv}
        numbers = {f"{name}_{key}": value for name, f in ventricles.items() for key, value in f.numbers().items()}
        return {**numbers, "lv_mass_g": self.lv_mass_g}


def heart_function(labels: np.ndarray, geometry: Geometry, closes: bool = True) -> HeartFunction:
    """Measure the function of a heart in its label maps `(H, W, D, T)`; `closes` as in `Function`."""
    left, right = left_ventricle(labels, geometry, closes), right_ventricle(labels, geometry, closes)
    return HeartFunction(left, right, lv_mass_g(labels, geometry))


def left_ventricle(labels: np.ndarray, geometry: Geometry, closes: bool = True) -> Function:
    return Function(volumes_ml(labels, geometry, LV), geometry.frame_time, closes)


def right_ventricle(labels: np.ndarray, geometry: Geometry, closes: bool = True) -> Function:
    return Function(volumes_ml(labels, geometry, RV), geometry.frame_time, closes)


def lv_mass_g(labels: np.ndarray, geometry: Geometry) -> float:
    """Return the mass of the left ventricle's myocardium in the frame with the largest cavity."""
    end_diastole = left_ventricle(labels, geometry).ed_frame
    return volumes_ml(labels, geometry, MYO)[end_diastole] * MYOCARDIAL_DENSITY


def volumes_ml(labels: np.ndarray, geometry: Geometry, label: int = LV) -> tuple[float, ...]:
    """Return the volume of a label in every frame of a cine `(H, W, D, T)`: its voxels times the volume of one.

    Along a thick slice this is the midpoint rule. Its error falls with the square of the slice thickness and is largest
    where few slices contain the cavity: small hearts at end-systole.
    """
    if labels.ndim != 4:
        raise CardioDiTError(f"Volumes are counted in label maps (H, W, D, T); these have the shape {labels.shape}.")
    voxel = geometry.voxel_ml
    return tuple(float(n) * voxel for n in (labels == label).sum(axis=(0, 1, 2)))


def ejection_fraction(volumes: tuple[float, ...]) -> float:
    """Return 100 · (EDV − ESV) / EDV of the largest and the smallest volume; 0 for an empty ventricle."""
    largest, smallest = max(volumes), min(volumes)
    return 0.0 if largest == 0 else 100.0 * (largest - smallest) / largest


def periodic_slope(volumes: np.ndarray, frame_time: float) -> np.ndarray:
    """Return dV/dt in mL/s of the first harmonics of one beat, at 16 moments per frame.

    V(t) = Σ c_k exp(2πi k t / beat), so that dV/dt = Σ (2πi k / beat) c_k exp(2πi k t / beat), |k| ≤ 4.
    """
    frames = len(volumes)
    if frames < FEWEST_FRAMES:
        raise CardioDiTError(f"{frames} frames are too few for {HARMONICS} harmonics; {FEWEST_FRAMES} are needed.")
    order = np.arange(HARMONICS + 1)
    series = np.fft.rfft(volumes.astype(np.float64))[: HARMONICS + 1]  # (harmonics + 1,)
    series = series * 2j * np.pi * order / (frames * frame_time)
    return np.fft.irfft(series, frames * FINE) * FINE


def largest_body_share(labels: np.ndarray, label: int = LV) -> float:
    """Return the share of a label in its largest connected component, in the frame where it is least; 0 if absent."""
    shares = []
    for t in range(labels.shape[3]):
        bodies, count = connected_components(labels[..., t] == label, NEIGHBOURHOOD)
        if count == 0:
            return 0.0
        sizes = np.bincount(bodies.ravel())[1:]
        shares.append(float(sizes.max() / sizes.sum()))
    return min(shares)


def leak_share(labels: np.ndarray, label: int = LV) -> float:
    """Return the share of a cavity's outline that is not myocardium, over all frames: 0 for closed rings."""
    outline = leaks = 0
    for plane in _planes_with_cavity(labels, label):
        cavity = plane == label
        around = binary_dilation(cavity) & ~cavity
        outline += int(around.sum())
        leaks += int((around & (plane != MYO)).sum())
    return leaks / outline if outline else 1.0


def wall_thickness_mm(labels: np.ndarray, geometry: Geometry, frame: int = 0) -> float:
    """Return the LV wall's mean thickness: that of a ring with the areas of cavity and myocardium, slice by slice."""
    height, width = _plane_spacing(geometry)
    thickness = []
    for plane in _planes_with_cavity(labels[..., frame : frame + 1]):
        cavity, muscle = float((plane == LV).sum()), float((plane == MYO).sum())
        ring = np.sqrt((cavity + muscle) / np.pi) - np.sqrt(cavity / np.pi)
        thickness.append(ring * np.sqrt(height * width))
    return float(np.mean(thickness)) if thickness else 0.0


def wall_thickening(labels: np.ndarray, geometry: Geometry, end_diastole: int, end_systole: int) -> float:
    """Return the LV wall's thickening in percent from one frame to another; NaN if every cavity is too small."""
    before = wall_thickness_mm(labels, geometry, end_diastole)
    after = wall_thickness_mm(labels, geometry, end_systole)
    return 100 * (after / before - 1) if before and after else math.nan


def weakest_contraction(labels: np.ndarray, geometry: Geometry) -> float:
    """Return the inner radius's shortening in percent where it is weakest: the mean of the 2 weakest of 12 sectors.

    It is measured between the frames with the largest and the smallest cavity, around the centre of the largest.
    """
    sizes = (labels == LV).sum(axis=(0, 1, 2))
    first, last = labels[..., int(sizes.argmax())], labels[..., int(sizes.argmin())]
    areas = np.zeros((2, SECTORS))
    for d in range(labels.shape[2]):
        cavity = first[:, :, d] == LV
        if cavity.sum() < SMALLEST_CAVITY:
            continue
        sectors = _sectors(cavity, _plane_spacing(geometry))
        for row, moment in zip(areas, (first, last), strict=True):
            row += np.bincount(sectors[moment[:, :, d] == LV], minlength=SECTORS)
    largest, smallest = areas
    if not np.all(largest):
        return 0.0
    shortening = 1 - np.sqrt(smallest / largest)
    return float(100 * np.sort(shortening)[:2].mean())


def _planes_with_cavity(labels: np.ndarray, label: int = LV) -> Iterator[np.ndarray]:
    """Yield the planes `(H, W)` of all frames in which a cavity is large enough to have a shape."""
    sizes = (labels == label).sum(axis=(0, 1))  # (D, T)
    for d, t in np.argwhere(sizes >= SMALLEST_CAVITY):
        yield labels[:, :, d, t]


def _sectors(cavity: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Return the sector of each voxel of a plane, around the centre of the cavity."""
    places = np.indices(cavity.shape)
    h, w = places[0] * spacing[0], places[1] * spacing[1]
    angle = np.arctan2(h - h[cavity].mean(), w - w[cavity].mean())
    return np.floor((angle + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS


def _plane_spacing(geometry: Geometry) -> tuple[float, float]:
    if geometry.spacing is None:
        raise CardioDiTError("Lengths in mm need a voxel size, and this model or file has none.")
    return geometry.spacing[0], geometry.spacing[1]
