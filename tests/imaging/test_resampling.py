import numpy as np
import pytest
import torch
from monai.transforms import ResizeWithPadOrCrop
from scipy.ndimage import zoom

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.resampling import (
    AxisPlan,
    average_cubes,
    index_map,
    periodic_weights,
    plan_axis,
    repeat_beat,
    resample,
    resample_beat,
)
from cardiodit.imaging.volume import Volume


@pytest.mark.parametrize("source", [7, 8])
@pytest.mark.parametrize("size", [4, 5, 7, 8, 11, 12])
def test_crop_and_pad_are_monais(source: int, size: int) -> None:
    line = np.arange(1.0, source + 1)
    expected = ResizeWithPadOrCrop((size,), constant_values=-1)(line[None])[0].numpy()
    ours = resample(Volume(line[:, None, None], Geometry()), size=(size, None, None), fill=-1).voxels[:, 0, 0]
    assert np.array_equal(ours, expected)


def test_a_ramp_stays_a_ramp() -> None:
    """Linear interpolation reproduces a linear function: the ramp at the new positions."""
    plan = plan_axis(20, 1.5, 1.1, None, resize=False)
    ramp = np.arange(20, dtype=float)
    inner = (plan.positions >= 0) & (plan.positions <= 19)
    assert np.allclose(plan.take(ramp, 0)[inner], plan.positions[inner], atol=1e-5)
    assert plan.count == round(20 * 1.5 / 1.1)


@pytest.mark.parametrize("step", [1.1, 1.25, 1.5, 1.7, 2.3, 3.1])
def test_a_coarser_grid_displaces_nothing(step: float) -> None:
    """Its weights reproduce a ramp too, also at the ends: 1.7 voxels of 1.4 mm were up to 0.3 mm off."""
    plan = plan_axis(30, 1.0, step, None, resize=False)
    assert np.allclose(plan.take(np.arange(30, dtype=float), 0), np.clip(plan.positions, 0, 29), atol=1e-4)


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


def test_the_inverse_plan_leads_back() -> None:
    plan = AxisPlan(0.7, 1.9, 30, 24)
    back = plan.inverse()
    there = plan.offset + plan.step * (back.offset + back.step * np.arange(24))
    assert np.allclose(there, np.arange(24))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_means_over_cubes_are_average_pooling(factor: int) -> None:
    voxels = np.asfortranarray(np.random.default_rng(0).standard_normal((12, 8, 16)).astype(np.float32))
    expected = torch.nn.functional.avg_pool3d(torch.tensor(voxels)[None], factor)[0].numpy()
    assert np.allclose(average_cubes(voxels, factor), expected, atol=1e-6)


def test_a_larger_spacing_is_not_average_pooling() -> None:
    """Its weights form a triangle that reaches into neighbouring voxels, so that it blurs more."""
    pixel = np.zeros(16)
    pixel[6] = 1
    assert plan_axis(16, 1.0, 2.0, None, resize=False).take(pixel, 0)[2:5].tolist() == [0.125, 0.375, 0.0]
    cube = np.tile(pixel, (2, 2, 1))
    assert average_cubes(cube, 2)[0, 0, 2:5].tolist() == [0.0, 0.5, 0.0]


def test_shapes_that_cannot_be_pooled_are_refused() -> None:
    with pytest.raises(CardioDiTError, match="4 × 5 × 6 voxels cannot be pooled by 2"):
        average_cubes(np.zeros((4, 5, 6)), 2)


def test_the_means_of_a_ramp_lie_where_their_plan_says() -> None:
    plan = plan_axis(20, 1.0, 0.8, 12, resize=False)
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 2, 2))
    means = average_cubes(plan.take(ramp, 0), 2)[:, 0, 0]
    assert np.allclose(means, plan.pooled(2).positions, atol=1e-5)
    assert index_map([plan.pooled(2)])[0, 0] == pytest.approx(1.6)


@pytest.mark.parametrize("source", [2, 3, 10, 30])
@pytest.mark.parametrize("frames", [1, 2, 8, 16, 30, 32, 50])
def test_a_still_heart_stays_still(source: int, frames: int) -> None:
    assert np.allclose(resample_beat(np.full((2, source), 3.0), frames), 3.0, atol=1e-5)
    assert periodic_weights(source, frames).shape == (frames, source)


@pytest.mark.parametrize("frames", [16, 24, 32, 60])
def test_a_smooth_beat_is_resampled_accurately_around_its_end(frames: int) -> None:
    """Two harmonics, which describe a volume curve well, must equal themselves at the new phases."""

    def beat(phase: np.ndarray) -> np.ndarray:
        return np.cos(2 * np.pi * phase) + 0.3 * np.sin(4 * np.pi * phase)

    resampled = resample_beat(beat(np.arange(30) / 30)[None], frames)[0]
    assert np.abs(resampled - beat(np.arange(frames) / frames)).max() < (0.01 if frames >= 30 else 0.07)


def test_coinciding_frames_are_unchanged() -> None:
    voxels = np.random.default_rng(0).standard_normal((3, 2, 15)).astype(np.float32)
    assert np.allclose(resample_beat(voxels, 30)[..., ::2], voxels, atol=1e-6)
    assert resample_beat(voxels, 15) is voxels


def test_the_cycle_has_no_seam() -> None:
    """Rolling the beat and resampling it commute."""
    voxels = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    rolled = resample_beat(np.roll(voxels, -3, axis=-1), 20)
    assert np.allclose(rolled, np.roll(resample_beat(voxels, 20), -5, axis=-1), atol=1e-5)


def test_labels_come_from_the_nearest_frame() -> None:
    labels = np.arange(10, dtype=np.uint8)[None]
    resampled = resample_beat(labels, 20, labels=True)[0]
    assert resampled.dtype == np.uint8
    assert resampled.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 0]


def test_repeating_cuts_the_last_cycle() -> None:
    voxels = np.arange(5)[None]
    assert repeat_beat(voxels, 12)[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert repeat_beat(voxels, 3)[0].tolist() == [0, 1, 2]


def test_one_frame_is_not_a_beat() -> None:
    with pytest.raises(CardioDiTError, match="needs at least 2 frames"):
        resample_beat(np.zeros((4, 1)), 8)
