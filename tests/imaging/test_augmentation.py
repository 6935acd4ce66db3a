import math

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.augmentation import Augmentation, rotate, rotate_volume, rotation_matrix

ALWAYS = {"rotation_probability": 1.0, "flip_probability": 0.5, "intensity_probability": 1.0}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def moving_spot() -> torch.Tensor:
    """A spot `(1, H, W, T)` that moves from frame to frame."""
    h, w, t = torch.meshgrid(torch.arange(40.0), torch.arange(36.0), torch.arange(6.0), indexing="ij")
    return torch.exp(-0.5 * ((h - 20 - 2 * t) ** 2 + (w - 14) ** 2) / 25)[None] * 2 - 1


def test_frames_are_not_mixed(moving_spot: torch.Tensor) -> None:
    """Every frame changes as if it were alone: no frame affects another."""
    for seed in range(8):
        together, _ = Augmentation(20, **ALWAYS)(moving_spot, generator=generator(seed))
        for frame in range(6):
            alone, _ = Augmentation(20, **ALWAYS)(moving_spot[..., frame : frame + 1], generator=generator(seed))
            assert torch.allclose(together[..., frame : frame + 1], alone, atol=1e-6)


def test_slices_are_not_mixed() -> None:
    cine = torch.rand(1, 3, 16, 16, 4) * 2 - 1
    together, _ = Augmentation(20, **ALWAYS)(cine, generator=generator(1))
    alone, _ = Augmentation(20, **ALWAYS)(cine[:, 1], generator=generator(1))
    assert torch.allclose(together[:, 1], alone, atol=1e-6)


@pytest.mark.parametrize("degrees", [-20, 7, 33])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 2.0)])
def test_a_rotation_turns_by_its_angle_in_mm(degrees: float, spacing: tuple[float, float]) -> None:
    """The closed form: the centre of a spot, turned around the centre of the plane."""
    at = np.array([9.0, -6.0])  # mm from the centre
    h, w = torch.meshgrid(torch.arange(61.0) - 30, torch.arange(61.0) - 30, indexing="ij")
    spot = torch.exp(-0.5 * ((h * spacing[0] - at[0]) ** 2 + (w * spacing[1] - at[1]) ** 2) / 9)
    turned = rotate(spot[..., None], math.radians(degrees), spacing=spacing)[..., 0]
    centre = [float((axis * s * turned).sum() / turned.sum()) for axis, s in zip((h, w), spacing)]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert centre == pytest.approx([cosine * at[0] - sine * at[1], sine * at[0] + cosine * at[1]], abs=0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_turns_about_each_axis_by_its_angle_in_mm(axis: int) -> None:
    """The closed form: the centre of a spot, turned around the centre of the volume."""
    spacing, angle, at = (1.0, 1.5, 2.5), math.radians(25), np.array([8.0, -6.0, 7.0])
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip((41, 31, 23), spacing)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    spot = torch.exp(-0.5 * ((places - torch.from_numpy(at).float()) ** 2).sum(dim=-1) / 16)
    matrix = rotation_matrix(*(angle * (axis == a) for a in range(3)))
    turned = rotate_volume(spot[None], matrix, spacing)[0]
    centre = (places * turned[..., None]).sum(dim=(0, 1, 2)) / turned.sum()
    first, second = [other for other in range(3) if other != axis]
    expected = at.copy()
    expected[first] = math.cos(angle) * at[first] - math.sin(angle) * at[second]
    expected[second] = math.sin(angle) * at[first] + math.cos(angle) * at[second]
    assert centre.tolist() == pytest.approx(expected.tolist(), abs=0.1)


def test_a_turn_within_the_plane_is_the_same_for_a_volume() -> None:
    volume = torch.rand(1, 12, 10, 8, generator=generator(0))
    turned = rotate_volume(volume, rotation_matrix(0.0, 0.0, 0.3), (1.0, 1.5, 2.0))
    torch.testing.assert_close(turned, rotate(volume, 0.3, spacing=(1.0, 1.5)), rtol=0, atol=1e-5)


def test_volumes_turn_about_the_chosen_axes_with_their_masks() -> None:
    """A ball on one axis stays where it is if the volume turns about that axis, and moves about all."""
    places = torch.stack(torch.meshgrid(*[torch.arange(21.0) - 10] * 3, indexing="ij"))
    centre = torch.tensor([7.0, 0.0, 0.0]).view(3, 1, 1, 1)
    mask = (((places - centre) ** 2).sum(dim=0) < 9)[None].to(torch.uint8) * 4
    settings = {"rotation_degrees": 30.0, "rotation_probability": 1.0, "flip_probability": 0.0}
    for axes, is_still in (((0,), True), ((0, 1, 2), False)):
        image, (moved,) = Augmentation(**settings, rotation_axes=axes)(mask.float() / 4, [mask], generator(3))
        assert set(moved.unique().tolist()) == {0, 4} and moved.dtype == torch.uint8
        overlap = 2 * ((moved > 0) & (mask > 0)).sum() / ((moved > 0).sum() + (mask > 0).sum())
        assert (overlap > 0.95) == is_still
        assert 2 * ((image > 0.5) & (moved > 0)).sum() / ((image > 0.5).sum() + (moved > 0).sum()) > 0.9


def test_slices_of_a_cine_are_not_turned_out_of_their_plane() -> None:
    turning = Augmentation(rotation_axes=(0, 1, 2))
    turning.check(is_cine=False)
    Augmentation().check(is_cine=True)
    with pytest.raises(CardioDiTError, match=r"rotation_axes=\[0, 1, 2\] turns slices out of their plane"):
        turning.check(is_cine=True)


def test_masks_move_along_and_stay_labels(moving_spot: torch.Tensor) -> None:
    mask = (moving_spot > 0).to(torch.uint8) * 3
    for seed in range(6):
        image, (moved,) = Augmentation(15, 1.0, 0.5)(moving_spot, [mask], generator(seed))
        assert moved.dtype == torch.uint8 and set(moved.unique().tolist()) == {0, 3}
        expected = image > 0
        overlap = 2 * (expected & (moved == 3)).sum() / (expected.sum() + (moved == 3).sum())
        assert overlap > 0.93


def test_augmentation_is_seeded_and_does_not_change_its_input(moving_spot: torch.Tensor) -> None:
    before = moving_spot.clone()
    first, _ = Augmentation(**ALWAYS)(moving_spot, generator=generator(4))
    again, _ = Augmentation(**ALWAYS)(moving_spot, generator=generator(4))
    other, _ = Augmentation(**ALWAYS)(moving_spot, generator=generator(5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(moving_spot, before)


def test_each_change_happens_with_its_probability() -> None:
    tilted = torch.arange(16.0).reshape(1, 4, 4, 1) / 16
    flips = Augmentation(rotation_probability=0, flip_probability=0.3, flip_axes=(0,))
    random = generator(0)
    flipped = [torch.equal(flips(tilted, generator=random)[0], tilted.flip(1)) for _ in range(1000)]
    assert sum(flipped) == pytest.approx(300, abs=45)  # three standard deviations
    assert all(torch.equal(Augmentation(0, 0, 0)(tilted, generator=random)[0], tilted) for _ in range(20))


def test_intensities_stay_in_range() -> None:
    image = torch.linspace(-1, 1, 48).reshape(1, 4, 4, 3)
    changed, _ = Augmentation(rotation_probability=0, flip_probability=0, intensity_probability=1, contrast=0.5)(image)
    assert changed.min() >= -1 and changed.max() <= 1 and not torch.equal(changed, image)


@pytest.mark.parametrize("settings", [{"flip_probability": 1.5}, {"flip_axes": (2,)}, {"rotation_axes": (3,)}])
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(CardioDiTError, match="must be between|may only contain"):
        Augmentation(**settings)
