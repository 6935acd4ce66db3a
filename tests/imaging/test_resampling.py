import numpy as np
import pytest
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.ndimage import zoom

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.resampling import AxisPlan, average_cubes, index_map, plan_axis, resample
from cardiodit.imaging.volume import Volume


@pytest.mark.parametrize("source", [7, 8])
@pytest.mark.parametrize("size", [4, 5, 7, 8, 11, 12])
def test_crop_and_pad_are_monais(source: int, size: int) -> None:
    line = np.arange(1.0, source + 1)
    expected = ResizeWithPadOrCrop((size,), constant_values=-1)(line[None])[0].numpy()
    ours = resample(Volume(line[:, None, None], Geometry()), size=(size, None, None), fill=-1).voxels[:, 0, 0]
    assert np.array_equal(ours, expected)


def test_a_ramp_stays_a_ramp() -> None:
    """Linear interpolation knows a linear function; the closed form is the ramp at the new positions."""
    plan = plan_axis(20, 1.5, 1.1, None, resize=False)
    ramp = np.arange(20, dtype=float)
    inner = (plan.positions >= 0) & (plan.positions <= 19)
    assert np.allclose(plan.take(ramp, 0)[inner], plan.positions[inner], atol=1e-5)
    assert plan.count == round(20 * 1.5 / 1.1)


def test_finer_grids_agree_with_scipy() -> None:
    voxels = np.random.default_rng(0).standard_normal((12, 14, 5)).astype(np.float32)
    ours = resample(Volume(voxels, Geometry((2.0, 2.0, 8.0))), size=(24, 28, 5), resize=True).voxels
    theirs = zoom(voxels, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
    assert np.allclose(ours, theirs, atol=1e-5)


def test_a_coarser_grid_averages_what_it_skips() -> None:
    stripes = np.tile([0.0, 1.0], 16)  # skipping every other voxel would make it black or white
    coarse = plan_axis(32, 1.0, 2.0, None, resize=False).take(stripes, 0)
    assert np.allclose(coarse[1:-1], 0.5, atol=1e-6)


def test_constants_stay_constant_whatever_the_grid() -> None:
    for target in (0.3, 0.9, 1.0, 1.7, 5.0, 40.0):
        plan = plan_axis(13, 1.0, target, None, resize=False)
        assert np.allclose(plan.take(np.full((13, 3), 2.0), 0), 2.0)


def test_outside_is_filled_and_nothing_else() -> None:
    volume = Volume(np.ones((4, 4, 2), np.float32), Geometry((2.0, 2.0, 8.0)))
    grown = resample(volume, spacing=(1.0, 1.0, None), size=(12, 12, 4), fill=-1)
    assert (grown.voxels[2:10, 2:10, 1:3] == 1).all()
    assert (grown.voxels == 1).sum() == 8 * 8 * 2 and (grown.voxels == -1).sum() == 12 * 12 * 4 - 128


def test_labels_stay_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 9, 3)).astype(np.uint8)
    volume = Volume(labels, Geometry((1.0, 1.0, 8.0)))
    finer = resample(volume, spacing=(0.5, 0.5, 8.0), labels=True)
    assert finer.voxels.dtype == np.uint8 and set(np.unique(finer.voxels)) <= {0, 1, 2, 3}
    assert np.array_equal(finer.voxels[::2, ::2], labels)


def test_the_way_back_is_the_inverse() -> None:
    plan = AxisPlan(0.7, 1.9, 30, 24)
    back = plan.inverse()
    there = plan.offset + plan.step * (back.offset + back.step * np.arange(24))
    assert np.allclose(there, np.arange(24))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_cubes_are_average_pooling(factor: int) -> None:
    voxels = np.asfortranarray(np.random.default_rng(0).standard_normal((12, 8, 16)).astype(np.float32))
    expected = torch.nn.functional.avg_pool3d(torch.tensor(voxels)[None], factor)[0].numpy()
    assert np.allclose(average_cubes(voxels, factor), expected, atol=1e-6)


def test_a_larger_spacing_is_no_average_pooling() -> None:
    """Its weights fall off as a triangle's do and reach into the neighbours, so that it blurs more."""
    pixel = np.zeros(16)
    pixel[6] = 1
    assert plan_axis(16, 1.0, 2.0, None, resize=False).take(pixel, 0)[2:5].tolist() == [0.125, 0.375, 0.0]
    cube = np.tile(pixel, (2, 2, 1))
    assert average_cubes(cube, 2)[0, 0, 2:5].tolist() == [0.0, 0.5, 0.0]


def test_cubes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CardioDiTError, match="cubes of 2 voxels cannot be taken of 4 × 5 × 6"):
        average_cubes(np.zeros((4, 5, 6)), 2)


def test_the_means_of_a_ramp_lie_where_their_plan_says() -> None:
    plan = plan_axis(20, 1.0, 0.8, 12, resize=False)
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 2, 2))
    means = average_cubes(plan.take(ramp, 0), 2)[:, 0, 0]
    assert np.allclose(means, plan.pooled(2).positions, atol=1e-5)
    assert index_map([plan.pooled(2)])[0, 0] == pytest.approx(1.6)
