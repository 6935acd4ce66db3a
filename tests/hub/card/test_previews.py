"""Previews: the first samples of a folder, and nothing of where they were made."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.previews import copy_previews, read_previews
from cardiodit.imaging import Geometry, write_nifti


def test_the_first_four_are_copied_and_those_before_replaced(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "old.gif").touch()
    copy_previews(samples, tmp_path)
    copied = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert copied == ["samples.jsonl", *(f"seed3-0000{i}.gif" for i in range(4))]
    assert (tmp_path / "previews" / copied[1]).read_bytes() == (samples / copied[1]).read_bytes()
    previews = read_previews(tmp_path)
    assert previews is not None and previews.pictures[0] == "previews/seed3-00000.gif"
    assert not {"model", "revision"} & set(previews.records[0]) and previews.mean("seconds") is not None
    assert "samples 0, 1, 2, 3 of seed 3" in previews.in_words() and "ill" in previews.in_words()


def test_a_volume_without_a_picture_is_drawn(tmp_path: Path) -> None:
    """As earlier versions left samples of CT: in Hounsfield units, and without a GIF."""
    chest = np.broadcast_to(np.linspace(-1000, 400, 16).astype(np.int16), (24, 24, 16))
    write_nifti(tmp_path / "seed0-00000.nii.gz", chest, Geometry((2.0, 2.0, 2.0)))
    record = {"file": "seed0-00000.nii.gz", "units": [-1000, 400], "seed": 0, "index": 0}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record))
    copy_previews(tmp_path, tmp_path / "model")
    previews = read_previews(tmp_path / "model")
    assert previews is not None and previews.pictures == ["previews/seed0-00000.gif"]
    with Image.open(tmp_path / "model" / previews.pictures[0]) as gif:
        levels = [np.array(frame.convert("L")).mean() for frame in ImageSequence.Iterator(gif)]
    assert len(levels) == 16 and levels == sorted(levels) and levels[0] < 128 < levels[-1]
    assert "running through their slices" in previews.in_words(is_cine=False)


def test_folders_without_samples_are_refused(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="is not a folder of samples"):
        copy_previews(tmp_path, tmp_path)
    (tmp_path / "samples.jsonl").write_text(json.dumps({"file": "a.nii.gz"}))
    with pytest.raises(CardioDiTError, match="contains no GIF and no volume"):
        copy_previews(tmp_path, tmp_path)
    (tmp_path / "samples.jsonl").write_text("[")
    with pytest.raises(CardioDiTError, match="is not a record of a sample"):
        copy_previews(tmp_path, tmp_path)
    assert read_previews(tmp_path) is None
