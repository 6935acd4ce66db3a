"""SSIM and PSNR against their definitions, and SSIM against MONAI's."""

import math

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.similarity import psnr, ssim


def planes(seed: int, size: tuple[int, ...] = (16, 14)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, size)


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004 at every place where the window of 11 × 11 fits."""
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            c1, c2 = 0.02**2, 0.06**2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_ssim_follows_its_definition(noise: float) -> None:
    a = planes(0)
    b = a + noise * planes(1)
    assert ssim(a, b) == pytest.approx(ssim_by_definition(a, b), abs=1e-12)


def test_ssim_of_a_volume_is_the_mean_of_its_planes_and_symmetric() -> None:
    a, b = planes(0, (13, 12, 3, 2)), planes(1, (13, 12, 3, 2))
    expected = np.mean([ssim(a[:, :, d, t], b[:, :, d, t]) for d in range(3) for t in range(2)])
    assert ssim(a, b) == pytest.approx(expected) == pytest.approx(ssim(b, a))


def test_values_in_closed_form() -> None:
    a = planes(0)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12) and ssim(a.astype(np.float32), a) == pytest.approx(1, abs=1e-6)
    dark, light = np.full((12, 12), -0.5), np.full((12, 12), 0.5)
    assert ssim(dark, light) == pytest.approx((-0.5 + 0.02**2) / (0.5 + 0.02**2))  # luminance alone
    assert psnr(0) == math.inf and psnr(4) == 0 and psnr(0.04) == pytest.approx(20)
    with pytest.raises(CardioDiTError, match="11 × 11 voxels, got planes of 10 × 20"):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)))


def monai_ssim(a: np.ndarray, b: np.ndarray) -> float:
    from monai.metrics.regression import SSIMMetric

    first, second = (torch.from_numpy(plane)[None, None] for plane in (a, b))
    return float(SSIMMetric(spatial_dims=2, data_range=2.0)(first, second))


def test_ssim_agrees_with_monai_on_ordinary_images() -> None:
    a = planes(0, (64, 64))
    b = a + 0.2 * planes(1, (64, 64))
    assert ssim(a, b) == pytest.approx(monai_ssim(a, b), abs=5e-7)


def test_monais_ssim_is_wrong_on_bright_images_of_low_contrast() -> None:
    """It computes in float32, where variances cancel: this is why ours exists."""
    a, b = (0.98 + 0.01 * planes(seed, (64, 64)) for seed in (0, 1))
    exact = ssim_by_definition(a, b)
    assert ssim(a, b) == pytest.approx(exact, abs=1e-10)
    assert abs(monai_ssim(a, b) - exact) > 1e-6
