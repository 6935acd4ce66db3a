import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cardiodit import CardioDiTError, DiT4DTransformerModel, VQModel4D

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(make_dit, tmp_path: Path) -> Path:
    make_dit(num_classes=3, class_dropout_prob=0.1, class_names=["a", "b", "c"]).save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_comes_back_to_the_bit(folder: Path, make_dit) -> None:
    model = DiT4DTransformerModel.from_pretrained(folder)
    original = make_dit(num_classes=3, class_dropout_prob=0.1, class_names=["a", "b", "c"])
    assert {k: v for k, v in model.config.items() if not k.startswith("_")} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in original.config.items() if not k.startswith("_")
    } or model.config.class_names == ["a", "b", "c"]
    noisy = torch.randn(1, 8, 2, 8, 8, 4)
    assert torch.equal(model(noisy, 3, torch.tensor([1])).sample, original(noisy, 3, torch.tensor([1])).sample)


def test_weights_lie_where_torch_would_lay_them(folder: Path) -> None:
    """Not where they lie in their file: some processors' sums depend on it in their last bits."""
    for file in folder.glob("*.safetensors"):  # a header of another length moves every weight
        save_file(load_file(file), file, metadata={"format": "pt", "moved": "by these words"})
    model = DiT4DTransformerModel.from_pretrained(folder)
    assert not any(weight.data_ptr() % 64 for weight in (*model.parameters(), *model.buffers()))


def test_loading_info_is_still_to_be_had(folder: Path) -> None:
    _, info = DiT4DTransformerModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())


def rewrite(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_missing_and_unknown_weights_are_named(folder: Path) -> None:
    rewrite(folder, lambda w: w.__setitem__("proj_in.weight", w.pop("proj_out.weight")))
    with pytest.raises(CardioDiTError, match=r"missing: proj_out.weight; unexpected: proj_in.weight"):
        DiT4DTransformerModel.from_pretrained(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    rewrite(folder, lambda w: w.__setitem__("proj_out.bias", torch.zeros(7)))
    with pytest.raises(CardioDiTError, match="do not fit the config.json.*proj_out.bias"):
        DiT4DTransformerModel.from_pretrained(folder)


def test_a_config_of_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(CardioDiTError, match=r"missing: transformer_blocks.2.*…"):
        DiT4DTransformerModel.from_pretrained(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(folder: Path, share: float) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CardioDiTError, match="damaged or cut short"):
        DiT4DTransformerModel.from_pretrained(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match="safetensors"):
        DiT4DTransformerModel.from_pretrained(folder)


def test_sharded_weights(make_vae, tmp_path: Path) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    z = torch.randn(1, 8, 4, 4, 2)
    assert torch.equal(VQModel4D.from_pretrained(tmp_path).decode(z).sample, vae.decode(z).sample)


def test_a_saved_model_does_not_tell_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = VQModel4D(channels=(8,), num_res_channels=(8,), num_res_layers=1, num_embeddings=8)
    small.save_pretrained(tmp_path / "patient-4711")
    monkeypatch.chdir(tmp_path)
    for origin in (tmp_path / "patient-4711", Path("patient-4711")):
        model = VQModel4D.from_pretrained(origin)
        assert str(origin) == str(model.config._name_or_path)  # samples.jsonl's revision needs it
        model.save_pretrained(tmp_path / "again")
        assert "4711" not in (tmp_path / "again" / "config.json").read_text()
