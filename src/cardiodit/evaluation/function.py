"""How much blood a heart holds and how much of it it ejects, counted in label maps (RV 1, myocardium 2, LV 3)."""

from dataclasses import dataclass

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry

RV, MYO, LV = 1, 2, 3
MM3_IN_ML = 1000.0


@dataclass(frozen=True)
class Function:
    """Of one ventricle over a beat: volumes in mL, the ejection fraction in percent."""

    volumes_ml: tuple[float, ...]

    @property
    def edv(self) -> float:
        return max(self.volumes_ml)

    @property
    def esv(self) -> float:
        return min(self.volumes_ml)

    @property
    def ef(self) -> float:
        return ejection_fraction(self.volumes_ml)


def volumes_ml(labels: np.ndarray, geometry: Geometry, label: int = LV) -> tuple[float, ...]:
    """Volume of a label in every frame of a cine `(H, W, D, T)`."""
    if geometry.spacing is None:
        raise CardioDiTError("Volumes in mL need a voxel size, and this model or file has none.")
    voxel = float(np.prod(geometry.spacing)) / MM3_IN_ML
    return tuple(float(n) * voxel for n in (labels == label).sum(axis=(0, 1, 2)))


def ejection_fraction(volumes: tuple[float, ...]) -> float:
    """100 · (EDV − ESV) / EDV of the largest and the smallest volume; 0 of an empty ventricle."""
    largest, smallest = max(volumes), min(volumes)
    return 0.0 if largest == 0 else 100.0 * (largest - smallest) / largest


def left_ventricle(labels: np.ndarray, geometry: Geometry) -> Function:
    return Function(volumes_ml(labels, geometry, LV))
