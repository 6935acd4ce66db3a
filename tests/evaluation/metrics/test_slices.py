"""Consistency of slices along three axes: closed forms, and what broken volumes show."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics.slices import MEASURES, PLANES, border_jump, planes_of, slice_consistency
from cardiodit.imaging import Geometry

SPACING = (0.5, 2.0, 4.0)


def ramp(*slopes: float) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(n, dtype=float) for n in (14, 12, 16)), indexing="ij")
    return sum(slope * axis for slope, axis in zip(slopes, axes)).astype(np.float32)


def test_differences_of_a_ramp_are_its_slopes_per_mm() -> None:
    found = slice_consistency(ramp(0.01, 0.02, -0.04), Geometry(SPACING))
    steps = [found[f"slice_step_{plane}"] for plane in PLANES]
    assert steps == pytest.approx([0.02, 0.01, 0.01], rel=1e-5)
    assert [found[f"slice_bend_{plane}"] for plane in PLANES] == pytest.approx([0, 0, 0], abs=1e-6)
    assert [found[f"slice_correlation_{plane}"] for plane in PLANES] == pytest.approx([1, 1, 1])


def test_second_differences_of_a_parabola_are_its_curvature() -> None:
    z = np.arange(16, dtype=float) * SPACING[2]  # mm
    found = slice_consistency(np.broadcast_to(0.0005 * z**2, (12, 12, 16)).copy(), Geometry(SPACING))
    assert found["slice_bend_axial"] == pytest.approx(2 * 0.0005) and found["slice_bend_sagittal"] == 0
    assert found["slice_correlation_axial"] == 1 and found["slice_step_coronal"] == 0


def test_correlation_and_ms_ssim_fall_with_independent_slices() -> None:
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(rng.uniform(-1, 1, (16, 16, 1)), (16, 16, 24)) + 0.02 * rng.normal(size=(16, 16, 24))
    shuffled = rng.uniform(-1, 1, (16, 16, 24))
    first, second = (slice_consistency(volume, Geometry(SPACING)) for volume in (smooth, shuffled))
    for name in ("slice_correlation_axial", "slice_ms_ssim_axial"):
        assert first[name] > 0.9 and abs(second[name]) < 0.2
    assert first["slice_correlation_sagittal"] == pytest.approx(0, abs=0.2)  # along that axis nothing continues


def test_planes_are_named_by_the_scanners_axes() -> None:
    """A volume whose first axis runs to the head."""
    affine = np.diag([3.0, 2.0, 1.0, 1.0])[[2, 1, 0, 3]][:, :]
    turned = Geometry.of_affine(affine)
    assert planes_of(turned) == ("axial", "coronal", "sagittal") and planes_of(Geometry()) == PLANES
    assert slice_consistency(ramp(0.03, 0, 0), turned)["slice_step_axial"] == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("period", [4, 8, 16])
def test_borders_of_patches_stand_out(period: int) -> None:
    rng = np.random.default_rng(0)
    trend = np.linspace(1, 3, 79)  # anatomy that changes faster and faster is no border
    steps = trend * rng.uniform(0.95, 1.05, 79)
    assert border_jump(steps) == pytest.approx(1, abs=0.05)
    steps[period - 1 :: period] *= 2
    jump = border_jump(steps)
    assert jump is not None and jump > 1.5
    assert border_jump(np.ones(5)) is None and border_jump(np.zeros(40)) == 1


def test_what_cannot_be_measured_is_left_out() -> None:
    without = slice_consistency(ramp(0.1, 0, 0), Geometry())
    assert not any("step" in name or "bend" in name for name in without) and "slice_correlation_axial" in without
    small = slice_consistency(np.zeros((8, 8, 1), np.float32), Geometry(SPACING))
    assert not any("axial" in name or "ms_ssim" in name for name in small)
    assert small["slice_correlation_coronal"] == 1
    assert set(slice_consistency(np.zeros((32, 32, 32)), Geometry(SPACING))) == {
        f"{name}_{plane}" for name in MEASURES for plane in PLANES
    }
