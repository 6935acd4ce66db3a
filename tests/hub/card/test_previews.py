"""Previews: the first samples of a folder, and nothing of where they were made."""

import json
from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.previews import copy_previews, read_previews


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


def test_folders_without_samples_are_refused(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="is not a folder of samples"):
        copy_previews(tmp_path, tmp_path)
    (tmp_path / "samples.jsonl").write_text(json.dumps({"file": "a.nii.gz"}))
    with pytest.raises(CardioDiTError, match="contains no GIF"):
        copy_previews(tmp_path, tmp_path)
    (tmp_path / "samples.jsonl").write_text("[")
    with pytest.raises(CardioDiTError, match="is not a record of a sample"):
        copy_previews(tmp_path, tmp_path)
    assert read_previews(tmp_path) is None
