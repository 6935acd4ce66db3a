import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit.convert.checkpoint import read_checkpoint
from cardiodit.errors import CardioDiTError

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "cardiodit" / "dit_best_model.pth"


class Stranger:
    """What safe loading must refuse: unpickling it would run code of its choosing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/should-not-exist",)


def save(path: Path, **entries: Any) -> Path:
    torch.save(entries, path)
    return path


def test_ema_weights_replace_raw_weights() -> None:
    checkpoint = read_checkpoint(GOLDEN)
    raw, averaged = checkpoint.weights(), checkpoint.weights(ema=True)
    shadow = checkpoint.entries["ema"]["shadow"]
    assert raw.keys() == averaged.keys()
    assert all(averaged[name] is shadow.get(name, raw[name]) for name in raw)
    assert (checkpoint.epoch, checkpoint.has_ema) == (3, True)


@pytest.mark.parametrize("entries", [{}, {"ema": None}])
def test_without_ema_the_raw_weights_are_used(tmp_path: Path, entries: dict) -> None:
    checkpoint = read_checkpoint(save(tmp_path / "a.pth", model={"w": torch.ones(2)}, **entries))
    assert checkpoint.weights(ema=True)["w"].tolist() == [1, 1]
    assert not checkpoint.has_ema
    assert checkpoint.epoch is None


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_removed(tmp_path: Path, prefix: str) -> None:
    model = {f"{prefix}a.weight": torch.zeros(1), f"{prefix}b.weight": torch.zeros(1)}
    shadow = {f"{prefix}b.weight": torch.ones(1)}
    weights = read_checkpoint(save(tmp_path / "a.pth", model=model, ema={"shadow": shadow})).weights(ema=True)
    assert {name: value.item() for name, value in weights.items()} == {"a.weight": 0, "b.weight": 1}


def test_an_ema_of_another_model(tmp_path: Path) -> None:
    ema = {"shadow": {"w": torch.ones(2), "blocks.9.w": torch.ones(2)}}
    path = save(tmp_path / "a.pth", model={"w": torch.ones(2)}, ema=ema)
    with pytest.raises(CardioDiTError, match=r"a.pth: the EMA holds weights .* blocks.9.w"):
        read_checkpoint(path).weights(ema=True)


def test_an_ema_without_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", model={"w": torch.ones(2)}, ema={"decay": 0.9})
    with pytest.raises(CardioDiTError, match=r"a.pth: the entry 'ema' holds no 'shadow'"):
        read_checkpoint(path).weights(ema=True)


def test_no_model_entry(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", state_dict={}, epoch=3)
    with pytest.raises(CardioDiTError, match=r"a.pth has no entry 'model'; it holds state_dict, epoch"):
        read_checkpoint(path).weights()


def test_a_model_entry_that_is_not_a_state_dict(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", model={"w": 3})
    with pytest.raises(CardioDiTError, match="'model' is not a table of tensors"):
        read_checkpoint(path).weights()


def test_a_file_without_entries(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pth")
    with pytest.raises(CardioDiTError, match=r"a.pth holds a Tensor"):
        read_checkpoint(tmp_path / "a.pth")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"nowhere.pth does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CardioDiTError, match="is a folder, not a file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.001, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pth"
    content = GOLDEN.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CardioDiTError, match=r"cut.pth is not a torch checkpoint, or it is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7])
def test_a_tampered_byte(tmp_path: Path, share: float) -> None:
    content = bytearray(GOLDEN.read_bytes())
    content[int(len(content) * share)] ^= 0xFF
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CardioDiTError, match=r"bad.pth is not a torch checkpoint, or it is damaged"):
        read_checkpoint(tmp_path / "bad.pth")


@pytest.mark.parametrize("content", [b"hello, this is text\n", b"\x93NUMPY\x01\x00", b"version https://git-lfs"])
def test_another_kind_of_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.pth").write_bytes(content)
    with pytest.raises(CardioDiTError, match=r"text.pth is not a torch checkpoint"):
        read_checkpoint(tmp_path / "text.pth")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("text")
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "folder")
    with pytest.raises(CardioDiTError, match=r"a.zip is not a torch checkpoint"):
        read_checkpoint(tmp_path / "a.zip")


@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_objects_are_not_run(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": {}, "args": Stranger()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CardioDiTError, match=r"evil.pth contains arbitrary pickled objects .*system.*torch.save"):
        read_checkpoint(path)
    assert not Path("/tmp/should-not-exist").exists()


def test_whole_models_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pth", model=torch.nn.Linear(2, 2))
    with pytest.raises(CardioDiTError, match=r"arbitrary pickled objects .*Linear"):
        read_checkpoint(path)


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth").weights()["w"].tolist() == [1, 1]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_the_old_format_truncated(tmp_path: Path, share: float) -> None:
    torch.save({"model": {"w": torch.ones(100)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pth").read_bytes()
    (tmp_path / "old.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CardioDiTError, match=r"old.pth is not a torch checkpoint, or it is damaged"):
        read_checkpoint(tmp_path / "old.pth")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_numbers_are_data(tmp_path: Path, kind: type) -> None:
    path = save(tmp_path / "a.pth", model={"w": torch.ones(2)}, best_loss=kind(3), epoch=np.int64(7))
    assert read_checkpoint(path).epoch == 7
