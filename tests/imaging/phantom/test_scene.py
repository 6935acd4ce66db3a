import numpy as np
import pytest
from scipy.ndimage import label

from cardiodit.imaging.phantom import GROUPS, Phantom, draw_heart, render
from cardiodit.imaging.phantom.scene import LV, MYOCARDIUM, RV

SIZE = (64, 64, 8, 16)


def phantom_of(group: str, seed: int = 2, size: tuple = SIZE, spacing: tuple | None = None) -> Phantom:
    random = np.random.default_rng(seed)
    return render(draw_heart(group, random), size, random, spacing)


@pytest.fixture(scope="module", params=GROUPS)
def phantom(request) -> Phantom:
    return phantom_of(request.param)


def test_it_is_a_cine_volume(phantom: Phantom) -> None:
    assert phantom.image.shape == phantom.labels.shape == SIZE
    assert phantom.image.dtype == np.int16 and phantom.image.min() >= 0
    assert set(np.unique(phantom.labels)) == {0, RV, MYOCARDIUM, LV}
    assert phantom.geometry.spacing == (2.25, 2.25, 12.5)
    assert 0.6 < phantom.geometry.frame_time * 16 < 1.2  # one heart beat


@pytest.mark.parametrize(
    "name, number, tolerance", [("lv", LV, 0.03), ("rv", RV, 0.04), ("myocardium", MYOCARDIUM, 0.04)]
)
def test_counting_voxels_gives_the_exact_volumes(phantom: Phantom, name: str, number: int, tolerance: float) -> None:
    voxel = np.prod(phantom.geometry.spacing) / 1000
    counted = (phantom.labels == number).sum((0, 1, 2)) * voxel
    assert np.abs(counted / np.array(phantom.volumes[name]) - 1).max() < tolerance


def test_finer_voxels_are_more_accurate() -> None:
    fine = phantom_of("normal", size=(160, 160, 20, 4), spacing=(1.0, 1.0, 5.0))
    counted = (fine.labels == LV).sum((0, 1, 2)) * 5.0 / 1000
    assert np.abs(counted / np.array(fine.volumes["lv"]) - 1).max() < 0.01


def test_slices_run_from_base_to_apex_and_frame_0_is_fullest(phantom: Phantom) -> None:
    pool = (phantom.labels == LV).sum((0, 1))  # (D, T)
    assert (np.diff(pool[:, 0].astype(int)) <= 0).all() and pool[0, 0] > 0
    assert np.argmax(phantom.volumes["lv"]) == 0


def test_the_left_ventricle_is_one_body_closed_by_muscle(phantom: Phantom) -> None:
    for frame in (0, 5):
        _, bodies = label(phantom.labels[..., frame] == LV)
        assert bodies == 1
        for d in range(4):
            ring = phantom.labels[:, :, d, frame] != MYOCARDIUM
            regions, _ = label(ring)
            inside = np.unique(regions[phantom.labels[:, :, d, frame] == LV])
            outside = np.unique(regions[phantom.labels[:, :, d, frame] == 0])
            assert not set(inside) & set(outside)


def test_the_picture_shows_what_the_labels_say(phantom: Phantom) -> None:
    image, labels = phantom.image[:, :, :5, 0].astype(float), phantom.labels[:, :, :5, 0]
    blood, muscle = image[labels == LV].mean(), image[labels == MYOCARDIUM].mean()
    assert blood > 2 * muscle
    assert abs(image[labels == RV].mean() / blood - 1) < 0.2


def test_the_right_ventricle_is_on_the_left_of_the_picture(phantom: Phantom) -> None:
    centre = [np.mean(np.nonzero(phantom.labels[:, :, 1, 0] == number)[0]) for number in (RV, LV)]
    assert centre[0] < centre[1] - 5


def test_the_same_seed_gives_the_same_heart() -> None:
    one, two, other = (phantom_of("infarct", seed, (32, 32, 3, 4)) for seed in (1, 1, 2))
    assert np.array_equal(one.image, two.image) and one.volumes == two.volumes
    assert not np.array_equal(one.image, other.image)


def test_hearts_are_those_of_earlier_versions() -> None:
    """The shipped model and recorded figures depend on them."""
    random = np.random.default_rng([3, 0])
    phantom = render(draw_heart("normal", random), (48, 40, 5, 6), random)
    assert np.bincount(phantom.labels.ravel()).tolist() == [47613, 3555, 3512, 2920]
    assert phantom.image.sum(dtype=int) == pytest.approx(15907019, abs=100)
    assert np.abs(phantom.image[20, 20, 2] - [716, 841, 790, 866, 807, 784]).max() <= 1
    assert phantom.volumes["lv"][:3] == pytest.approx([114.71070419289968, 79.08684807538955, 47.046512222902166])
