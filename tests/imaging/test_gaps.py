"""Incomplete images: the grid of their completion, what was measured on it, and how a model sees it."""

from dataclasses import replace

import numpy as np
import pytest

from cardiodit import CardioDiTError, Gaps, Geometry, Intensity, Preprocessing, Volume
from cardiodit.imaging.gaps import estimate_noise, find_gaps, view_for_model
from cardiodit.imaging.orientation import StorageOrder

# Oblique, and stored from apex to base, so that axes are swapped and flipped.
OBLIQUE = Geometry.of_affine(
    np.array([[0.9, -1.1, 4.8, 7], [-1.2, -0.1, -4.4, -20], [0.4, 1.0, -4.5, 31], [0, 0, 0, 1]]), 0.05
)
STEPS = Preprocessing(size=(12, 16, None), frames=8, intensity=Intensity(0, 1000))


def smooth_cine(shape: tuple[int, ...] = (18, 20, 6, 8), seed: int = 0) -> np.ndarray:
    """A few waves along all axes, periodic in time, between 100 and 900."""
    random, total = np.random.default_rng(seed), np.zeros(shape)
    grids = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    for _ in range(5):
        waves = sum(random.uniform(-0.7, 0.7) * grid for grid in grids[:3]) + random.integers(0, 3) * grids[-1]
        total += np.sin(2 * np.pi * (waves + random.uniform()))
    return 500 + 400 * total / np.abs(total).max()


def integers(shape: tuple[int, ...] = (5, 6, 7, 8)) -> Volume:
    voxels = np.random.default_rng(0).integers(-300, 900, shape, dtype=np.int16)
    return Volume(voxels, OBLIQUE if len(shape) == 4 else OBLIQUE.with_frame_time(None))


@pytest.mark.parametrize(
    ("gaps", "slices", "frames"),
    [
        (Gaps(missing_slices=(0, 3), missing_frames=(5,)), [1, 2, 4, 5, 6], [0, 1, 2, 3, 4, 6, 7]),
        (Gaps(insert_slices=2), range(7), range(8)),
        (Gaps(insert_frames=1, missing_slices=(6,)), range(6), range(8)),
    ],
)
def test_measured_voxels_keep_value_type_and_place(gaps: Gaps, slices: list[int], frames: list[int]) -> None:
    image = integers()
    incomplete = find_gaps(image, gaps)
    done = incomplete.with_measured(np.full(incomplete.filled.voxels.shape, 333.3))
    assert done.voxels.dtype == np.int16
    where = np.zeros(done.voxels.shape, bool)
    every, often = gaps.insert_slices + 1, gaps.insert_frames + 1
    for d in slices:
        for t in frames:
            assert np.array_equal(done.voxels[:, :, d * every, t * often], image.voxels[:, :, d, t])
            where[:, :, d * every, t * often] = True
    assert (done.voxels[~where] == 333).all() and (~where).any()
    old, new = np.array([2, 3, 4, 1.0]), np.array([2, 3, 4 * every, 1.0])
    assert np.allclose(image.geometry.affine @ old, done.geometry.affine @ new)
    assert done.geometry.frame_time == pytest.approx(0.05 / often)


def test_thin_slices_have_the_mean_and_the_place_of_the_thick_one() -> None:
    image = integers()
    incomplete = find_gaps(image, Gaps(split_slices=3))
    for voxels in (np.zeros(incomplete.filled.voxels.shape), incomplete.filled.voxels):
        done = incomplete.with_measured(voxels)
        assert done.voxels.shape == (5, 6, 21, 8) and done.voxels.dtype == np.float32
        means = done.voxels.reshape(5, 6, 7, 3, 8).mean(axis=3)
        assert np.allclose(means, image.voxels, atol=1e-3)
    assert np.allclose(image.geometry.affine @ [0, 0, 2, 1], done.geometry.affine @ [0, 0, 7, 1])
    assert done.geometry.spacing == pytest.approx((*image.geometry.spacing[:2], image.geometry.spacing[2] / 3))


def test_gaps_are_filled_by_cubic_splines_that_close_over_the_beat() -> None:
    z, t = np.arange(9.0), np.arange(32)
    curve = np.sin(2 * np.pi * t / 32)
    whole = ((z - 4) ** 3 - 5 * z)[:, None] + 100 * curve
    voxels = np.broadcast_to(whole, (2, 2, 9, 32)).copy()
    filled = find_gaps(Volume(voxels, Geometry()), Gaps((1, 4, 6), (0, 7, 31))).filled.voxels
    assert np.abs(filled - voxels).max() < 0.02
    ends = find_gaps(Volume(voxels, Geometry()), Gaps((0, 1, 8))).filled.voxels
    assert np.allclose(ends[:, :, :2], voxels[:, :, 2:3], atol=1e-4)  # nothing is extrapolated
    single = find_gaps(Volume(voxels[:, :, :2, :1], Geometry()), Gaps((1,))).filled.voxels
    assert np.array_equal(single[:, :, 1], single[:, :, 0])


@pytest.mark.parametrize("gaps", [Gaps((1, 4)), Gaps((0,), (2, 3)), Gaps(split_slices=2), Gaps(insert_frames=1)])
@pytest.mark.parametrize("end_diastole", [0, 2])
def test_what_a_model_sees_agrees_with_the_complete_volume(gaps: Gaps, end_diastole: int) -> None:
    """The measured values are those that its slices and frames have in the complete volume, preprocessed."""
    whole = Volume(smooth_cine(), OBLIQUE)
    measured = whole.voxels
    if gaps.split_slices > 1:
        measured = measured.reshape(18, 20, 3, 2, 8).mean(axis=3)
    if gaps.insert_frames:
        measured = measured[..., ::2]
    damaged = measured.copy()
    damaged[:, :, list(gaps.missing_slices)] = -7e4
    damaged[..., list(gaps.missing_frames)] = 7e4
    incomplete = find_gaps(Volume(damaged, OBLIQUE), gaps)
    order = StorageOrder((1, 0, 2), (0, 2), end_diastole)
    view = view_for_model(incomplete, STEPS, order)
    model = STEPS(whole, order).volume.voxels
    seen = np.einsum("md,hwdt,nt->hwmn", view.slices, model, view.frames)
    assert seen.shape == view.values.shape and np.abs(seen - view.values).max() < 1e-4
    restored = view.restore(model)
    inside = np.isclose(view.restore(np.ones_like(model)), 1000)
    assert inside.sum() == model.size
    assert np.abs(restored - whole.voxels)[inside].max() < 0.1
    assert np.array_equal(restored[~inside], incomplete.filled.voxels[~inside])


def test_frames_and_slices_of_another_number_than_the_model_has() -> None:
    steps = replace(STEPS, frames=12, spacing=(None, None, 5.0), size=(12, 16, 9))
    whole = Volume(smooth_cine(), replace(OBLIQUE, spacing=(1.55, 1.49, 8.0)))
    view = view_for_model(find_gaps(whole, Gaps((2,), (4,))), steps)
    assert view.slices.shape == (5, 9) and view.frames.shape == (7, 12)
    assert np.allclose(view.slices.sum(axis=1), 1, atol=1e-4) and np.allclose(view.frames.sum(axis=1), 1, atol=1e-4)
    seen = np.einsum("md,hwdt,nt->hwmn", view.slices, steps(whole).volume.voxels, view.frames)
    assert np.abs(seen - view.values).mean() < 0.03  # resampling to the model's grid and back blurs a little


def test_slices_beyond_the_models_view_constrain_nothing() -> None:
    view = view_for_model(find_gaps(Volume(smooth_cine(), OBLIQUE), Gaps((3,))), replace(STEPS, size=(12, 16, 4)))
    assert view.slices.shape == (3, 4) and view.values.shape == (12, 16, 3, 8)
    with pytest.raises(CardioDiTError, match="No measured slice lies within the model's field of view"):
        view_for_model(find_gaps(Volume(smooth_cine(), OBLIQUE), Gaps((1, 2, 3, 4))), replace(STEPS, size=(12, 16, 4)))


def test_noise_is_estimated_without_the_image() -> None:
    noise = np.random.default_rng(1).normal(0, 12, (40, 48, 3, 4))
    assert estimate_noise(smooth_cine((40, 48, 3, 4)) + noise) == pytest.approx(12, rel=0.1)


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ({}, "There is nothing to complete"),
        ({"insert_slices": -1}, "insert_slices=-1 must be at least 0"),
        ({"split_slices": 0}, "split_slices=0 must be at least 1"),
        ({"split_slices": 2, "insert_slices": 1}, "Slices are either thick .* or have gaps"),
        ({"noise": float("nan")}, "noise=nan must be at least 0"),
        ({"missing_slices": (7,)}, "There is no slice 7: the image has 7, counted from 0"),
        ({"missing_frames": (-1,)}, "There is no frame -1"),
        ({"missing_frames": tuple(range(8))}, "All 8 frames are missing"),
    ],
)
def test_what_cannot_be_completed(gaps: dict, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        find_gaps(integers(), Gaps(**gaps))


def test_a_3d_image_has_no_frames() -> None:
    with pytest.raises(CardioDiTError, match="has no frames to complete"):
        find_gaps(integers((5, 6, 7)), Gaps(insert_frames=1))
    image = integers((5, 6, 7))
    done = find_gaps(image, Gaps((2,))).with_measured(np.zeros((5, 6, 7)))
    assert np.array_equal(np.delete(done.voxels, 2, 2), np.delete(image.voxels, 2, 2))
    assert (done.voxels[:, :, 2] == 0).all()


def test_damaged_measurements_are_refused() -> None:
    voxels = smooth_cine()
    voxels[0, 0, 1, 0] = np.nan
    with pytest.raises(CardioDiTError, match="not numbers"):
        find_gaps(Volume(voxels, OBLIQUE), Gaps((2,)))
    assert np.isfinite(find_gaps(Volume(voxels, OBLIQUE), Gaps((1,))).filled.voxels).all()
