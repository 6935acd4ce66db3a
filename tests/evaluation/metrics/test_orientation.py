"""Orientation: mirrors, exchanged labels and inverted contrast change numbers that volumes do not."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics.function import heart_function
from cardiodit.evaluation.metrics.orientation import notes_on_orientation, orientation
from cardiodit.imaging.phantom.heart import draw_heart
from cardiodit.imaging.phantom.scene import Phantom, render


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    random = np.random.default_rng(1)
    return render(draw_heart("normal", random), (48, 48, 8, 4), random)


def image_of(phantom: Phantom) -> np.ndarray:
    return np.clip(phantom.image / 500 - 1, -1, 1)


def test_a_heart_lies_with_its_right_ventricle_to_the_left_and_tapers_to_the_apex(phantom: Phantom) -> None:
    found = orientation(phantom.labels, phantom.geometry, image_of(phantom))
    assert abs(found["rv_direction_deg"]) < 25
    assert 0.1 < found["lv_taper"] < 1 and found["blood_contrast"] > 0.3
    assert found["ring_leak_share"] < 0.2 < found["rv_ring_leak_share"]
    assert not notes_on_orientation("real", [found])


@pytest.mark.parametrize(
    ("mirror", "direction", "expected"),
    [
        (np.s_[::-1], lambda usual: 180 - usual, "the right ventricle is on the right of the picture"),
        (np.s_[:, ::-1], lambda usual: -usual, ""),
        (np.s_[:, :, ::-1], lambda usual: usual, "from apex to base"),
    ],
)
def test_mirrors_show(phantom: Phantom, mirror: tuple, direction, expected: str) -> None:
    usual = orientation(phantom.labels, phantom.geometry)
    found = orientation(phantom.labels[mirror], phantom.geometry)
    assert (found["rv_direction_deg"] - direction(usual["rv_direction_deg"])) % 360 == pytest.approx(0, abs=1e-6)
    assert found["lv_taper"] == pytest.approx(-usual["lv_taper"] if "apex" in expected else usual["lv_taper"])
    before, after = (
        heart_function(labels, phantom.geometry).numbers() for labels in (phantom.labels, phantom.labels[mirror])
    )
    assert before == after  # which no group of metrics on volumes would notice
    notes = notes_on_orientation("synthetic", [found, found, usual])
    assert len(notes) == bool(expected)
    assert not expected or (notes[0].startswith("In 2 of 3 synthetic volumes") and expected in notes[0])


def test_exchanged_labels_show(phantom: Phantom) -> None:
    exchanged = np.array([0, 3, 2, 1])[phantom.labels]
    notes = notes_on_orientation("real", [orientation(exchanged, phantom.geometry)])
    assert any("the label RV, not LV, is enclosed by myocardium: check the label order" in note for note in notes)


def test_inverted_contrast_shows(phantom: Phantom) -> None:
    usual, inverted = (orientation(phantom.labels, phantom.geometry, sign * image_of(phantom)) for sign in (1, -1))
    assert inverted["blood_contrast"] == pytest.approx(-usual["blood_contrast"])
    (note,) = notes_on_orientation("synthetic", [inverted])
    assert note.startswith("In 1 of 1 synthetic volumes blood is darker than myocardium")


def test_what_is_missing_has_no_number(phantom: Phantom) -> None:
    empty = orientation(np.zeros((8, 8, 2, 2), np.uint8), phantom.geometry, np.zeros((8, 8, 2, 2)))
    assert "rv_direction_deg" not in empty and "lv_taper" not in empty and "blood_contrast" not in empty
    assert notes_on_orientation("real", [{}, {}]) == []
