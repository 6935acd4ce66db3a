"""Converted VolDiT models, with and without the adapter, compute what the authors' models compute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cardiodit.cli import main
from cardiodit.convert.cardiodit import load_transformer, load_vq_model
from cardiodit.convert.voldit import convert_voldit
from cardiodit.errors import CardioDiTError
from cardiodit.models import DiT3DTransformerModel, VQModel3D
from cardiodit.models.positions import sincos_positions
from cardiodit.pipelines.pipeline_voldit import VolDiTControlPipeline, VolDiTPipeline

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "voldit"
FILES = {
    "stage1_ckpt": GOLDEN / "vqgan_best_model.pth",
    "stage1_cfg": GOLDEN / "vqgan.yaml",
    "diff_ckpt": GOLDEN / "dit_best_model.pth",
    "diff_cfg": GOLDEN / "dit.yaml",
}
ADAPTER = {"tgca_ckpt": GOLDEN / "tgca_best_model.pth", "tgca_cfg": GOLDEN / "tgca.yaml"}


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}_expected.safetensors")


@torch.no_grad()
def test_the_vq_model_matches() -> None:
    model, reference = load_vq_model(FILES["stage1_ckpt"], FILES["stage1_cfg"], VQModel3D), expected("vqgan")
    quantized = model.quantize(model.encode(reference["image"]).latents)
    assert_matches(quantized.latents, reference["stage2_inputs"])
    assert_matches(model.decode(quantized.latents).sample, reference["decoded"])


@torch.no_grad()
def test_the_transformer_matches() -> None:
    model = load_transformer(FILES["diff_ckpt"], FILES["diff_cfg"], kind=DiT3DTransformerModel)
    reference = expected("dit")
    sample = model(reference["hidden_states"], reference["timestep"]).sample
    assert_matches(sample, reference["sample"])
    assert_matches(sincos_positions((4, 4, 2), 64)[None], reference["pos_embed"])


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_voldit(**FILES, **ADAPTER, output_dir=tmp_path_factory.mktemp("c") / "model", scale_factor=1.5)


@torch.no_grad()
def test_the_adapter_matches(controlled: Path) -> None:
    pipe, reference = VolDiTControlPipeline.from_pretrained(controlled), expected("tgca")
    latents, timestep = reference["hidden_states"], reference["timestep"]
    grid = pipe.transformer.grid_of(latents.shape[2:])
    assert_matches(pipe.adapter.condition_embed(reference["condition"]), reference["condition_embedding"])
    time = pipe.transformer.embed_time(latents, timestep)
    assert_matches(pipe.adapter.gate(time), reference["gate"])
    controls = pipe.adapter(pipe.adapter.embed(reference["condition"], pipe.transformer, grid), time)
    assert_matches(pipe.transformer(latents, timestep, block_controls=controls).sample, reference["sample"])
    free = pipe.transformer(latents, timestep).sample
    assert (free - reference["sample"]).abs().max() > 1e-3 * reference["sample"].abs().max()


def test_a_converted_model_samples_in_hounsfield_units(controlled: Path, tmp_path: Path) -> None:
    plain = VolDiTPipeline.from_pretrained(convert_voldit(**FILES, output_dir=tmp_path / "plain", scale_factor=1.5))
    out = plain(num_samples=2, num_inference_steps=2, seed=1)
    assert out.volumes.shape == (2, 64, 64, 32)
    assert out.units == (-1000, 1000)
    steered = VolDiTControlPipeline.from_pretrained(controlled)
    mask = np.zeros((64, 64, 32), np.uint8)
    mask[20:40, 20:40] = 1
    with_mask = steered(mask, num_samples=2, num_inference_steps=2, seed=1)
    assert with_mask.volumes.shape == (2, 64, 64, 32)
    assert not torch.allclose(with_mask.volumes, out.volumes)
    unsteered = steered(mask, num_samples=2, num_inference_steps=2, seed=1, conditioning_scale=0.0)
    assert torch.allclose(unsteered.volumes, out.volumes, atol=1e-5)
    record = json.loads((controlled / "conversion.json").read_text())
    assert set(record) == {"cardiodit_version", "stage1", "transformer", "adapter"}


def changed(tmp_path: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else torch.load(path, weights_only=True)
    change(content)
    target = tmp_path / path.name
    if path.suffix == ".yaml":
        target.write_text(yaml.safe_dump(content))
    else:
        torch.save(content, target)
    return target


def move(content: dict[str, Any], name: str) -> None:
    content["model"][f"base_model.{name}"] = content["model"][f"base_model.{name}"] + 0.1


def test_the_base_inside_may_differ_only_in_fine_tuned_blocks(tmp_path: Path) -> None:
    in_last = changed(tmp_path, ADAPTER["tgca_ckpt"], lambda c: move(c, "blocks.2.attn.proj.weight"))
    with pytest.raises(CardioDiTError, match=r"transformer_blocks\.2\.attn\.to_out\.0\.weight differ.* none"):
        convert_voldit(
            **FILES, tgca_ckpt=in_last, tgca_cfg=ADAPTER["tgca_cfg"], output_dir=tmp_path / "a", scale_factor=1
        )
    freeing = changed(tmp_path, ADAPTER["tgca_cfg"], lambda c: c["tgca"]["params"].update(finetune_last_n_blocks=1))
    folder = convert_voldit(**FILES, tgca_ckpt=in_last, tgca_cfg=freeing, output_dir=tmp_path / "b", scale_factor=1)
    held = VolDiTControlPipeline.from_pretrained(folder).transformer.transformer_blocks[2].attn.to_out[0].weight
    given = load_transformer(FILES["diff_ckpt"], FILES["diff_cfg"], kind=DiT3DTransformerModel)
    assert torch.allclose(held, given.transformer_blocks[2].attn.to_out[0].weight + 0.1)
    in_first = changed(tmp_path, ADAPTER["tgca_ckpt"], lambda c: move(c, "blocks.0.mlp.fc1.bias"))
    with pytest.raises(CardioDiTError, match=r"transformer_blocks\.0\.ff.* only the last 1 blocks"):
        convert_voldit(**FILES, tgca_ckpt=in_first, tgca_cfg=freeing, output_dir=tmp_path / "c", scale_factor=1)


def test_fine_tuned_blocks_must_be_in_the_checkpoint(tmp_path: Path) -> None:
    """Otherwise the adapter would be used with another base than in training."""

    def without_base(content: dict[str, Any]) -> None:
        content["model"] = {name: v for name, v in content["model"].items() if not name.startswith("base_model.")}

    alone = changed(tmp_path, ADAPTER["tgca_ckpt"], without_base)
    freeing = changed(tmp_path, ADAPTER["tgca_cfg"], lambda c: c["tgca"]["params"].update(finetune_last_n_blocks=1))
    with pytest.raises(CardioDiTError, match=r"holds the adapter alone, but tgca.yaml says .* last 1 blocks"):
        convert_voldit(**FILES, tgca_ckpt=alone, tgca_cfg=freeing, output_dir=tmp_path / "a", scale_factor=1)
    folder = convert_voldit(
        **FILES, tgca_ckpt=alone, tgca_cfg=ADAPTER["tgca_cfg"], output_dir=tmp_path / "b", scale_factor=1
    )
    VolDiTControlPipeline.from_pretrained(folder)


@pytest.mark.parametrize("held", [(0, 1, 2), (0, 2), (0, 1)])
def test_scales_of_some_blocks(held: tuple[int, ...], tmp_path: Path) -> None:
    """Of all blocks, of the steered ones by their number, or by their place."""

    def keep(content: dict[str, Any]) -> None:
        for block in range(3):
            del content["model"][f"adapter_scales.{block}"]
        values = {block: 0.1 * (1 + block) for block in held}
        if held == (0, 1):
            values = {0: 0.1, 1: 0.3}  # the second of them is block 2
        content["model"] |= {f"adapter_scales.{block}": torch.tensor([value]) for block, value in values.items()}

    scales = changed(tmp_path, ADAPTER["tgca_ckpt"], keep)
    config = changed(tmp_path, ADAPTER["tgca_cfg"], lambda c: c["tgca"]["params"].update(inject_layers=[0, 2]))
    folder = convert_voldit(**FILES, tgca_ckpt=scales, tgca_cfg=config, output_dir=tmp_path / "m", scale_factor=1)
    adapter = VolDiTControlPipeline.from_pretrained(folder).adapter
    assert adapter.injected == [0, 2]
    assert [round(scale.item(), 4) for scale in adapter.scales] == [0.1, 0.3]


def test_the_suggested_command_fits_the_converted_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, files, said in [("plain", FILES, ""), ("steered", {**FILES, **ADAPTER}, "--masks masks.csv ")]:
        options = [text for key, value in files.items() for text in (f"--{key}", str(value))]
        assert main(["convert", "voldit", *options, "--scale_factor", "1", "--output_dir", str(tmp_path / name)]) == 0
        assert f"cardiodit sample {tmp_path / name} {said}--output_dir samples" in capsys.readouterr().out


def test_an_adapter_of_another_base_is_refused(controlled: Path, tmp_path: Path) -> None:
    pipe = VolDiTControlPipeline.from_pretrained(controlled)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].ff.net[2].weight += 0.05
    with pytest.raises(CardioDiTError, match="another transformer"):
        VolDiTControlPipeline(pipe.vae, pipe.transformer, pipe.scheduler, pipe.adapter)
    half = VolDiTControlPipeline.from_pretrained(controlled, torch_dtype=torch.bfloat16)  # rounding is no difference
    assert half.adapter.time_gate.weight.dtype == torch.float32


def test_an_adapter_needs_checkpoint_and_config(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="both its checkpoint"):
        convert_voldit(**FILES, tgca_ckpt=ADAPTER["tgca_ckpt"], output_dir=tmp_path / "x", scale_factor=1)
