"""How real volumes are prepared is known from somebody, or asked for."""

import json
from pathlib import Path
from typing import Any

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.volume_sets import SYNTHETIC, VolumeSet, settle_preprocessing
from cardiodit.imaging.preprocessing import PRESETS

CINE = PRESETS["cine"]


def test_each_source_says_it(tmp_path: Path, make_vae: Any) -> None:
    (tmp_path / "steps.json").write_text(json.dumps(CINE.to_dict()))
    make_vae(preprocessing=CINE.to_dict()).save_pretrained(tmp_path / "vae")
    nothing, told = VolumeSet(SYNTHETIC, []), VolumeSet(SYNTHETIC, [], preprocessing=CINE.to_dict())
    assert settle_preprocessing(told) == CINE
    assert settle_preprocessing(nothing, model=str(tmp_path / "vae")) == CINE
    for named in ("cine", str(tmp_path / "steps.json")):
        assert settle_preprocessing(nothing, named=named) == CINE
    assert settle_preprocessing(told, str(tmp_path / "vae"), "cine", depth=7).size == (128, 128, 7)


def test_who_does_not_say_it_is_asked(tmp_path: Path, make_vae: Any) -> None:
    nothing = VolumeSet(SYNTHETIC, [])
    with pytest.raises(CardioDiTError, match="Give --model FOLDER .* or --preprocessing"):
        settle_preprocessing(nothing)
    make_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(CardioDiTError, match="does not say how its training volumes were prepared"):
        settle_preprocessing(nothing, model=str(tmp_path / "vae"))
    with pytest.raises(CardioDiTError, match="neither one of cine, .* nor a readable JSON file"):
        settle_preprocessing(nothing, named="nowhere.json")


def test_contradictions_are_errors() -> None:
    told = VolumeSet(SYNTHETIC, [], preprocessing=CINE.to_dict())
    with pytest.raises(CardioDiTError, match="The samples' records and --preprocessing prepare volumes in different"):
        settle_preprocessing(told, named="voldit")
