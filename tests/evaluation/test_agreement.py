"""Sets that cannot be compared are refused with both named; those that differ as patients do are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.agreement import Facts, check_agreement, facts_of_set, without_folders

USUAL = Facts((32, 32, 6, 8), (1.4, 1.4, 10.0), 0.05, (-1.0, 1.0), (0.0, 1000.0))


@pytest.mark.parametrize(
    "differing, expected",
    [
        ({"size": (32, 32, 8, 8)}, "real volumes have 32 × 32 × 6 voxels × 8 frames .* 32 × 32 × 8 voxels × 8 frames"),
        ({"size": (32, 32, 6)}, "synthetic ones 32 × 32 × 6 voxels"),
        ({"spacing": (1.4, 1.4, 8.0)}, "1.4 × 1.4 × 10 mm .* 1.4 × 1.4 × 8 mm .* 20% apart"),
        ({"intensity": (0.0, 1.0)}, "from -1 to 1, synthetic ones from 0 to 1"),
        ({"intensity": (-1.0, -0.5)}, "from -1 to 1, synthetic ones from -1 to -0.5"),
        ({"units": (0.0, 1.0)}, "0 to 1000 in the real files and for 0 to 1 in the synthetic"),
        ({"units": (2000.0, 3000.0)}, "intensity range"),
    ],
)
def test_sets_that_differ_are_refused(differing: dict, expected: str) -> None:
    with pytest.raises(CardioDiTError, match=expected):
        check_agreement(USUAL, replace(USUAL, **differing))
    with pytest.raises(CardioDiTError):
        check_agreement(replace(USUAL, **differing), USUAL)


@pytest.mark.parametrize(
    "differing",
    [
        {},
        {"spacing": (1.41, 1.39, 10.0)},
        {"spacing": None},
        {"frame_time": 0.03},
        {"intensity": (-0.1, 0.2)},  # an untrained model's grey
        {"intensity": (0.03, 0.11)},
        {"units": (0.0, 700.0)},
        {"units": None},
    ],
)
def test_sets_that_differ_as_hearts_do_are_not(differing: dict) -> None:
    check_agreement(USUAL, replace(USUAL, **differing))


def test_a_set_is_what_most_of_it_is() -> None:
    other = replace(USUAL, size=(8, 8, 8), spacing=None)
    slower = replace(USUAL, frame_time=0.07, intensity=(-0.9, 0.8), units=(0.0, 2000.0))
    found = facts_of_set([other, USUAL, slower, replace(slower, frame_time=None)])
    assert found == Facts(USUAL.size, USUAL.spacing, pytest.approx(0.06), (-1.0, 1.0), (0.0, 2000.0))
    assert facts_of_set([USUAL, replace(USUAL, spacing=None)]).spacing is None


def test_sentences_keep_names_and_lose_folders() -> None:
    path = Path("/data/patients/heart.nii.gz")
    assert without_folders(f"{path} is damaged.", [path]) == "heart.nii.gz is damaged."
