"""Sets that cannot be compared are refused with both named; those that differ as patients do are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import (
    VolumeStats,
    check_agreement,
    find_outliers,
    notes_on_contrast,
    notes_on_voxel_sizes,
    summarize,
    summarize_set,
    without_folders,
)
from cardiodit.evaluation.volume_sets import SYNTHETIC, Item, Loaded
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.volume import Volume

USUAL = VolumeStats((32, 32, 6, 8), (1.4, 1.4, 10.0), 0.05, (-1.0, 1.0), (0.0, 1000.0))


@pytest.mark.parametrize(
    "differing, expected",
    [
        ({"size": (32, 32, 8, 8)}, "real volumes have 32 × 32 × 6 voxels × 8 frames .* 32 × 32 × 8 voxels × 8 frames"),
        ({"size": (32, 32, 6)}, "synthetic ones 32 × 32 × 6 voxels"),
        ({"spacing": (1.4, 1.4, 8.0)}, "× 10 mm of .* × 8 mm of .* 20% apart.* the real ones with --spacing 1.4 1.4 8"),
        ({"intensity": (0.0, 1.0)}, "from -1 to 1, synthetic ones from 0 to 1"),
        ({"intensity": (-0.05, 0.8)}, "synthetic ones from -0.05 to 0.8"),  # so far a decoder overshoots
        ({"intensity": (-1.0, 0.0)}, "from -1 to 1, synthetic ones from -1 to 0"),
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
        {"intensity": (-0.35, 0.35)},  # a better one's
        {"intensity": (0.0, 0.6)},
        {"intensity": (-1.0, -0.4)},
        {"units": (0.0, 700.0)},
        {"units": None},
    ],
)
def test_sets_that_differ_as_hearts_do_are_not(differing: dict) -> None:
    check_agreement(USUAL, replace(USUAL, **differing))


def test_a_set_is_what_most_of_it_is() -> None:
    other = replace(USUAL, size=(8, 8, 8), spacing=None)
    slower = replace(USUAL, frame_time=0.07, intensity=(-0.9, 0.8), units=(0.0, 2000.0))
    found = summarize_set([other, USUAL, slower, replace(slower, frame_time=None)])
    assert found == VolumeStats(USUAL.size, USUAL.spacing, pytest.approx(0.06), (-0.9, 0.8), (0.0, 2000.0))
    assert summarize_set([replace(USUAL, middle=middle) for middle in (-0.2, -0.6, None)]).middle == -0.4
    assert summarize_set([USUAL, replace(USUAL, spacing=None)]).spacing is None


def facts_of_voxels(voxels: np.ndarray) -> VolumeStats:
    return summarize(Loaded(Volume(voxels, Geometry(USUAL.spacing, USUAL.frame_time)), None))


def test_neither_a_stray_voxel_nor_a_good_sample_hides_another_scaling() -> None:
    random = np.random.default_rng(0)
    real = [facts_of_voxels(random.uniform(-1, 1, (16, 16, 4, 4)).astype(np.float32)) for _ in range(4)]
    scaled = random.uniform(0, 1, (16, 16, 4, 4)).astype(np.float32)
    scaled[0, 0, 0, 0] = -1
    with pytest.raises(CardioDiTError, match="synthetic ones from 0.00"):
        check_agreement(summarize_set(real), summarize_set([facts_of_voxels(scaled)] * 4))
    with pytest.raises(CardioDiTError, match="synthetic ones from 0.00"):
        check_agreement(summarize_set(real), summarize_set([*[facts_of_voxels(scaled)] * 62, real[0]]))
    grey = (random.normal(0, 0.05, (16, 16, 4, 4))).astype(np.float32)
    check_agreement(summarize_set(real), summarize_set([facts_of_voxels(grey)] * 4))


def items(count: int, is_prepared: bool = False) -> list[Item]:
    case = Case(Path("a.nii"), "a", {}, Path()) if is_prepared else None
    return [Item(str(i), SYNTHETIC, Path(f"{i}.nii"), case) for i in range(count)]


def test_a_volume_of_another_scaling_or_voxel_size_than_most_is_named() -> None:
    scaled = replace(USUAL, intensity=(0.0, 1.0))
    grey = replace(USUAL, intensity=(0.1, 0.4))
    thick = replace(USUAL, spacing=(1.4, 1.4, 12.0))
    found = find_outliers(items(7), [USUAL, scaled, grey, thick, replace(USUAL, size=(1, 1, 1)), USUAL, USUAL])
    assert [reason is None for reason in found] == [True, False, True, False, False, True, True]
    assert (
        found[1]
        == "Its values go from 0 to 1, and those of most synthetic volumes from -1 to 1: it was scaled differently."
    )
    assert found[3] == "Its voxels have 1.4 × 1.4 × 12 mm, and those of most synthetic volumes 1.4 × 1.4 × 10 mm."


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_a_collapsed_model_is_measured(value: float) -> None:
    """One value fills no range, and no range is a half of it: neither of the sets nor within one."""
    collapsed = replace(USUAL, intensity=(value, value))
    dithered = replace(USUAL, intensity=(value + 2e-5, value + 4e-5))
    check_agreement(USUAL, collapsed)
    assert find_outliers(items(4), [collapsed, collapsed, collapsed, dithered]) == [None] * 4
    (note,) = notes_on_contrast(USUAL, collapsed)
    assert note.startswith(f"Most synthetic volumes contain a single value, {value:.4g} in the median")
    assert "has collapsed" in note


@pytest.mark.parametrize(
    ("intensity", "is_noted"),
    [((-1.0, 1.0), False), ((-0.8, 0.8), False), ((-0.5, 0.5), True), ((-0.1, 0.2), True), ((-1.5, 1.5), True)],
)
def test_another_contrast_is_noted(intensity: tuple[float, float], is_noted: bool) -> None:
    notes = notes_on_contrast(USUAL, replace(USUAL, intensity=intensity))
    assert bool(notes) is is_noted
    if is_noted:
        low, high = intensity
        assert f"synthetic volumes go from {low:.4g} to {high:.4g}, and real ones from -1 to 1" in notes[0]


@pytest.mark.parametrize(
    ("middle", "is_noted"), [(0.6, True), (0.9, True), (-0.6, False), (-0.2, False), (0.05, False), (None, False)]
)
def test_an_inverted_contrast_is_noted_without_labels(middle: float | None, is_noted: bool) -> None:
    notes = notes_on_contrast(replace(USUAL, middle=-0.6), replace(USUAL, middle=middle))
    assert bool(notes) is is_noted
    if is_noted:
        assert notes[0].startswith("The contrast may be inverted: the median voxel of real volumes is -0.6, and that")
    assert not notes_on_contrast(replace(USUAL, middle=-0.05), replace(USUAL, middle=middle))


def test_patients_may_differ_in_voxel_size_and_a_note_says_so() -> None:
    facts = [replace(USUAL, spacing=(1.4, 1.4, mm)) for mm in (8.0, 10.0, 10.0, 12.0)]
    assert find_outliers(items(4, is_prepared=True), facts) == [None] * 4
    mixed = [replace(USUAL, spacing=(1.4, 1.4, mm)) for mm in (6.0, 8.0, 10.0, 12.0)]  # no size is that of most
    assert find_outliers(items(4), mixed) == [None] * 4
    (note,) = notes_on_voxel_sizes(facts, [USUAL] * 4)
    assert "of the real volumes differ, from 1.4 × 1.4 × 8 mm to 1.4 × 1.4 × 12 mm" in note


def test_a_voxel_size_that_only_one_set_tells_is_noted() -> None:
    unknown = replace(USUAL, spacing=None)
    (note,) = notes_on_voxel_sizes([USUAL] * 2, [unknown] * 2)
    assert note.startswith(
        "The voxel size of the synthetic volumes is unknown, that of the real ones is 1.4 × 1.4 × 10"
    )
    assert "size of the real volumes is unknown" in notes_on_voxel_sizes([unknown] * 2, [USUAL] * 2)[0]
    assert not notes_on_voxel_sizes([unknown] * 2, [unknown] * 2) and not notes_on_voxel_sizes([USUAL] * 2, [USUAL] * 2)


def test_sentences_keep_names_and_lose_folders() -> None:
    path = Path("/data/patients/heart.nii.gz")
    assert without_folders(f"{path} is damaged.", [path]) == "heart.nii.gz is damaged."
