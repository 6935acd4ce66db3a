"""Timing: direction, phase and closing of the beat, from curves whose times are known."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics.function import Function
from cardiodit.evaluation.metrics.timing import beat_timing, farthest_frame_percent
from cardiodit.imaging.phantom.heart import GROUPS, draw_heart


def curve(group: str = "normal", frames: int = 40) -> np.ndarray:
    """The left cavity of a phantom, whose systole takes 35% of the beat."""
    heart = draw_heart(group, np.random.default_rng(0))
    return np.array([heart.volumes(t / frames)[0] for t in range(frames)]) / 1000


def reversed_beat(volumes: np.ndarray) -> np.ndarray:
    return volumes[np.r_[0, len(volumes) - 1 : 0 : -1]]


@pytest.mark.parametrize("group", GROUPS)
def test_systole_takes_a_third_of_the_beat_and_filling_longer_than_ejection(group: str) -> None:
    found = beat_timing(curve(group))
    assert found["lv_ed_phase_percent"] == 0 and found["lv_systole_percent"] == 35
    # By the phantom's curve the volume falls from 90 to 10% within 0.07 to 0.27, and rises within 0.43 to 0.84.
    assert found["lv_filling_ejection_ratio"] == pytest.approx(2.1, abs=0.3)
    assert 0 < found["lv_closing_percent"] < 1


def test_a_beat_played_backwards_shows_in_no_volume_but_in_its_timing() -> None:
    forwards, backwards = curve(), reversed_beat(curve())
    assert Function(tuple(forwards)).numbers() == Function(tuple(backwards)).numbers()
    there, back = beat_timing(forwards), beat_timing(backwards)
    assert (there["lv_systole_percent"], back["lv_systole_percent"]) == (35, 65)
    assert back["lv_filling_ejection_ratio"] == pytest.approx(1 / there["lv_filling_ejection_ratio"])


def test_a_beat_that_begins_elsewhere_shows_in_its_phase_alone() -> None:
    usual = beat_timing(curve())
    for frames, phase in ((10, -25), (-10, 25), (1, -2.5), (-1, 2.5)):
        found = beat_timing(np.roll(curve(), -frames))
        assert found["lv_ed_phase_percent"] == pytest.approx(phase)
        for name in ("lv_systole_percent", "lv_filling_ejection_ratio"):
            assert found[name] == pytest.approx(usual[name])


def test_a_beat_that_is_cut_does_not_close() -> None:
    volumes = curve()[:24]
    found = beat_timing(volumes)
    stroke = volumes.max() - volumes.min()
    assert found["lv_closing_percent"] == pytest.approx(100 * (volumes[0] - volumes[-1]) / stroke)
    assert found["lv_closing_percent"] > 20


@pytest.mark.parametrize("volumes", [[80.0] * 12, [100.0, 50.0, 90.0]])
def test_a_heart_at_rest_and_too_few_frames_have_no_timing(volumes: list[float]) -> None:
    assert set(beat_timing(volumes).values()) == {None}


def test_the_farthest_frame_needs_no_labels_and_turns_with_the_beat() -> None:
    moving = curve()[None, None, None] / 100 + np.zeros((3, 2, 2, 1))
    assert farthest_frame_percent(moving) == 35
    assert farthest_frame_percent(reversed_beat(moving.T).T) == 65
    assert farthest_frame_percent(np.zeros((3, 2, 2, 8))) == 0
