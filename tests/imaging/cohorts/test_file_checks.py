from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.file_checks import FIELDS_OF_VIEW, describe_preset, field_of_view, find_preset
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.imaging.volume import Volume


def test_cropped_and_padded_axes() -> None:
    volume = Volume(np.zeros((400, 300, 100), np.int16), Geometry((0.5, 1.0, 2.5)))
    view = field_of_view(volume, PRESETS["prdit-lidc"])
    assert (view.stored, view.cropped, view.padded) == ((200, 300, 250), ["W"], ["H", "D"])
    assert str(view) == "200 × 300 × 250 voxels: W cropped, H and D padded with air"
    same = Volume(np.zeros((256, 256, 256), np.int8), Geometry((1.0,) * 3))
    assert str(field_of_view(same, PRESETS["prdit-lidc"])) == "256 × 256 × 256 voxels: unchanged"


@pytest.mark.parametrize("size", [(30, 41, 52), (64, 20, 33)])
def test_it_agrees_with_the_preprocessing(ct: Callable, size: tuple) -> None:
    """The preprocessing pads with air, -1, exactly where predicted."""
    volume = ct(0, size, (0.9, 0.7, 1.3)).permute((2, 0, 1))
    volume = Volume(np.full(volume.voxels.shape, 50, np.int16), volume.geometry)
    volume.voxels[:2] = 90
    steps = replace(PRESETS["prdit-lidc"], size=(36, 36, 36))
    view, prepared = field_of_view(volume, steps), steps(volume).volume.voxels
    held = np.argwhere(prepared > -1)
    extent = tuple((held.max(axis=0) - held.min(axis=0) + 1).tolist())
    assert extent == tuple(min(n, 36) for n in view.stored)


def test_presets_that_crop_and_pad_a_ct() -> None:
    assert set(FIELDS_OF_VIEW) == {"voldit-tgca", *(name for name in PRESETS if name.startswith("prdit-"))}
    assert describe_preset("prdit-lidc").startswith("prdit-lidc, 256 × 256 × 256 voxels of 1 × 1 × 1")
    assert describe_preset("prdit-lidc").endswith("clipped at -1000 HU and at percentile 99.9 of each view")
    assert describe_preset("prdit-lidc-128").endswith(", then averaged to 128 × 128 × 128")
    assert "at percentile 99.5 of each view but at most 1000 HU" in describe_preset("prdit-radchest")
    assert "of the size in the file" in describe_preset("voldit-tgca")
    with pytest.raises(CardioDiTError, match="'cine' is not a preset that crops or pads a CT; choose from voldit-tgca"):
        find_preset("cine")
