"""Heart function and shape, from label maps with known values."""

import json
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import (
    LV,
    MYO,
    RV,
    Function,
    ejection_fraction,
    heart_function,
    largest_body_share,
    leak_share,
    left_ventricle,
    lv_mass_g,
    periodic_slope,
    right_ventricle,
    volumes_ml,
    wall_thickness_mm,
    weakest_contraction,
)
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.phantom.heart import draw_heart, ejection
from cardiodit.imaging.phantom.scene import render

PHASES = np.linspace(0, 1, 20001)


def test_voxels_are_counted_in_ml() -> None:
    labels = np.zeros((10, 10, 2, 2), np.uint8)
    labels[:5, :4, :, 0], labels[:5, :1, :, 1], labels[6:, 6:] = LV, LV, RV
    geometry = Geometry((2.0, 2.0, 10.0))  # 0.04 mL a voxel
    assert volumes_ml(labels, geometry) == pytest.approx((1.6, 0.4))
    assert volumes_ml(labels, geometry, RV) == pytest.approx((1.28, 1.28))
    assert volumes_ml(labels, geometry, MYO) == (0, 0)
    heart = left_ventricle(labels, geometry)
    assert (heart.edv, heart.esv, heart.sv, heart.ef) == pytest.approx((1.6, 0.4, 1.2, 75))
    assert (heart.ed_frame, heart.es_frame) == (0, 1)
    assert right_ventricle(labels, geometry).ef == 0


def test_an_empty_ventricle_ejects_nothing() -> None:
    assert ejection_fraction((0.0, 0.0)) == 0
    empty = heart_function(np.zeros((4, 4, 2, 9), np.uint8), Geometry((1.0, 1.0, 1.0), 0.1))
    assert empty.lv.numbers()["peak_filling_edv_s"] is None


def test_volumes_need_a_voxel_size() -> None:
    with pytest.raises(CardioDiTError, match="voxel size"):
        volumes_ml(np.zeros((4, 4, 1, 1)), Geometry())
    with pytest.raises(CardioDiTError, match="voxel size"):
        heart_function(np.zeros((4, 4, 1, 1)), Geometry())
    with pytest.raises(CardioDiTError, match="shape"):
        volumes_ml(np.zeros((4, 4, 1)), Geometry((1.0, 1.0, 1.0)))


def test_a_sheared_voxel_has_its_true_volume() -> None:
    affine = np.diag([2.0, 2.0, 10.0, 1.0])
    affine[0, 2] = 5.0  # slices slide over each other
    labels = np.full((10, 10, 1, 1), LV)
    assert volumes_ml(labels, Geometry.of_affine(affine)) == pytest.approx((4.0,), rel=1e-5)


def test_mass_is_that_of_the_muscle_at_the_largest_cavity() -> None:
    labels = np.zeros((10, 10, 1, 3), np.uint8)
    labels[:2, 0, 0, 0] = labels[:5, 0, 0, 1] = LV  # the second frame is end-diastole
    labels[:, 5, 0, 0], labels[:, 5:7, 0, 1] = MYO, MYO
    assert lv_mass_g(labels, Geometry((10.0, 10.0, 10.0))) == pytest.approx(20 * 1.05)


def test_a_phantoms_exact_volumes_are_found_in_its_labels(tmp_path: Path) -> None:
    """To 2% where slices are thin enough for counting whole voxels; see the next test for thick ones."""
    for case in read_manifest(write_cohort(tmp_path / "hearts", num=2, size=(64, 64, 16, 9))):
        labels, exact = read_labels(case.path("mask")), json.loads(case.path("volumes").read_text())
        heart = heart_function(labels.voxels, labels.geometry)
        assert heart.lv.volumes_ml == pytest.approx(exact["lv"], rel=0.02)
        assert heart.rv.volumes_ml == pytest.approx(exact["rv"], rel=0.02)
        assert heart.lv_mass_g == pytest.approx(1.05 * exact["myocardium"][0], rel=0.02)
        assert heart.lv.edv == pytest.approx(float(case.row["lv_edv_ml"]), rel=0.02)
        assert heart.lv.esv == pytest.approx(float(case.row["lv_esv_ml"]), rel=0.02)
        assert heart.lv.ef == pytest.approx(float(case.row["lv_ef_percent"]), abs=1)


def worst_error(depth: int, plane: int = 72) -> float:
    """Return the largest LV volume error over four hearts, imaged with `depth` slices over 100 mm."""
    errors = []
    for index, group in enumerate(("normal", "dilated", "hypertrophic", "infarct")):
        random = np.random.default_rng([1, index])
        spacing = (144 / plane, 144 / plane, 100 / depth)
        phantom = render(draw_heart(group, random), (plane, plane, depth, 4), random, spacing)
        counted = np.array(volumes_ml(phantom.labels, phantom.geometry))
        errors.append(np.abs(counted / phantom.volumes["lv"] - 1).max())
    return max(errors)


def test_the_volume_error_decreases_with_slice_thickness() -> None:
    thick, thin = worst_error(8), worst_error(24)
    assert thick < 0.04
    assert thin < thick / 2 and thin < 0.01


@pytest.mark.parametrize("frames", [9, 16, 25])
def test_the_slope_of_a_few_harmonics_is_exact(frames: int) -> None:
    t = np.arange(frames) / frames * 0.8
    fine = np.arange(16 * frames) / (16 * frames) * 0.8
    w = 2 * np.pi / 0.8
    volumes = 100 + 30 * np.cos(w * t) + 7 * np.sin(4 * w * t)
    exact = -30 * w * np.sin(w * fine) + 28 * w * np.cos(4 * w * fine)
    assert periodic_slope(volumes, 0.8 / frames) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("frames", [12, 16, 32])
def test_peak_rates_of_a_known_curve_are_found(frames: int) -> None:
    edv, ef, beat = 150.0, 0.6, 0.9
    volumes = edv * (1 - ef * ejection(np.arange(frames) / frames))
    heart = Function(tuple(volumes), beat / frames)
    slope = -edv * ef * ejection.derivative()(PHASES) / beat
    assert heart.peak_ejection_rate == pytest.approx(-slope.min(), rel=0.04)
    assert heart.peak_filling_rate == pytest.approx(slope.max(), rel=0.04)
    numbers = heart.numbers()
    assert numbers["peak_ejection_edv_s"] == pytest.approx(heart.peak_ejection_rate / edv)
    assert numbers["ef_percent"] == pytest.approx(100 * ef, abs=0.5)


def test_rates_do_not_depend_on_where_the_beat_begins_and_scale_with_time() -> None:
    volumes = 100 * (1 - 0.6 * ejection(np.arange(16) / 16))
    first, later = Function(tuple(volumes), 0.05), Function(tuple(np.roll(volumes, 5)), 0.05)
    assert first.peak_filling_rate == pytest.approx(later.peak_filling_rate)
    assert Function(tuple(volumes), 0.1).peak_filling_rate == pytest.approx(first.peak_filling_rate / 2)


def test_rates_are_robust_to_counting_noise() -> None:
    """The error is smaller than that of differences between neighbouring frames."""
    volumes = 150 * (1 - 0.6 * ejection(np.arange(32) / 32))
    true = 90 * ejection.derivative()(PHASES).max()
    random = np.random.default_rng([0])
    smooth, rough = [], []
    for _ in range(200):
        noisy = volumes + random.normal(0, 1.5, 32)  # 1% of the largest volume
        smooth.append(Function(tuple(noisy), 1 / 32).peak_ejection_rate - true)
        rough.append((noisy - np.roll(noisy, -1)).max() * 32 - true)
    assert np.sqrt(np.mean(np.square(smooth))) < 0.05 * true
    assert np.mean(np.square(smooth)) < np.mean(np.square(rough)) / 4


def test_without_a_frame_time_only_the_rates_are_unknown() -> None:
    numbers = Function((100.0,) * 10 + (50.0,)).numbers()
    assert numbers["ef_percent"] == 50
    assert {name for name, value in numbers.items() if value is None} == {
        "peak_ejection_ml_s",
        "peak_filling_ml_s",
        "peak_ejection_edv_s",
        "peak_filling_edv_s",
    }
    assert Function((100.0, 50.0), 0.1).peak_ejection_rate is None  # two frames make no slope
    with pytest.raises(CardioDiTError, match="too few"):
        periodic_slope(np.ones(8), 0.1)


def test_frames_that_are_not_one_beat_have_no_rates() -> None:
    volumes = 150 * (1 - 0.6 * ejection(np.arange(25) / 25))
    whole, repeated = Function(tuple(volumes), 0.04), Function(tuple(np.resize(volumes, 32)), 0.04, closes=False)
    assert repeated.peak_ejection_rate is None and repeated.peak_filling_rate is None
    assert repeated.numbers() == {name: whole.numbers()[name] for name in ("edv_ml", "esv_ml", "sv_ml", "ef_percent")}
    labels = np.ones((4, 4, 2, 9), np.uint8)
    numbers = heart_function(labels, Geometry((5.0, 5.0, 5.0), 0.1), closes=False).numbers()
    assert not [name for name in numbers if "peak" in name] and numbers["rv_edv_ml"] == pytest.approx(4)


def test_both_ventricles_are_named() -> None:
    numbers = heart_function(np.ones((4, 4, 2, 9), np.uint8), Geometry((5.0, 5.0, 5.0), 0.1)).numbers()
    assert numbers["rv_edv_ml"] == pytest.approx(4) and numbers["lv_edv_ml"] == 0 and numbers["lv_mass_g"] == 0


# Shape


PLANE = Geometry((1.5, 1.5, 8.0))


def rings(inner: np.ndarray | float, outer: np.ndarray | float, size: int = 96, slices: int = 3) -> np.ndarray:
    """Draw one frame `(H, W, D, 1)`: a pool of radius `inner` in a muscle of radius `outer` voxels, in each slice."""
    h, w = np.indices((size, size)) - (size - 1) / 2
    radius = np.hypot(h, w)
    plane = np.where(radius < inner, 3, np.where(radius < outer, 2, 0)).astype(np.uint8)
    return np.repeat(plane[:, :, None], slices, axis=2)[..., None]


def beating(inner: float, smallest: np.ndarray | float) -> np.ndarray:
    return np.concatenate([rings(inner, 40), rings(smallest, 40)], axis=3)


def test_a_ring_has_the_thickness_it_was_drawn_with() -> None:
    assert wall_thickness_mm(rings(20, 30), PLANE) == pytest.approx(15.0, rel=0.01)
    stretched = Geometry((3.0, 0.75, 8.0))  # a voxel of the same area
    assert wall_thickness_mm(rings(20, 30), stretched) == pytest.approx(15.0, rel=0.01)


def test_slices_with_a_tiny_pool_do_not_count_for_the_thickness() -> None:
    heart = rings(20, 30)
    heart[:, :, 2] = rings(1.5, 30)[:, :, 2]
    assert wall_thickness_mm(heart, PLANE) == pytest.approx(15.0, rel=0.01)


def test_closed_rings_do_not_leak_and_a_gap_counts_by_its_length() -> None:
    assert leak_share(rings(20, 30)) == 0
    heart = rings(20, 30)
    h, w = np.indices((96, 96)) - 47.5
    gap = (np.abs(np.arctan2(h, w)) < np.pi / 8)[:, :, None, None] & (heart == 2)  # an eighth of the circle
    heart[gap] = 0
    assert leak_share(heart) == pytest.approx(1 / 8, abs=0.02)


def test_a_pool_that_touches_the_right_ventricle_leaks() -> None:
    heart = rings(20, 30)
    heart[heart == 2] = 1
    assert leak_share(heart) == 1


def test_an_empty_heart_leaks_and_has_no_thickness() -> None:
    empty = np.zeros((16, 16, 2, 3), np.uint8)
    assert leak_share(empty) == 1
    assert largest_body_share(empty) == 0
    assert wall_thickness_mm(empty, PLANE) == 0
    assert weakest_contraction(empty, PLANE) == 0


def test_the_body_share_is_that_of_the_worst_frame() -> None:
    heart = np.repeat(rings(20, 30), 2, axis=3)
    assert largest_body_share(heart) == 1
    pool = int((heart[..., 1] == 3).sum())
    heart[2:6, 2:6, 0, 1] = 3  # 16 voxels elsewhere, in one frame
    assert largest_body_share(heart) == pytest.approx(pool / (pool + 16))


def test_slices_that_touch_at_a_corner_are_one_body() -> None:
    labels = np.zeros((8, 8, 2, 1), np.uint8)
    labels[2, 2, 0] = labels[3, 3, 1] = 3
    assert largest_body_share(labels) == 1


def test_even_contraction_is_found_in_every_sector() -> None:
    assert weakest_contraction(beating(30, 21), PLANE) == pytest.approx(30, abs=2.5)


def test_a_motionless_sector_is_the_weakest() -> None:
    h, w = np.indices((96, 96)) - 47.5
    still = np.abs(np.arctan2(h, w)) < np.pi / 4  # a quarter: at least two whole sectors
    assert weakest_contraction(beating(30, np.where(still, 30, 15)), PLANE) == pytest.approx(0, abs=1)


def test_lengths_need_a_voxel_size() -> None:
    with pytest.raises(CardioDiTError, match="voxel size"):
        wall_thickness_mm(rings(20, 30), Geometry())
