"""PSNR and SSIM of images in [-1, 1], in float64.

MONAI's `SSIMMetric` is not used: it computes in float32, where the variances of bright, low-contrast images cancel. On
such images it is off by more than the 1e-6 that a reported number may move (`tests/evaluation/test_similarity.py`); on
ordinary images both agree.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

from cardiodit.errors import CardioDiTError

DATA_RANGE = 2.0  # from -1 to 1
SIGMA, RADIUS = 1.5, 5  # Gaussian window of SSIM, 11 × 11 voxels
C1, C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def psnr(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for a mean squared error; infinity for zero error."""
    return float("inf") if squared_error == 0 else float(10 * np.log10(DATA_RANGE**2 / squared_error))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean structural similarity over all planes of `(H, W, …)` (Wang et al. 2004, equation 13).

    The window is Gaussian with σ = 1.5, as in the paper; positions where it would cross the edge are left out.
    """
    if min(first.shape[:2]) <= 2 * RADIUS:
        raise CardioDiTError(
            f"SSIM needs planes of at least 11 × 11 voxels, got planes of {first.shape[0]} × {first.shape[1]}."
        )
    # (H, W, …) → (N, H, W)
    planes = (np.moveaxis(volume.reshape(*volume.shape[:2], -1), 2, 0) for volume in (first, second))
    return float(np.mean([_ssim_of_plane(a, b) for a, b in zip(*planes, strict=True)]))


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
    """Return the weighted mean around each voxel whose window lies within the plane."""
    return gaussian_filter(plane, SIGMA, radius=RADIUS)[RADIUS:-RADIUS, RADIUS:-RADIUS]
