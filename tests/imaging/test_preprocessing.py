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
    """CardioDiT's preprocessing, implemented from its description with MONAI's crop and pad."""
    from monai.transforms import ResizeWithPadOrCrop

    scaled = (volume - volume.min()) / (volume.max() - volume.min()) * 2 - 1
    repeated = np.concatenate([scaled] * (frames // volume.shape[3] + 1), axis=3)[..., :frames]
    return ResizeWithPadOrCrop((*size, frames), constant_values=-1)(repeated[None])[0].numpy()


@pytest.mark.parametrize("size", [(32, 56, 8), (64, 32, 4), (47, 41, 6)])
def test_the_published_settings_give_the_published_numbers(heart: Volume, size: tuple[int, int, int]) -> None:
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


def test_the_inverse_restores_the_source(heart: Volume, phantom: Phantom) -> None:
    """Moving voxels loses nothing: units, type, axes and position come back."""
    stored = heart.permute((1, 0, 2)).flip(2).flip(0)
    prepared = Preprocessing(size=(64, 64, 9))(stored)
    back = prepared.inverse()
    assert np.array_equal(back.voxels, stored.voxels) and back.voxels.dtype == stored.voxels.dtype
    assert back.geometry == stored.geometry


def test_the_inverse_of_resampling_is_close(heart: Volume) -> None:
    prepared = Preprocessing((1.5, 1.5, None), (96, 96, 6), frames=20)(heart)
    back = prepared.inverse()
    assert back.voxels.shape == heart.voxels.shape and back.geometry == heart.geometry
    difference = np.abs(back.voxels.astype(float) - heart.voxels)
    assert difference.mean() < 0.03 * np.ptp(heart.voxels)  # much of it is noise that interpolation smooths


def test_the_inverse_fills_cropped_voxels_with_the_lowest_value(heart: Volume) -> None:
    back = Preprocessing(size=(20, 20, 4))(heart).inverse()
    assert (back.voxels[0] == heart.voxels.min()).all()
    assert np.array_equal(back.voxels[14:34, 10:30, 1:5], heart.voxels[14:34, 10:30, 1:5])


def test_the_inverse_restores_the_order_of_frames_and_slices(phantom: Phantom) -> None:
    stored = Volume(phantom.image, phantom.geometry).flip(2).roll(4)
    steps = Preprocessing()
    order = steps.order_of(stored, end_diastole=6)
    prepared = steps(stored, order)
    assert np.array_equal(prepared.inverse().voxels, stored.voxels)
    first = prepared.volume.voxels[..., 0]
    expected = Preprocessing()(Volume(phantom.image, phantom.geometry)).volume.voxels[..., 0]
    assert np.allclose(first, expected)


def test_masks_are_preprocessed_like_their_image(phantom: Phantom, heart: Volume) -> None:
    """The blood in a resampled mask is the bright part of the resampled image, with the same volume in mL."""
    stored, labels = heart.flip(1).flip(0), Volume(phantom.labels, heart.geometry).flip(1).flip(0)
    prepared = Preprocessing((2.0, 2.0, None), (60, 60, 6), frames=12, intensity=Intensity("p1", "p99"))(stored)
    mask = prepared.apply_to_mask(labels)
    assert mask.shape == prepared.volume.voxels.shape and mask.dtype == np.uint8
    image = prepared.volume.voxels
    assert image[mask == 3].mean() > 0.5 > image[mask == 2].mean()
    milliliters = (mask[..., 0] == 3).sum() * prepared.volume.geometry.voxel_ml
    assert milliliters == pytest.approx((phantom.labels[..., 0] == 3).sum() * heart.geometry.voxel_ml, rel=0.03)
    one_frame = prepared.apply_to_mask(Volume(labels.voxels[..., 0], labels.geometry))
    assert np.array_equal(one_frame, mask[..., 0])


def test_a_mask_on_another_grid_is_refused(phantom: Phantom, heart: Volume) -> None:
    prepared = Preprocessing()(heart)
    with pytest.raises(CardioDiTError, match="not that of its image"):
        prepared.apply_to_mask(Volume(phantom.labels[:-1], heart.geometry))
    with pytest.raises(CardioDiTError, match="not that of its image"):
        prepared.apply_to_mask(Volume(phantom.labels, Geometry((1.0, 1.0, 8.0))))
    with pytest.raises(CardioDiTError, match="an unknown voxel size is not that of its image"):
        prepared.apply_to_mask(Volume(phantom.labels, Geometry()))


def test_a_mask_elsewhere_in_space_is_refused_with_both_positions(phantom: Phantom, heart: Volume) -> None:
    prepared = Preprocessing()(heart)
    x, y, z = heart.geometry.origin
    with pytest.raises(CardioDiTError, match="lies elsewhere than its image") as refused:
        prepared.apply_to_mask(Volume(phantom.labels, replace(heart.geometry, origin=(x + 40.0123456, y, z))))
    places = [f"({first:.4g}, {y:.4g}, {z:.4g}) mm" for first in (x + 40.0123456, x)]
    assert f"its first voxel is at {places[0]}, the image's at {places[1]}." in str(refused.value)
    turned = tuple((-row[0], *row[1:]) for row in heart.geometry.direction)
    with pytest.raises(CardioDiTError, match="has another orientation than its image"):
        prepared.apply_to_mask(Volume(phantom.labels, replace(heart.geometry, direction=turned)))


def test_hounsfield_units_come_back(heart: Volume) -> None:
    ct = Volume((heart.voxels[..., 0] - 500).astype(np.int16), heart.geometry)
    steps = replace(PRESETS["voldit-tgca"], size=(60, 60, 10))
    prepared = steps(ct)
    assert (prepared.volume.voxels[0] == -1).all()  # air, not the 0 HU of water
    assert np.array_equal(prepared.inverse().voxels, ct.voxels.clip(-1000, 1000))
    resized = replace(PRESETS["voldit"], size=(96, 80, 12))(ct)
    assert resized.volume.geometry.spacing == pytest.approx(np.array(ct.geometry.spacing) / 2, rel=1e-5)


def test_the_inverse_of_resizing_has_the_files_grid_and_is_close(heart: Volume) -> None:
    ct = Volume((heart.voxels[..., 0] - 500).astype(np.int16), heart.geometry)
    prepared = replace(PRESETS["voldit"], size=(96, 80, 12))(ct)
    back = prepared.inverse()
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


def test_cropping_and_padding_keep_the_position(heart: Volume) -> None:
    ct = Volume(heart.voxels[..., 0], heart.geometry)
    prepared = replace(PRESETS["voldit-tgca"], size=(20, 60, 4))(ct)
    shift = np.eye(4)
    shift[:3, 3] = (48 - 20) / 2, -(60 - 40) / 2, (6 - 4) / 2
    assert np.allclose(prepared.volume.geometry.affine, ct.geometry.affine @ shift, atol=1e-4)
    assert np.allclose(prepared.inverse().geometry.affine, ct.geometry.affine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (64, 0, None)}, "size=.* must be three positive numbers"),
        ({"spacing": (1.0, 1.0)}, "spacing=.* must be three positive numbers"),
        ({"frames": 0}, "frames=0"),
        ({"cycle": "loop"}, "cycle='loop' .* must be one of"),
        ({"fit": "resize", "spacing": (1, 1, 1)}, "has both a spacing and fit"),
        ({"limits_of": "body"}, "limits_of='body' .* must be one of"),
        ({"pool": 0}, "pool=0 .* must divide"),
        ({"pool": 3, "size": (64, 64, None)}, "pool=3 .* must divide its size"),
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


def published_prdit(voxels: np.ndarray, low: float, percentile: float, size: int, pool: int) -> np.ndarray:
    """PRDiT's preprocessing, implemented from its description, of a volume at its spacing in our axis order."""
    from monai.transforms import CenterSpatialCrop

    cropped = CenterSpatialCrop((size,) * 3)(voxels[None].astype(float))[0].numpy()
    cut = cropped.clip(low, np.percentile(cropped, percentile))
    scaled = torch.tensor((cut - cut.min()) / (cut.max() - cut.min()))
    return torch.nn.functional.avg_pool3d(scaled[None], pool)[0].numpy() * 2 - 1


@pytest.fixture
def chest_ct() -> Volume:
    """A CT with 1 mm voxels in our axis order, with air, and more bone in the middle than elsewhere."""
    voxels = np.random.default_rng(0).normal(-500, 400, (40, 44, 36)).clip(-3024, 3000)
    voxels[16:24, 16:24, 16:24] += 600
    return Volume(voxels.astype(np.int16), Geometry((1.0,) * 3, direction=((-1, 0, 0), (0, 1, 0), (0, 0, 1))))


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_prdits_settings_give_the_published_numbers(chest_ct: Volume, pool: int) -> None:
    for name, percentile in (("prdit-lidc", 99.9), ("prdit-radchest", 99.5)):
        preset = PRESETS[name if pool == 1 else f"{name}-{256 // pool}"]
        assert (preset.size, preset.pool, preset.spacing[0]) == ((256,) * 3, pool, 1.0 if "lidc" in name else 0.8)
        ours = replace(preset, spacing=(1.0,) * 3, size=(24,) * 3)(chest_ct)
        expected = published_prdit(chest_ct.voxels, -1000, percentile, 24, pool)
        assert ours.volume.voxels.shape == (24 // pool,) * 3
        assert np.allclose(ours.volume.voxels, expected, atol=1e-5)
        assert ours.volume.geometry.spacing == (pool,) * 3


def test_a_larger_spacing_only_comes_close_to_pooling(chest_ct: Volume) -> None:
    """Resampling uses triangular weights, not a box, and averages before clipping, as documented."""
    pooled = replace(PRESETS["prdit-lidc"], size=(24,) * 3, pool=2)(chest_ct).volume.voxels
    coarser = replace(PRESETS["prdit-lidc"], spacing=(2.0,) * 3, size=(12,) * 3)(chest_ct).volume.voxels
    assert np.abs(pooled - coarser).mean() > 0.05
    assert np.corrcoef(pooled.ravel(), coarser.ravel())[0, 1] > 0.6


def test_limits_come_from_the_view_or_the_file(chest_ct: Volume) -> None:
    steps = Preprocessing(size=(8,) * 3, intensity=Intensity("p1", "p99"))
    inner = chest_ct.voxels[16:24, 18:26, 14:22]
    assert steps(chest_ct).source.limits == pytest.approx(tuple(np.percentile(chest_ct.voxels, [1, 99])))
    assert replace(steps, limits_of="view")(chest_ct).source.limits == pytest.approx(
        tuple(np.percentile(inner, [1, 99]))
    )
    padded = replace(steps, limits_of="view", size=(64,) * 3)(chest_ct)  # padding does not count
    assert padded.source.limits == pytest.approx(tuple(np.percentile(chest_ct.voxels, [1, 99])))


def test_a_small_volume_is_padded_with_air_and_keeps_its_position(chest_ct: Volume) -> None:
    prepared = replace(PRESETS["prdit-lidc-64"], size=(64,) * 3)(chest_ct)
    assert prepared.volume.voxels.shape == (16, 16, 16)
    assert (prepared.volume.voxels[:3] == -1).all() and (prepared.volume.voxels[:, :, 13:] == -1).all()
    outer = prepared.volume.geometry.affine @ [-0.5, -0.5, -0.5, 1]
    assert np.allclose(outer, chest_ct.geometry.affine @ [-12.5, -10.5, -14.5, 1])
    back = prepared.inverse()
    assert back.voxels.shape == chest_ct.voxels.shape and back.geometry == chest_ct.geometry
    labels = Volume((chest_ct.voxels > 0).astype(np.uint8), chest_ct.geometry)
    assert prepared.apply_to_mask(labels).shape == (16, 16, 16)


def test_newer_settings_are_not_written_at_their_defaults() -> None:
    assert not {"pool", "limits_of"} & set(PRESETS["voldit"].to_dict())
    assert PRESETS["prdit-lidc-64"].to_dict()["pool"] == 4


def test_deprecated_names_still_work(phantom: Phantom, heart: Volume) -> None:
    prepared, labels = Preprocessing(frames=5)(heart), Volume(phantom.labels, heart.geometry)
    with pytest.warns(DeprecationWarning, match=r"use Prepared\.inverse"):
        assert np.array_equal(prepared.undo().voxels, prepared.inverse().voxels)
    with pytest.warns(DeprecationWarning, match=r"use Prepared\.apply_to_mask"):
        assert np.array_equal(prepared.follow(labels), prepared.apply_to_mask(labels))
    with pytest.warns(DeprecationWarning, match=r"use Geometry\.reindexed"):
        assert heart.geometry.after(np.eye(4)) == heart.geometry
