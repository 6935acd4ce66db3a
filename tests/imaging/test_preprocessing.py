import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.phantom import Phantom, draw_heart, render
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.imaging.volume import Volume


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    random = np.random.default_rng(5)
    return render(draw_heart("normal", random), (48, 40, 6, 10), random)


@pytest.fixture
def heart(phantom: Phantom) -> Volume:
    return Volume(phantom.image, phantom.geometry)


def published(volume: np.ndarray, size: tuple[int, int, int], frames: int) -> np.ndarray:
    """CardioDiT's preprocessing, written down from its description with MONAI's crop and pad."""
    from monai.transforms import ResizeWithPadOrCrop

    scaled = (volume - volume.min()) / (volume.max() - volume.min()) * 2 - 1
    repeated = np.concatenate([scaled] * (frames // volume.shape[3] + 1), axis=3)[..., :frames]
    return ResizeWithPadOrCrop((*size, frames), constant_values=-1)(repeated[None])[0].numpy()


@pytest.mark.parametrize("size", [(32, 56, 8), (64, 32, 4), (47, 41, 6)])
def test_the_published_settings_are_the_published_numbers(heart: Volume, size: tuple[int, int, int]) -> None:
    ours = replace(PRESETS["cardiodit-volume"], size=size)(heart)
    assert np.allclose(ours.volume.voxels, published(heart.voxels.astype(float), size, 32), atol=1e-6)
    assert ours.volume.geometry.frame_time == heart.geometry.frame_time  # it repeats, it does not stretch


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    preset = PRESETS[name]
    assert Preprocessing.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_tensors_have_the_models_axes(heart: Volume) -> None:
    prepared = Preprocessing(size=(32, 36, 5), frames=16)(heart)
    assert prepared.tensor().shape == (1, 5, 32, 36, 16) and prepared.tensor().dtype == torch.float32
    assert torch.equal(prepared.tensor()[0, 2, :, :, 7], torch.from_numpy(prepared.volume.voxels[:, :, 2, 7].copy()))
    ct = Preprocessing(size=(20, 20, 4), intensity=Intensity(0, 900))(Volume(heart.voxels[..., 0], heart.geometry))
    assert ct.tensor().shape == (1, 20, 20, 4)


def test_the_beat_keeps_its_length(heart: Volume) -> None:
    prepared = Preprocessing(frames=25)(heart)
    assert prepared.volume.beat_time == pytest.approx(heart.beat_time)


def test_undone_it_is_the_source_again(heart: Volume, phantom: Phantom) -> None:
    """Nothing is lost when voxels are only moved: not the units, the type, the axes or the place."""
    stored = heart.permute((1, 0, 2)).flip(2).flip(0)
    prepared = Preprocessing(size=(64, 64, 9))(stored)
    back = prepared.undo()
    assert np.array_equal(back.voxels, stored.voxels) and back.voxels.dtype == stored.voxels.dtype
    assert back.geometry == stored.geometry


def test_undone_after_resampling_it_is_close(heart: Volume) -> None:
    prepared = Preprocessing((1.5, 1.5, None), (96, 96, 6), frames=20)(heart)
    back = prepared.undo()
    assert back.voxels.shape == heart.voxels.shape and back.geometry == heart.geometry
    difference = np.abs(back.voxels.astype(float) - heart.voxels)
    assert difference.mean() < 0.03 * np.ptp(heart.voxels)  # of which much is the noise that interpolation smooths


def test_undone_what_was_cropped_is_the_lowest_value(heart: Volume) -> None:
    back = Preprocessing(size=(20, 20, 4))(heart).undo()
    assert (back.voxels[0] == heart.voxels.min()).all()
    assert np.array_equal(back.voxels[14:34, 10:30, 1:5], heart.voxels[14:34, 10:30, 1:5])


def test_the_order_of_frames_and_slices_comes_back(phantom: Phantom) -> None:
    stored = Volume(phantom.image, phantom.geometry).flip(2).roll(4)
    steps = Preprocessing()
    order = steps.order_of(stored, end_diastole=6)
    prepared = steps(stored, order)
    assert np.array_equal(prepared.undo().voxels, stored.voxels)
    first = prepared.volume.voxels[..., 0]
    expected = Preprocessing()(Volume(phantom.image, phantom.geometry)).volume.voxels[..., 0]
    assert np.allclose(first, expected)


def test_masks_follow_their_image(phantom: Phantom, heart: Volume) -> None:
    """The blood in a resampled mask is the bright part of the resampled image, and it holds as many mL."""
    stored, labels = heart.flip(1).flip(0), Volume(phantom.labels, heart.geometry).flip(1).flip(0)
    prepared = Preprocessing((2.0, 2.0, None), (60, 60, 6), frames=12, intensity=Intensity("p1", "p99"))(stored)
    mask = prepared.follow(labels)
    assert mask.shape == prepared.volume.voxels.shape and mask.dtype == np.uint8
    image = prepared.volume.voxels
    assert image[mask == 3].mean() > 0.5 > image[mask == 2].mean()
    milliliters = (mask[..., 0] == 3).sum() * prepared.volume.geometry.voxel_ml
    assert milliliters == pytest.approx((phantom.labels[..., 0] == 3).sum() * heart.geometry.voxel_ml, rel=0.03)
    one_frame = prepared.follow(Volume(labels.voxels[..., 0], labels.geometry))
    assert np.array_equal(one_frame, mask[..., 0])


def test_a_mask_of_another_grid_is_refused(phantom: Phantom, heart: Volume) -> None:
    prepared = Preprocessing()(heart)
    with pytest.raises(CardioDiTError, match="not that of its image"):
        prepared.follow(Volume(phantom.labels[:-1], heart.geometry))
    with pytest.raises(CardioDiTError, match="not that of its image"):
        prepared.follow(Volume(phantom.labels, Geometry((1.0, 1.0, 8.0))))


def test_hounsfield_units_come_back(heart: Volume) -> None:
    ct = Volume((heart.voxels[..., 0] - 500).astype(np.int16), heart.geometry)
    steps = replace(PRESETS["voldit-tgca"], size=(60, 60, 10))
    prepared = steps(ct)
    assert (prepared.volume.voxels[0] == -1).all()  # air, not the 0 HU of water
    assert np.array_equal(prepared.undo().voxels, ct.voxels.clip(-1000, 1000))
    resized = replace(PRESETS["voldit"], size=(96, 80, 12))(ct)
    assert resized.volume.geometry.spacing == pytest.approx(np.array(ct.geometry.spacing) / 2, rel=1e-5)


def test_undone_a_resized_volume_has_the_files_grid_and_is_close(heart: Volume) -> None:
    ct = Volume((heart.voxels[..., 0] - 500).astype(np.int16), heart.geometry)
    prepared = replace(PRESETS["voldit"], size=(96, 80, 12))(ct)
    back = prepared.undo()
    assert back.voxels.shape == ct.voxels.shape and back.voxels.dtype == np.int16
    assert np.allclose(back.geometry.affine, ct.geometry.affine)
    clipped = ct.voxels.astype(float).clip(-1000, 1000)
    difference = np.abs(back.voxels - clipped)
    assert difference.mean() < 0.04 * np.ptp(clipped) and np.corrcoef(back.voxels.ravel(), clipped.ravel())[0, 1] > 0.98
    # The corners of the field of view stay where they are: half a voxel before the first and behind the last.
    for corner in (0, 1):
        here, there = (
            geometry.affine @ [*(corner * np.array(size) - 0.5), 1]
            for geometry, size in ((prepared.volume.geometry, (96, 80, 12)), (ct.geometry, ct.voxels.shape))
        )
        assert np.allclose(here, there, atol=1e-3)


def test_cropped_and_padded_a_volume_lies_where_it_lay(heart: Volume) -> None:
    ct = Volume(heart.voxels[..., 0], heart.geometry)
    prepared = replace(PRESETS["voldit-tgca"], size=(20, 60, 4))(ct)
    shift = np.eye(4)
    shift[:3, 3] = (48 - 20) / 2, -(60 - 40) / 2, (6 - 4) / 2
    assert np.allclose(prepared.volume.geometry.affine, ct.geometry.affine @ shift, atol=1e-4)
    assert np.allclose(prepared.undo().geometry.affine, ct.geometry.affine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (64, 0, None)}, "size=.* must be three positive numbers"),
        ({"spacing": (1.0, 1.0)}, "spacing=.* must be three positive numbers"),
        ({"frames": 0}, "frames=0"),
        ({"cycle": "loop"}, "cycle='loop' .* must be one of"),
        ({"fit": "resize", "spacing": (1, 1, 1)}, "has a spacing and resizes"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        Preprocessing(**settings)


def test_volumes_that_do_not_fit_the_settings_are_refused(heart: Volume) -> None:
    still = Volume(heart.voxels[..., 0], heart.geometry)
    with pytest.raises(CardioDiTError, match="this volume is 3D"):
        Preprocessing(frames=16)(still)
    with pytest.raises(CardioDiTError, match="cannot be resampled to a spacing"):
        Preprocessing((1.0, 1.0, None))(Volume(heart.voxels, Geometry()))
    with pytest.raises(CardioDiTError, match="unknown setting 'colour'"):
        Preprocessing.from_dict({"colour": "blue"})
