"""Measures of a heart's shape, against hearts whose numbers are known."""

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import largest_body_share, leak_share, wall_thickness_mm, weakest_contraction
from cardiodit.imaging import Geometry

PLANE = Geometry((1.5, 1.5, 8.0))


def rings(inner: np.ndarray | float, outer: np.ndarray | float, size: int = 96, slices: int = 3) -> np.ndarray:
    """One frame `(H, W, D, 1)`: a pool of radius `inner` in a muscle of radius `outer` voxels, in every slice."""
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


def test_slices_with_hardly_any_pool_have_no_say_in_the_thickness() -> None:
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


def test_a_right_ventricle_at_the_pool_is_a_leak_too() -> None:
    heart = rings(20, 30)
    heart[heart == 2] = 1
    assert leak_share(heart) == 1


def test_no_pool_at_all_is_no_closed_heart() -> None:
    empty = np.zeros((16, 16, 2, 3), np.uint8)
    assert leak_share(empty) == 1
    assert largest_body_share(empty) == 0
    assert wall_thickness_mm(empty, PLANE) == 0
    assert weakest_contraction(empty, PLANE) == 0


def test_one_body_is_whole_and_the_worst_frame_counts() -> None:
    heart = np.repeat(rings(20, 30), 2, axis=3)
    assert largest_body_share(heart) == 1
    pool = int((heart[..., 1] == 3).sum())
    heart[2:6, 2:6, 0, 1] = 3  # 16 voxels elsewhere, in one frame
    assert largest_body_share(heart) == pytest.approx(pool / (pool + 16))


def test_slices_that_touch_at_a_corner_are_one_body() -> None:
    labels = np.zeros((8, 8, 2, 1), np.uint8)
    labels[2, 2, 0] = labels[3, 3, 1] = 3
    assert largest_body_share(labels) == 1


def test_even_contraction_is_that_of_every_sector() -> None:
    assert weakest_contraction(beating(30, 21), PLANE) == pytest.approx(30, abs=2.5)


def test_a_sector_that_stands_still_is_the_weakest() -> None:
    h, w = np.indices((96, 96)) - 47.5
    still = np.abs(np.arctan2(h, w)) < np.pi / 4  # a quarter: at least two whole sectors
    assert weakest_contraction(beating(30, np.where(still, 30, 15)), PLANE) == pytest.approx(0, abs=1)


def test_lengths_need_a_voxel_size() -> None:
    with pytest.raises(CardioDiTError, match="voxel size"):
        wall_thickness_mm(rings(20, 30), Geometry())
