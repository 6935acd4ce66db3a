"""Stage 1's samples: slices and boxes in the order of visits."""

from pathlib import Path

import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.manifest import read_manifest
from cardiodit.training.image_data import SliceDataset, ValidationSlices

from ..conftest import copy_chests
from .conftest import STEPS, Cohorts

STILL = Augmentation(rotation_probability=0, flip_probability=0)


@pytest.fixture(scope="module")
def volumes(cohorts: Cohorts) -> PreparedVolumes:
    return PreparedVolumes(read_manifest(cohorts.images[0]), STEPS)


def test_a_visit_sees_one_slice_as_it_is(volumes: PreparedVolumes) -> None:
    visits = SliceDataset(volumes, STILL, seed=0)
    seen = set()
    for visit in range(64):
        item = visits[visit]
        index = [case.subject for case in volumes.cases].index(item["subject"])
        depths = [d for d in range(4) if torch.equal(item["sample"], volumes[index][:, d])]
        assert depths and item["sample"].shape == (1, 32, 32, 8)
        seen.add((index, depths[0]))
    assert len(seen) > 24  # of 8 hearts with 4 slices


def test_the_same_visit_is_the_same_and_another_seed_is_not(volumes: PreparedVolumes) -> None:
    first, again, other = (SliceDataset(volumes, Augmentation(), seed, crop=(16, 24, 4)) for seed in (0, 0, 1))
    assert all(torch.equal(first[i]["sample"], again[i]["sample"]) for i in range(8))
    assert not all(torch.equal(first[i]["sample"], other[i]["sample"]) for i in range(8))
    assert first[0]["sample"].shape == (1, 16, 24, 4)


def test_a_box_lies_anywhere_in_the_slice(volumes: PreparedVolumes) -> None:
    visits = SliceDataset(volumes, STILL, seed=0, crop=(28, 32, 8))
    starts = set()
    for visit in range(40):
        item = visits[visit]
        index = [case.subject for case in volumes.cases].index(item["subject"])
        starts |= {
            h for h in range(5) for d in range(4) if torch.equal(item["sample"], volumes[index][:, d, h : h + 28])
        }
    assert starts == set(range(5))


def test_validation_slices_are_spread_and_fixed(volumes: PreparedVolumes) -> None:
    fixed = ValidationSlices(volumes, slices=2, multiple=5)
    assert len(fixed) == 20 and [float(fixed[i]["weight"]) for i in (15, 16)] == [1.0, 0.0]
    assert torch.equal(fixed[0]["sample"], volumes[0][:, 1])
    assert torch.equal(fixed[1]["sample"], volumes[0][:, 3])
    assert len(ValidationSlices(volumes, slices=99, multiple=1)) == 8 * 4


def test_a_box_larger_than_the_images(volumes: PreparedVolumes) -> None:
    with pytest.raises(CardioDiTError, match=r"data.crop \[40, 32, 8\] is larger than the prepared images"):
        SliceDataset(volumes, STILL, seed=0, crop=(40, 32, 8))[0]


def test_only_volumes_turn_about_all_axes(volumes: PreparedVolumes) -> None:
    with pytest.raises(CardioDiTError, match="for cine it must be"):
        SliceDataset(volumes, Augmentation(rotation_axes=(0, 1, 2)), seed=0)


def test_ct_is_cut_into_boxes(tmp_path: Path) -> None:
    manifest = copy_chests(tmp_path / "chests", num=1, seed=0, size=(32, 32, 32))
    chests = PreparedVolumes(read_manifest(manifest), Preprocessing(size=(32, 32, 24)))
    item = SliceDataset(chests, Augmentation(), seed=0, crop=(16, 16, 8))[0]
    assert item["sample"].shape == (1, 16, 16, 8)
    assert len(ValidationSlices(chests, slices=3, multiple=1)) == 1
