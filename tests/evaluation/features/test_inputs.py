"""Normalisations against their definitions, and grids with objects of known size."""

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import BACKGROUND, NORMALISATIONS, InputRules, evenly_spaced


def volume(seed: int = 0) -> np.ndarray:
    """A volume of which half is background at -1."""
    voxels = np.random.default_rng(seed).uniform(-0.9, 1, (8, 6, 4)).astype(np.float32)
    voxels[:4] = -1
    return voxels


def test_values_as_given_and_between_0_and_1() -> None:
    np.testing.assert_array_equal(InputRules().normalise(volume()), volume())
    np.testing.assert_allclose(InputRules("unit").normalise(volume()), (volume() + 1) / 2)
    scaled = InputRules("min-max").normalise(volume() * 0.3)
    assert scaled.min() == 0 and scaled.max() == 1


def test_a_foreground_z_score_excludes_the_background() -> None:
    found = InputRules("foreground z-score").normalise(volume())
    inside = (volume() + 1) / 2 > BACKGROUND
    assert found[inside].mean() == pytest.approx(0, abs=1e-6) and found[inside].std() == pytest.approx(1, abs=1e-6)
    assert len(np.unique(found[~inside])) == 1 and found[~inside].max() < found[inside].min()
    brighter = InputRules("foreground z-score").normalise((volume() + 1) * 0.8 - 1)
    np.testing.assert_allclose(brighter, found, atol=1e-5)  # a gain is removed


@pytest.mark.parametrize("axis", [2, 3])
def test_a_foreground_z_score_does_not_depend_on_the_order_in_any_bit(axis: int) -> None:
    random = np.random.default_rng(3)
    cine = random.uniform(-1, 1, (9, 7, 12, 15))
    score = NORMALISATIONS["foreground z-score"][0]  # in float64
    for _ in range(10):
        order = random.permutation(cine.shape[axis])
        assert np.array_equal(score(cine.take(order, axis)), score(cine).take(order, axis))


@pytest.mark.parametrize("values", ["foreground z-score", "min-max"])
def test_a_constant_volume_gives_zeros(values: str) -> None:
    for level in (-1.0, 0.3):
        assert not InputRules(values).normalise(np.full((4, 4, 2), level, np.float32)).any()


def ball(spacing: tuple[float, float, float], size: tuple[int, int, int]) -> np.ndarray:
    """A ball of 1 with a radius of 20 mm around the centre, in a background of -1."""
    places = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing)]
    h, w, d = np.meshgrid(*places, indexing="ij")
    return np.where(h**2 + w**2 + d**2 < 20**2, 1, -1).astype(np.float32)


def test_one_ball_on_different_grids_gives_the_same_input() -> None:
    rules = InputRules(size=(32, 32, 16), spacing=(2.0, 2.0, 4.0))
    fine = rules.on_grid(ball((1.0, 1.0, 2.0), (50, 80, 40)), (1.0, 1.0, 2.0))
    coarse = rules.on_grid(ball((2.0, 1.0, 4.0), (40, 70, 14)), (2.0, 1.0, 4.0))
    expected = ball((2.0, 2.0, 4.0), (32, 32, 16))
    assert fine.shape == coarse.shape == expected.shape
    for found in (fine, coarse):
        assert np.mean((found > 0) == (expected > 0)) > 0.98
        assert (found > 0).sum() == pytest.approx((expected > 0).sum(), rel=0.1)
        assert found.min() == -1  # the padding is the darkest value


def test_without_a_spacing_the_whole_field_of_view_is_resampled() -> None:
    stripes = np.repeat(np.array([-1, 1], np.float32), 8)[:, None, None] * np.ones((16, 10, 3), np.float32)
    found = InputRules(size=(8, 20, 6)).on_grid(stripes, None)
    assert found.shape == (8, 20, 6)
    np.testing.assert_allclose(found[:3], -1, atol=1e-6)
    np.testing.assert_allclose(found[-3:], 1, atol=1e-6)


def test_padding_at_the_end_leaves_the_beginning_in_place() -> None:
    voxels = volume()
    found = InputRules(size=(10, 6, 3), spacing=(1.0, 1.0, 1.0), padding="end").on_grid(voxels, (1.0, 1.0, 1.0))
    assert found.shape == (10, 6, 3) and np.all(found[8:] == -1)
    assert np.array_equal(found[:8], voxels[:, :, :3]) or np.array_equal(found[:8], voxels[:, :, 1:])


def test_time_is_resampled_whatever_the_spacing() -> None:
    clip = np.ones((8, 8, 10), np.float32) * np.linspace(-1, 1, 10, dtype=np.float32)
    found = InputRules(size=(4, 4, 20), spacing=(2.0, 2.0, 9.0)).on_grid(clip, (1.0, 1.0, 8.0), time=True)
    assert found.shape == (4, 4, 20) and np.all(np.diff(found[0, 0]) >= -1e-6)
    assert InputRules(spacing=(2.0, 2.0, 9.0)).on_grid(clip, (1.0, 1.0, 8.0), time=True).shape == (4, 4, 10)


def test_without_size_and_spacing_the_grid_is_unchanged() -> None:
    for spacing in (None, (1.0, 2.0, 3.0)):
        np.testing.assert_array_equal(InputRules().on_grid(volume(), spacing), volume())


def test_errors_say_what_to_do() -> None:
    with pytest.raises(CardioDiTError, match="voxel size is unknown. Give its spacing"):
        InputRules(spacing=(1.0, 1.0, 1.0)).on_grid(volume(), None)
    with pytest.raises(CardioDiTError, match="choose from as given, unit"):
        InputRules("z")
    with pytest.raises(CardioDiTError, match="three positive numbers of voxels"):
        InputRules(size=(4, 4, 0))
    with pytest.raises(CardioDiTError, match="in mm"):
        InputRules(spacing=(1.0, -1.0, 1.0))
    with pytest.raises(CardioDiTError, match="centre, end"):
        InputRules(padding="left")


def test_indices_are_evenly_spaced() -> None:
    assert evenly_spaced(8, 4, cycle=True) == [0, 2, 4, 6] and evenly_spaced(8, 4) == [1, 3, 5, 7]
    assert evenly_spaced(25, 4, cycle=True) == [0, 6, 12, 18]
    assert evenly_spaced(3, 5) == evenly_spaced(3, None) == evenly_spaced(3, 3) == [0, 1, 2]
    assert evenly_spaced(9, 1) == [4] and evenly_spaced(9, 1, cycle=True) == [0]
