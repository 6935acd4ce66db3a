"""What is done to slices shows in the through-plane measures, what is done to frames in the temporal ones."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.consistency import MEASURES, TEMPORAL, THROUGH_PLANE, area_roughness, consistency
from cardiodit.evaluation.metrics.function import LV
from cardiodit.imaging import Geometry
from cardiodit.imaging.phantom.heart import GROUPS, draw_heart
from cardiodit.imaging.phantom.scene import render
from cardiodit.imaging.resampling import repeat_beat

Cine = tuple[np.ndarray, np.ndarray, Geometry]
SIZE = (64, 64, 8, 16)
ORDER = [3, 0, 6, 2, 7, 5, 1, 4]  # of slices
DELAYS = [0, 5, 11, 3, 8, 14, 6, 10]  # of slices, in frames


@pytest.fixture(scope="module", params=GROUPS)
def real(request: pytest.FixtureRequest) -> Cine:
    random = np.random.default_rng([7])
    drawn = render(draw_heart(request.param, random), SIZE, random)
    low, high = np.percentile(drawn.image, (0.5, 99.5))
    return np.clip((drawn.image - low) / (high - low) * 2 - 1, -1, 1), drawn.labels, drawn.geometry


def shuffled_slices(voxels: np.ndarray) -> np.ndarray:
    return voxels[:, :, ORDER]


def shuffled_frames(voxels: np.ndarray) -> np.ndarray:
    return voxels[..., np.random.default_rng([5]).permutation(voxels.shape[3])]


def frozen(voxels: np.ndarray) -> np.ndarray:
    """Six frames stand still, then it goes on."""
    found = voxels.copy()
    found[..., 5:11] = voxels[..., 5:6]
    return found


def out_of_step(voxels: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(voxels[:, :, d], delay, axis=2) for d, delay in enumerate(DELAYS)], axis=2)


def out_of_place(voxels: np.ndarray) -> np.ndarray:
    places = [0, 3, -2, 3, -3, 1, -2, 2]
    return np.stack([np.roll(voxels[:, :, d], place, axis=0) for d, place in enumerate(places)], axis=2)


def measured(real: Cine, change: Callable[[np.ndarray], np.ndarray] = np.asarray) -> dict[str, float]:
    cine, labels, geometry = real
    return consistency(change(cine), geometry, change(labels))


def along(axis: str, found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if MEASURES[name].axis == axis}


def test_every_measure_is_taken_and_within_its_range(real: Cine) -> None:
    found = measured(real)
    assert list(found) == list(MEASURES)
    assert all(found[name] <= 1 for name in ("slice_synchrony", "slice_dice", "frame_correlation", "frame_gap"))
    assert found["frame_gap"] == found["label_gap"] == 0  # phantoms' beats close


def test_slices_in_a_wrong_order_leave_time_exactly_as_it_is(real: Cine) -> None:
    before, after = measured(real), measured(real, shuffled_slices)
    assert along(TEMPORAL, after) == along(TEMPORAL, before)
    assert after["slice_difference"] > 1.7 * before["slice_difference"]
    assert after["slice_dice"] < 0.6 * before["slice_dice"]
    assert after["slice_synchrony"] < 0.6 * before["slice_synchrony"]


def test_slices_out_of_place(real: Cine) -> None:
    before, after = measured(real), measured(real, out_of_place)
    assert along(TEMPORAL, after) == pytest.approx(along(TEMPORAL, before), rel=1e-9)
    assert after["centroid_jump_mm"] > 3 * before["centroid_jump_mm"]
    assert after["slice_dice"] < 0.85 * before["slice_dice"]
    assert after["area_synchrony"] == before["area_synchrony"]


def test_frames_in_a_wrong_order_leave_slices_as_they_are(real: Cine) -> None:
    before, after = measured(real), measured(real, shuffled_frames)
    assert along(THROUGH_PLANE, after) == pytest.approx(along(THROUGH_PLANE, before), rel=1e-9)
    assert after["frame_change"] > 1.3 * before["frame_change"]
    assert after["frame_correlation"] < 0.2 < before["frame_correlation"]
    assert after["label_change"] > 2 * before["label_change"]
    assert after["area_roughness"] > 3 * before["area_roughness"]


def test_frozen_frames_leave_slices_nearly_as_they_are(real: Cine) -> None:
    before, after = measured(real), measured(real, frozen)
    assert along(THROUGH_PLANE, after) == pytest.approx(along(THROUGH_PLANE, before), rel=0.15, abs=0.01)
    assert after["frame_change"] < 0.85 * before["frame_change"]
    assert after["frame_stall"] == 0 and before["frame_stall"] > 0.5
    assert after["area_roughness"] > 1.3 * before["area_roughness"]


def test_a_still_heart_moves_by_nothing_and_is_in_step(real: Cine) -> None:
    found = measured(real, lambda voxels: np.repeat(voxels[..., :1], SIZE[3], axis=3))
    assert {n: found[n] for n in ("frame_change", "label_change", "area_roughness", "frame_stall", "frame_gap")} == {
        "frame_change": 0,
        "label_change": 0,
        "area_roughness": 0,
        "frame_stall": 0,
        "frame_gap": 0,
    }
    assert found["frame_correlation"] == found["area_synchrony"] == pytest.approx(1)


def test_slices_out_of_step_show_between_slices_and_not_in_time(real: Cine) -> None:
    before, after = measured(real), measured(real, out_of_step)
    assert after["slice_synchrony"] < 0 < before["slice_synchrony"]
    assert after["area_synchrony"] < 0 and before["area_synchrony"] > 0.8
    gaps = {"frame_gap", "label_gap"}  # look at where the beat begins, and it closes wherever that is
    for name, value in along(TEMPORAL, before).items():
        assert after[name] == pytest.approx(value, abs=0.1 if name in gaps else 1e-9)


def test_half_a_beat_does_not_close(real: Cine) -> None:
    found = measured(real, lambda voxels: voxels[..., :7])
    assert found["frame_gap"] > 0.15 and found["label_gap"] > 0.5


def test_a_cine_that_is_no_whole_beat_ends_with_its_last_frame(real: Cine) -> None:
    """A beat and its first frame once more: the same steps as of the beat alone, none from the last to the first."""
    cine, labels, geometry = (np.concatenate([x, x[..., :1]], axis=3) if isinstance(x, np.ndarray) else x for x in real)
    before, after = measured(real), consistency(cine, geometry, labels, closes=False)
    assert set(before) - set(after) == {"frame_gap", "label_gap"} and set(after) < set(before)
    for name in ("frame_change", "frame_stall"):
        assert after[name] == pytest.approx(before[name], rel=1e-9)
    for name, value in after.items():
        assert value == pytest.approx(before[name], rel=0.1, abs=0.01), name
    assert consistency(cine, geometry, labels)["frame_stall"] == 0  # as a whole beat it would seem to stand still


def test_a_repeated_beat_is_as_consistent_as_one_beat(real: Cine) -> None:
    before, after = measured(real), measured(real, lambda voxels: repeat_beat(voxels, 21))
    assert max(after["frame_gap"], after["label_gap"]) > 0.3  # of a perfect heart
    cine, labels, geometry = (repeat_beat(x, 21) if isinstance(x, np.ndarray) else x for x in real)
    for name, value in consistency(cine, geometry, labels, closes=False).items():
        assert value == pytest.approx(before[name], rel=0.3, abs=0.02), name


def test_a_single_slice_a_missing_mask_and_an_unknown_size_leave_measures_out(real: Cine) -> None:
    cine, labels, geometry = real
    assert set(consistency(cine, geometry)) == {name for name, m in MEASURES.items() if not m.needs_labels}
    assert "centroid_jump_mm" not in consistency(cine, Geometry(), labels)
    assert set(consistency(cine[:, :, 3:4], geometry, labels[:, :, 3:4])) == {
        name for name, measure in MEASURES.items() if measure.axis != THROUGH_PLANE
    }
    empty = consistency(cine, geometry, np.zeros_like(labels))
    assert not {"slice_dice", "centroid_jump_mm", "area_synchrony", "label_change"} & set(empty)


def test_blur_noise_and_checkerboards_show_between_voxels(real: Cine) -> None:
    cine, _, geometry = real
    usual = consistency(cine, geometry)["voxel_difference"]
    squares = 0.1 * ((np.indices(cine.shape[:2]).sum(axis=0) // 2) % 2 * 2 - 1)[..., None, None]
    noise = np.random.default_rng(0).normal(0, 0.06, cine.shape)
    for changed in (cine + squares, cine + noise):
        assert consistency(changed, geometry)["voxel_difference"] > 1.2 * usual
    assert consistency(gaussian_filter(cine, (1, 1, 0, 0)), geometry)["voxel_difference"] < 0.9 * usual


def test_known_numbers() -> None:
    """Two slices of a square that is 2 × 2 and 2 × 4 voxels, one voxel apart, in four equal frames."""
    labels = np.zeros((8, 8, 2, 4), np.uint8)
    labels[2:4, 2:4, 0], labels[2:4, 3:7, 1] = LV, LV
    cine = np.zeros(labels.shape)
    cine[..., 1, :], cine[..., 1] = 0.5, 0.25  # one frame is different
    found = consistency(cine, Geometry((1.0, 3.0, 8.0)), labels)
    assert found["slice_dice"] == pytest.approx(2 * 2 / 12)
    assert found["centroid_jump_mm"] == pytest.approx(2 * 3.0)  # from 2.5 to 4.5 along W
    assert found["slice_difference"] == pytest.approx(0.5 * 3 / 4)
    assert found["frame_change"] == pytest.approx(0.25 * 2 / 4)
    assert found["slice_synchrony"] == pytest.approx(-1)  # one brightens while the other darkens
    assert found["frame_correlation"] == pytest.approx(-1 / 3)


def test_a_label_that_is_missing_in_between_does_not_overlap() -> None:
    labels = np.zeros((8, 8, 5, 4), np.uint8)
    labels[2:6, 2:6, 1:4] = LV
    whole = consistency(np.zeros(labels.shape), Geometry(), labels)
    labels[:, :, 2] = 0
    assert whole["slice_dice"] == 1
    assert consistency(np.zeros(labels.shape), Geometry(), labels)["slice_dice"] == 0


def test_roughness_of_a_sine_is_that_of_its_second_difference() -> None:
    t = 2 * np.pi * np.arange(16) / 16
    bend = 2 - 2 * np.cos(2 * np.pi / 16)  # second difference of a sine over the sine
    expected = bend * np.abs(np.sin(t)).mean() / 2
    assert area_roughness(100 * np.sin(t)[None]) == pytest.approx(expected)
    assert area_roughness(np.stack([np.sin(t), 5 * np.cos(t)])) == pytest.approx(expected)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(CardioDiTError, match="4 frames"):
        consistency(np.zeros((8, 8, 2, 3)), Geometry())
    with pytest.raises(CardioDiTError, match="grid"):
        consistency(np.zeros((8, 8, 2, 4)), Geometry(), np.zeros((8, 8, 2, 5)))
