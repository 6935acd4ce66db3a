from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.view import VIEWS, find_view, in_words, view_of
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.imaging.volume import Volume


def test_what_will_be_cropped_and_what_padded() -> None:
    volume = Volume(np.zeros((400, 300, 100), np.int16), Geometry((0.5, 1.0, 2.5)))
    view = view_of(volume, PRESETS["prdit-lidc"])
    assert (view.found, view.cropped, view.padded) == ((200, 300, 250), ["W"], ["H", "D"])
    assert str(view) == "200 × 300 × 250 voxels: W cropped, H and D padded with air"
    same = Volume(np.zeros((256, 256, 256), np.int8), Geometry((1.0,) * 3))
    assert str(view_of(same, PRESETS["prdit-lidc"])) == "256 × 256 × 256 voxels: as they are"


@pytest.mark.parametrize("size", [(30, 41, 52), (64, 20, 33)])
def test_it_says_what_the_preprocessing_does(ct: Callable, size: tuple) -> None:
    """Padding is air, -1, where the preprocessing puts it, and nowhere else."""
    volume = ct(0, size, (0.9, 0.7, 1.3)).permute((2, 0, 1))
    volume = Volume(np.full(volume.voxels.shape, 50, np.int16), volume.geometry)
    volume.voxels[:2] = 90
    steps = replace(PRESETS["prdit-lidc"], size=(36, 36, 36))
    view, prepared = view_of(volume, steps), steps(volume).volume.voxels
    held = np.argwhere(prepared > -1)
    extent = tuple((held.max(axis=0) - held.min(axis=0) + 1).tolist())
    assert extent == tuple(min(n, 36) for n in view.found)


def test_presets_that_crop_and_pad_a_ct() -> None:
    assert set(VIEWS) == {"voldit-tgca", *(name for name in PRESETS if name.startswith("prdit-"))}
    assert in_words("prdit-lidc", find_view("prdit-lidc")).startswith("prdit-lidc, 256 × 256 × 256 voxels of 1 × 1 × 1")
    assert in_words("prdit-lidc", find_view("prdit-lidc")).endswith(
        "cut at -1000 HU and at percentile 99.9 of each view"
    )
    assert in_words("prdit-lidc-128", find_view("prdit-lidc-128")).endswith(", then averaged to 128 × 128 × 128")
    assert "at percentile 99.5 of each view but at most 1000 HU" in in_words("r", find_view("prdit-radchest"))
    assert "as in the file" in in_words("voldit-tgca", find_view("voldit-tgca"))
    with pytest.raises(CardioDiTError, match="'cine' is no preset that crops or pads a CT; choose from voldit-tgca"):
        find_view("cine")
