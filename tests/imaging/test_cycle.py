import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cycle import periodic_weights, repeat_beat, resample_beat


@pytest.mark.parametrize("source", [2, 3, 10, 30])
@pytest.mark.parametrize("frames", [1, 2, 8, 16, 30, 32, 50])
def test_a_still_heart_stays_still(source: int, frames: int) -> None:
    assert np.allclose(resample_beat(np.full((2, source), 3.0), frames), 3.0, atol=1e-5)
    assert periodic_weights(source, frames).shape == (frames, source)


@pytest.mark.parametrize("frames", [16, 24, 32, 60])
def test_a_smooth_beat_is_followed_around_its_end(frames: int) -> None:
    """The first two harmonics hold nearly all of a volume curve; the closed form is themselves at the new phases."""

    def beat(phase: np.ndarray) -> np.ndarray:
        return np.cos(2 * np.pi * phase) + 0.3 * np.sin(4 * np.pi * phase)

    found = resample_beat(beat(np.arange(30) / 30)[None], frames)[0]
    assert np.abs(found - beat(np.arange(frames) / frames)).max() < (0.01 if frames >= 30 else 0.07)


def test_frames_that_coincide_are_untouched() -> None:
    voxels = np.random.default_rng(0).standard_normal((3, 2, 15)).astype(np.float32)
    assert np.allclose(resample_beat(voxels, 30)[..., ::2], voxels, atol=1e-6)
    assert resample_beat(voxels, 15) is voxels


def test_the_cycle_has_no_seam() -> None:
    """Beginning the beat elsewhere and resampling commute."""
    voxels = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    rolled = resample_beat(np.roll(voxels, -3, axis=-1), 20)
    assert np.allclose(rolled, np.roll(resample_beat(voxels, 20), -5, axis=-1), atol=1e-5)


def test_labels_come_from_the_nearest_frame() -> None:
    labels = np.arange(10, dtype=np.uint8)[None]
    found = resample_beat(labels, 20, labels=True)[0]
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 0]


def test_repeating_is_the_published_way() -> None:
    voxels = np.arange(5)[None]
    assert repeat_beat(voxels, 12)[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert repeat_beat(voxels, 3)[0].tolist() == [0, 1, 2]


def test_one_frame_is_no_beat() -> None:
    with pytest.raises(CardioDiTError, match="at least 2 are needed"):
        resample_beat(np.zeros((4, 1)), 8)
