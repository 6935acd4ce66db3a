"""Every operation keeps a landmark where it is in the patient."""

from collections.abc import Callable

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.resampling import resample
from cardiodit.imaging.volume import Volume

AFFINE = np.array([[-1.2, -0.5, -6.0, 40], [-0.7, 1.0, 5.0, -20], [0.4, 1.1, -6.0, 7], [0, 0, 0, 1.0]])
LANDMARKS = np.array([[6.0, 5, 3], [13, 16, 4], [9, 11, 6]])  # voxel indices of bright spots


def spot_at(landmark: np.ndarray) -> Volume:
    """Return a soft bright spot in (20, 24, 10) voxels."""
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(24), np.arange(10), indexing="ij"), axis=-1)
    spot = np.exp(-0.5 * (((grid - landmark) / (1.5, 1.5, 0.8)) ** 2).sum(axis=-1))
    return Volume(spot.astype(np.float32), Geometry.of_affine(AFFINE, 0.03))


@pytest.fixture(params=range(3))
def landmark(request: pytest.FixtureRequest) -> np.ndarray:
    return LANDMARKS[request.param]


def centre_in_mm(volume: Volume) -> np.ndarray:
    """Return the centre of mass in the patient."""
    grid = np.stack(np.meshgrid(*map(np.arange, volume.voxels.shape), indexing="ij"), axis=-1)
    centre = (grid * volume.voxels[..., None]).sum(axis=(0, 1, 2)) / volume.voxels.sum()
    return (volume.geometry.affine @ [*centre, 1])[:3]


EXACT: dict[str, Callable[[Volume], Volume]] = {
    "flip H": lambda v: v.flip(0),
    "flip D": lambda v: v.flip(2),
    "permute": lambda v: v.permute((2, 0, 1)),
    "crop": lambda v: v.crop((2, 1, 1), (16, 20, 8)),
    "pad": lambda v: v.pad((3, 0, 2), (0, 4, 1)),
    "all of them": lambda v: v.pad((1, 2, 3), (0, 0, 0)).permute((1, 2, 0)).flip(1).crop((1, 0, 1), (24, 11, 20)),
    "fit": lambda v: resample(v, size=(17, 30, 8)),
}


@pytest.mark.parametrize("name", EXACT)
def test_landmarks_stay_exactly(landmark: np.ndarray, name: str) -> None:
    changed = EXACT[name](spot_at(landmark))
    brightest = np.unravel_index(changed.voxels.argmax(), changed.voxels.shape)
    assert np.allclose(changed.geometry.affine @ [*brightest, 1], AFFINE @ [*landmark, 1], atol=1e-6)


RESAMPLED: dict[str, Callable[[Volume], Volume]] = {
    "finer": lambda v: resample(v, spacing=(0.7, 0.7, 4.0)),
    "other": lambda v: resample(v, spacing=(1.1, 1.3, None)),
    "coarser": lambda v: resample(v, spacing=(2.0, 2.0, None)),
    "finer and cropped": lambda v: resample(v, spacing=(0.9, 1.0, 5.0), size=(32, 37, 18)),
    "resized": lambda v: resample(v, size=(31, 30, 14), resize=True),
    "turned, then resampled": lambda v: resample(v.permute((1, 0, 2)).flip(0), spacing=(1.0, 0.8, 6.0)),
}


@pytest.mark.parametrize("name", RESAMPLED)
def test_landmarks_stay_when_voxels_change(landmark: np.ndarray, name: str) -> None:
    changed = RESAMPLED[name](spot_at(landmark))
    expected = (AFFINE @ [*landmark, 1])[:3]
    assert np.linalg.norm(centre_in_mm(changed) - expected) < 0.4  # mm; half a voxel is 0.7 × 0.8 × 4.9


def test_rolling_reorders_frames_only() -> None:
    cine = Volume(np.arange(2 * 2 * 2 * 5).reshape(2, 2, 2, 5), Geometry((1.0, 1.0, 8.0), 0.2))
    rolled = cine.roll(2)
    assert rolled.geometry == cine.geometry and rolled.beat_time == pytest.approx(1.0)
    assert np.array_equal(rolled.voxels[..., 0], cine.voxels[..., 2])
    assert np.array_equal(rolled.roll(-2).voxels, cine.voxels)


def test_unknown_geometry_stays_unknown() -> None:
    volume = Volume(np.zeros((4, 4, 4)), Geometry())
    assert volume.flip(0).crop((1, 1, 1), (2, 2, 2)).geometry == Geometry()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v: v.crop((0, 0, 5), (4, 4, 6)), "extends beyond the volume"),
        (lambda v: v.permute((0, 0, 1)), "must be a permutation of 0, 1 and 2"),
        (lambda v: v.roll(1), "has no frames to roll"),
        (lambda v: Volume(np.zeros((4, 4)), Geometry()), r"got the shape \(4, 4\)"),
    ],
)
def test_invalid_operations_are_reported(wrong: Callable, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        wrong(spot_at(LANDMARKS[0]))
