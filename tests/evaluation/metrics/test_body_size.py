"""Volumes over body surface, and heart rates, where manifests state them."""

from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.body_size import body_numbers, body_surface_m2
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import Case

NUMBERS = {"lv_edv_ml": 150.0, "lv_esv_ml": 60.0, "lv_mass_g": 120.0, "rv_edv_ml": None}
GEOMETRY = Geometry((1.0, 1.0, 8.0), 0.04)


def case(**columns: str) -> Case:
    return Case(Path("a.nii"), "a", columns, Path())


def test_the_surface_is_mostellers() -> None:
    assert body_surface_m2(180, 80) == pytest.approx(2.0)


def test_volumes_are_indexed_as_far_as_they_are_known() -> None:
    found = body_numbers(case(height="180", weight="80"), NUMBERS, GEOMETRY, 25, closes=True)
    assert found == pytest.approx(
        {
            "bsa_m2": 2.0,
            "lv_edv_index_ml_m2": 75.0,
            "lv_esv_index_ml_m2": 30.0,
            "lv_mass_index_g_m2": 60.0,
            "heart_rate_bpm": 60.0,
        }
    )
    assert set(body_numbers(case(height="180"), NUMBERS, GEOMETRY, 25, closes=True)) == {"heart_rate_bpm"}


def test_the_manifests_heart_rate_goes_before_the_frame_time() -> None:
    assert body_numbers(case(heart_rate="72"), {}, GEOMETRY, 25, closes=False) == {"heart_rate_bpm": 72}
    assert body_numbers(case(), {}, GEOMETRY, 25, closes=False) == {}  # frames that are not one beat
    assert body_numbers(case(), {}, Geometry(), 25, closes=True) == {}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("height", "1.75", "height=1.75 of a.nii is not in cm"),
        ("weight", "80000", "not in kg"),
        ("heart_rate", "1.2", "not in beats per minute"),
        ("height", "tall", "is not a number"),
    ],
)
def test_other_units_are_refused(column: str, value: str, expected: str) -> None:
    with pytest.raises(CardioDiTError, match=expected):
        body_numbers(case(**{"height": "180", "weight": "80", column: value}), NUMBERS, GEOMETRY, 25, closes=True)
