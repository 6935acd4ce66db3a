"""How alike two images in [-1, 1] are. Everything is float64."""

import numpy as np
from scipy.ndimage import gaussian_filter

from cardiodit.errors import CardioDiTError

DATA_RANGE = 2.0  # from -1 to 1
SIGMA, RADIUS = 1.5, 5  # of SSIM's Gaussian window of 11 × 11 voxels
C1, C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; infinite where there is none."""
    return float("inf") if squared_error == 0 else float(10 * np.log10(DATA_RANGE**2 / squared_error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity of all planes `(H, W, …)` (Wang et al. 2004, equation 13).

    The window is theirs, Gaussian with σ = 1.5; places where it would reach over the edge are left out.
    """
    if min(first.shape[:2]) <= 2 * RADIUS:
        raise CardioDiTError(
            f"SSIM looks through windows of 11 × 11 voxels; planes of {first.shape[0]} × {first.shape[1]} are too "
            "small for it."
        )
    planes = zip(_planes(first), _planes(second), strict=True)
    return float(np.mean([_ssim_of_plane(a, b) for a, b in planes]))


def _planes(volume: np.ndarray) -> np.ndarray:
    """`(H, W, …)` → `(N, H, W)`."""
    return np.moveaxis(volume.reshape(*volume.shape[:2], -1), 2, 0)


def _ssim_of_plane(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a**2
    variance_b = _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return float((luminance * structure).mean())


def _windowed(plane: np.ndarray) -> np.ndarray:
    """The weighted mean around each voxel whose window lies within the plane."""
    return gaussian_filter(plane, SIGMA, radius=RADIUS)[RADIUS:-RADIUS, RADIUS:-RADIUS]
