"""Whether a heart is one: its wall, its holes and its movement, read from label maps (RV 1, myocardium 2, LV 3).

Label maps are cines `(H, W, D, T)`, slices from base to apex. What is asked of a slice is asked of those in which the
left ventricle is large enough to have a shape.
"""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure
from scipy.ndimage import label as number_bodies

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.function import LV, MYO
from cardiodit.imaging.geometry import Geometry

SMALLEST_POOL = 12  # voxels of the left ventricle in a slice
SECTORS = 12
TOUCHING = generate_binary_structure(3, 3)  # all 26 neighbours


def largest_body_share(labels: np.ndarray, label: int = LV) -> float:
    """How much of a label lies in its largest connected body, in the frame where that is least; 0 without any."""
    shares = []
    for t in range(labels.shape[3]):
        bodies, count = number_bodies(labels[..., t] == label, TOUCHING)
        if count == 0:
            return 0.0
        sizes = np.bincount(bodies.ravel())[1:]
        shares.append(float(sizes.max() / sizes.sum()))
    return min(shares)


def leak_share(labels: np.ndarray) -> float:
    """How much of the left ventricle's outline is not muscle, over all frames: 0 where every ring is closed."""
    outline = leaks = 0
    for plane in _pools(labels):
        pool = plane == LV
        around = binary_dilation(pool) & ~pool
        outline += int(around.sum())
        leaks += int((around & (plane != MYO)).sum())
    return leaks / outline if outline else 1.0


def wall_thickness_mm(labels: np.ndarray, geometry: Geometry, frame: int = 0) -> float:
    """Mean thickness of the left ventricle's wall: that of a ring with the areas of the pool and of the muscle."""
    height, width = _plane_spacing(geometry)
    found = []
    for plane in _pools(labels[..., frame : frame + 1]):
        pool, muscle = float((plane == LV).sum()), float((plane == MYO).sum())
        found.append((np.sqrt((pool + muscle) / np.pi) - np.sqrt(pool / np.pi)) * np.sqrt(height * width))
    return float(np.mean(found)) if found else 0.0


def weakest_contraction(labels: np.ndarray, geometry: Geometry) -> float:
    """How much the inner radius shortens where it does so least, in percent: the mean of the 2 weakest of 12 sectors.

    Between the frames with the largest and the smallest pool, around the pool's centre at its largest.
    """
    sizes = (labels == LV).sum(axis=(0, 1, 2))
    first, last = labels[..., int(sizes.argmax())], labels[..., int(sizes.argmin())]
    areas = np.zeros((2, SECTORS))
    for d in range(labels.shape[2]):
        pool = first[:, :, d] == LV
        if pool.sum() < SMALLEST_POOL:
            continue
        sectors = _sectors(pool, _plane_spacing(geometry))
        for row, moment in zip(areas, (first, last), strict=True):
            row += np.bincount(sectors[moment[:, :, d] == LV], minlength=SECTORS)
    largest, smallest = areas
    if not np.all(largest):
        return 0.0
    shortening = 1 - np.sqrt(smallest / largest)
    return float(100 * np.sort(shortening)[:2].mean())


def _pools(labels: np.ndarray) -> Iterator[np.ndarray]:
    """The planes `(H, W)` of all frames in which the left ventricle is large enough to have a shape."""
    sizes = (labels == LV).sum(axis=(0, 1))  # (D, T)
    for d, t in np.argwhere(sizes >= SMALLEST_POOL):
        yield labels[:, :, d, t]


def _sectors(pool: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """The sector of each voxel of a plane, around the centre of the pool."""
    places = np.indices(pool.shape)
    h, w = places[0] * spacing[0], places[1] * spacing[1]
    angle = np.arctan2(h - h[pool].mean(), w - w[pool].mean())
    return np.floor((angle + np.pi) / (2 * np.pi) * SECTORS).astype(int) % SECTORS


def _plane_spacing(geometry: Geometry) -> tuple[float, float]:
    if geometry.spacing is None:
        raise CardioDiTError("Lengths in mm need a voxel size, and this model or file has none.")
    return geometry.spacing[0], geometry.spacing[1]
