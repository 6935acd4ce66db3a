"""Converted PRDiT models compute what the authors' models compute, wherever their configs are stored."""

import argparse
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cardiodit.cli import main
from cardiodit.convert.cardiodit import fused_shape, transformer_name
from cardiodit.convert.checkpoint import read_checkpoint
from cardiodit.convert.prdit import NAMES, SIZES, convert_prdit
from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.training.objectives import VoxelFlowMatching

from ..prdit_cases import (
    CASES,
    GOLDEN,
    Weights,
    by_rule,
    case,
    case_weights,
    config,
    expected,
    save,
    shapes,
    small_weights,
)


def model_of(folder: Path) -> PRDiTTransformerModel:
    return PRDiTTransformerModel.from_pretrained(folder, subfolder="transformer")


def run_convert(ckpt: Path, output: Path, capsys: pytest.CaptureFixture, *more: str) -> tuple[int, str]:
    """Return the command's exit code and output."""
    code = main(["convert", "prdit", "--ckpt", str(ckpt), "--output_dir", str(output), *more])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


# --- Golden values ---


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_published_model_matches(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recorded, golden = case(name), expected(name)
    settings = config(recorded["model"], recorded["input_size"])
    weights = case_weights(name)
    ckpt = save(tmp_path / "008000.pt", weights, config=settings, model=weights, ema=None)
    code, _ = run_convert(ckpt, tmp_path / "model", capsys)
    assert code == 0
    pipe = PRDiTPipeline.from_pretrained(tmp_path / "model")
    model = pipe.transformer
    assert sum(p.numel() for p in model.parameters()) == recorded["params"]
    assert_matches(golden["input"], by_rule("input", list(golden["input"].shape), 1.2))
    whole = model(golden["input"], golden["timestep"]).sample
    assert_matches(whole, golden["sample"])
    for part in model.refiner_parts():
        for parameter in part.parameters():
            parameter.zero_()
    local = model(golden["input"], golden["timestep"]).sample
    assert_matches(local, golden["coarse"])
    if model.has_refiner:
        assert_matches(whole - local, golden["fine"])


def test_the_small_checkpoints_here_are_named_as_the_recorded_ones() -> None:
    assert shapes(192, 12, 2) == case("prdit")["keys"]
    assert shapes(192, 12, 0) == case("prdit_local_only")["keys"]


@pytest.mark.parametrize("layers", [0, 4, 8, 12])
@pytest.mark.parametrize("size", ["B", "XL"])
def test_published_sizes_have_the_published_names_and_shapes(size: str, layers: int) -> None:
    width, heads = SIZES[size]
    with torch.device("meta"):
        ours = PRDiTTransformerModel(
            num_layers=layers, num_attention_heads=heads, attention_head_dim=width // heads
        ).state_dict()
    found = {}
    for name, value in ours.items():
        theirs = transformer_name(name, NAMES)
        found[theirs] = list(fused_shape(name, theirs, value))
    assert found == shapes(width, 12, layers)


# --- The folder ---


def test_ema_weights_are_preferred(tmp_path: Path) -> None:
    weights = small_weights()
    ckpt = save(tmp_path / "a.pt", weights)
    averaged = model_of(convert_prdit(ckpt, tmp_path / "ema"))
    raw = model_of(convert_prdit(ckpt, tmp_path / "raw", ema=False))
    name = "t_embedder.coarse_head.weight"
    assert torch.equal(averaged.local_time.weight, weights[name])
    assert torch.equal(raw.local_time.weight, weights[name] + 1)


@pytest.mark.parametrize("ema", [None, "shadow", "plain"])
def test_every_layout_of_ema_weights(ema: str | None, tmp_path: Path) -> None:
    weights = small_weights()
    average: Any = {"shadow": weights, "decay": 0.9999} if ema == "shadow" else weights if ema else None
    model = model_of(convert_prdit(save(tmp_path / "a.pt", weights, ema=average), tmp_path / "model"))
    offset = 0.0 if ema else 1.0
    assert torch.equal(model.proj_out.weight, weights["fine.final_layer.linear.weight"] + offset)
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert record["transformer"]["ema"] is (ema is not None)


def test_query_key_and_value_are_split_in_order(tmp_path: Path) -> None:
    weights = small_weights()
    attention = model_of(convert_prdit(save(tmp_path / "a.pt", weights), tmp_path / "m")).transformer_blocks[0].attn
    parts = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    assert torch.equal(torch.cat(parts), weights["fine.blocks.0.attn.qkv.weight"])


def test_weights_of_ddp_and_compile(tmp_path: Path) -> None:
    wrapped = {f"module._orig_mod.{name}": value for name, value in small_weights().items()}
    plain = model_of(convert_prdit(save(tmp_path / "a.pt", small_weights()), tmp_path / "a")).state_dict()
    found = model_of(convert_prdit(save(tmp_path / "b.pt", wrapped), tmp_path / "b")).state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_bare_weights_and_the_average_alone(tmp_path: Path) -> None:
    """The authors' own script samples from both."""
    weights = small_weights()
    torch.save(weights, tmp_path / "bare.pt")
    bare = convert_prdit(tmp_path / "bare.pt", tmp_path / "a", size=(32, 32, 32))
    alone = convert_prdit(save(tmp_path / "ema.pt", weights, model=None), tmp_path / "b")
    name = "t_embedder.mlp.0.weight"
    assert torch.equal(model_of(bare).time_embed.weight, weights[name])
    assert torch.equal(model_of(alone).time_embed.weight, weights[name])
    with pytest.raises(CardioDiTError, match=r"ema.pt has no entry 'model'; it holds ema, config"):
        convert_prdit(tmp_path / "ema.pt", tmp_path / "c", ema=False)


def test_the_record_names_the_source_without_its_path(tmp_path: Path) -> None:
    folder = convert_prdit(save(tmp_path / "008000.pt", small_weights()), tmp_path / "model")
    text = (folder / "conversion.json").read_text()
    record = json.loads(text)["transformer"]
    assert (record["file"], record["epoch"], record["ema"], len(record["sha256"])) == ("008000.pt", 8000, True, 64)
    assert "/" not in text
    assert "/data/lidc" not in "".join(path.read_text() for path in folder.rglob("*.json"))


def test_a_converted_model_samples(tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(), config=config(size=[16, 24, 8]))
    pipe = PRDiTPipeline.from_pretrained(convert_prdit(ckpt, tmp_path / "model"))
    pipe.set_progress_bar_config(disable=True)
    volumes = pipe(num_samples=2, num_inference_steps=2, seed=1).volumes
    assert volumes.shape == (2, 16, 24, 8) and volumes.isfinite().all() and volumes.std() > 0


# --- Presets, spacing and size ---


def test_a_preset_sets_preprocessing_and_spacing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(), config=config(size=128))
    code, output = run_convert(ckpt, tmp_path / "with", capsys, "--preset", "prdit-lidc-128")
    assert code == 0 and "No " not in output and "cardiodit sample" in output
    model = model_of(tmp_path / "with")
    assert model.config.preprocessing["pool"] == 2 and tuple(model.config.spacing) == (2.0, 2.0, 2.0)
    code, output = run_convert(ckpt, tmp_path / "without", capsys)
    assert code == 0 and "no scanner coordinates" in output and "No preset was given" in output
    model = model_of(tmp_path / "without")
    assert model.config.preprocessing is None and model.config.spacing is None


@pytest.mark.parametrize(
    "more, message",
    [
        (("--preset", "prdit-lidc"), "prdit-lidc makes volumes of 256 × 256 × 256 voxels.* on 128 × 128 × 128"),
        (("--preset", "prdit-lidc-128", "--spacing", "1", "1", "1"), "2.0 × 2.0 × 2.0 mm, but --spacing says 1.0"),
        (("--spacing", "1", "0", "1"), "spacing must be three positive numbers"),
        (("--size", "128", "128", "100"), "100 voxels along depth, which must be a multiple of 8"),
    ],
)
def test_settings_that_contradict_each_other(more: tuple[str, ...], message: str, tmp_path: Path, capsys: Any) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(), config=config(size=128))
    code, output = run_convert(ckpt, tmp_path / "model", capsys, *more)
    assert code == 1 and not (tmp_path / "model").exists()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(output)


def test_the_given_size_is_preferred_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, output = run_convert(
        save(tmp_path / "a.pt", small_weights()), tmp_path / "m", capsys, "--size", "64", "64", "48"
    )
    assert code == 0 and "Using the given size 64 × 64 × 48, not 32 × 32 × 32 from a.pt" in output
    assert tuple(model_of(tmp_path / "m").config.sample_size) == (64, 64, 48)


# --- Weights that do not fit ---


def without(weights: Weights, *names: str) -> Weights:
    return {name: value for name, value in weights.items() if name not in names}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: without(w, "fine.blocks.0.mlp.fc2.bias"), r"missing: fine.blocks.0.mlp.fc2.bias\."),
        (lambda w: {**w, "fine.pos_embed": torch.zeros(3)}, r"unexpected: fine.pos_embed\."),
        (
            lambda w: {**w, "coarse.mlp_denoise.mlp1.norm.bias": torch.zeros(9)},
            r"wrong shape: coarse.mlp_denoise.mlp1.norm.bias \[9\] instead of \[512\]",
        ),
        (lambda w: without(w, "t_embedder.mlp.0.weight"), "holds no PRDiT: t_embedder.mlp.0.weight missing among its"),
        (
            lambda w: {**w, "coarse.mlp_denoise.linear_final.weight": torch.zeros(500, 512)},
            "another variant of PRDiT: it predicts 500 values for each patch of 512",
        ),
        (
            lambda w: {**w, "coarse.mlp_denoise.linear_final.weight": torch.zeros(1024, 1000)},
            "depth: 1 by the config, 1 by|patch: 8 by the config, 10 by the weights",
        ),
    ],
)
def test_every_weight_is_accounted_for(change: Callable[[Weights], Weights], message: str, tmp_path: Path) -> None:
    changed = change(small_weights())
    ckpt = save(tmp_path / "a.pt", changed, ema=None)
    with pytest.raises(CardioDiTError, match=message):
        convert_prdit(ckpt, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_incomplete_ema_weights_are_refused(tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(), ema=without(small_weights(), "t_embedder.mlp.0.bias"))
    with pytest.raises(CardioDiTError, match=r"the EMA lacks weights that the model has: t_embedder.mlp.0.bias"):
        convert_prdit(ckpt, tmp_path / "model")


def test_several_channels_and_other_widths(tmp_path: Path) -> None:
    weights = small_weights(hidden=24, channels=2)
    settings = {"arch": {"num_heads": 3, "in_channels": 2, "out_channels": 4}, "resolution": [16, 16, 8]}
    ckpt = save(tmp_path / "a.pt", weights, model=weights, ema=None, config=settings)
    model = model_of(convert_prdit(ckpt, tmp_path / "m"))
    assert (model.config.in_channels, model.config.num_attention_heads, model.config.attention_head_dim) == (2, 3, 8)
    assert list(model.config.sample_size) == [16, 16, 8]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "no published PRDiT is 24 wide, so its number of heads is unknown"),
        ({"num_heads": 5}, "num_heads 5 does not divide the width 24"),
    ],
)
def test_another_width_needs_its_number_of_heads(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(hidden=24), config={**settings, "image_size": 16})
    with pytest.raises(CardioDiTError, match=message):
        convert_prdit(ckpt, tmp_path / "m")


# --- Configs ---


class Config:
    """As the authors had it: a namespace of namespaces."""

    def __init__(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            setattr(self, key, Config(value) if isinstance(value, dict) else value)


class ItemsAndAttributes(dict):
    """As easydict has it."""

    def __init__(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self[key] = ItemsAndAttributes(value) if isinstance(value, dict) else value
            setattr(self, key, self[key])


def as_namespace(values: dict[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(model="PRDiT-XS/8/1", image_size=values["data"]["image_size"], ckpt_every=1000)


AUTHORS = "util_of_the_authors"
Config.__module__ = ItemsAndAttributes.__module__ = AUTHORS


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """These classes live in a module that only the authors have: gone once the checkpoint is written."""
    module = types.ModuleType(AUTHORS)
    module.__dict__.update(Config=Config, ItemsAndAttributes=ItemsAndAttributes)
    monkeypatch.setitem(sys.modules, AUTHORS, module)


@pytest.mark.parametrize("kind", [dict, Config, ItemsAndAttributes, as_namespace])
def test_the_config_inside_may_be_an_object(
    kind: Callable, tmp_path: Path, foreign: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ckpt = save(tmp_path / "a.pt", small_weights(), config=kind(config(size=40)))
    monkeypatch.delitem(sys.modules, AUTHORS)
    code, output = run_convert(ckpt, tmp_path / "model", capsys)
    assert code == 0, output
    assert tuple(model_of(tmp_path / "model").config.sample_size) == (40, 40, 40)
    assert ("their code was not run" in output) is (kind is not dict)
    with pytest.raises(CardioDiTError, match="the config, 1 by the weights"):
        wrong = save(tmp_path / "b.pt", small_weights(), config=config("PRDiT-XS/8/4"))
        convert_prdit(wrong, tmp_path / "other")


class Opaque:
    """Its content is not plain: what is restored is up to its code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _write_a_file, ("ran",)


def _write_a_file(name: str) -> None:
    Path(name).touch()


def test_a_config_that_is_code_is_not_run_and_the_yaml_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    ckpt = save(tmp_path / "a.pt", small_weights(), config=Opaque())
    code, output = run_convert(ckpt, tmp_path / "model", capsys)
    assert code == 1 and "_write_a_file" in output and "Give the YAML of its training (--cfg)" in output
    (tmp_path / "lidc.yaml").write_text(yaml.safe_dump(config(size=[16, 16, 24])))
    code, output = run_convert(ckpt, tmp_path / "model", capsys, "--cfg", str(tmp_path / "lidc.yaml"))
    assert code == 0 and "_write_a_file" in output
    assert tuple(model_of(tmp_path / "model").config.sample_size) == (16, 16, 24)
    assert not (tmp_path / "ran").exists()


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ran",)


def test_objects_that_no_config_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CardioDiTError, match=r"a.pt contains arbitrary pickled objects"):
        convert_prdit(save(tmp_path / "a.pt", small_weights(), config=Command()), tmp_path / "model")
    assert not (tmp_path / "ran").exists()
    module = torch.nn.Linear(2, 2)
    with pytest.raises(CardioDiTError, match=r"holds no PRDiT.* Objects of .*Linear in it were not opened"):
        convert_prdit(save(tmp_path / "b.pt", small_weights(), model=module), tmp_path / "model", ema=False)


def test_only_prdit_reads_around_objects(tmp_path: Path) -> None:
    ckpt = save(tmp_path / "a.pt", {"w": torch.ones(2)}, config=argparse.Namespace(model="PRDiT-B/12/4"))
    with pytest.raises(CardioDiTError, match=r"arbitrary pickled objects \(argparse.Namespace\)"):
        read_checkpoint(ckpt)


def test_a_yaml_without_sizes_leaves_them_to_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty.yaml").write_text("training: {batch_size: 64}\n")
    ckpt = save(tmp_path / "a.pt", small_weights(), config=None)
    code, output = run_convert(ckpt, tmp_path / "a", capsys, "--cfg", str(tmp_path / "empty.yaml"))
    assert code == 1 and "size of the training volumes is not in a.pt and empty.yaml" in output
    code, output = run_convert(ckpt, tmp_path / "a", capsys, "--size", "32", "32", "32")
    assert code == 0 and "its width, patch and depth were derived from the weights" in output
    assert model_of(tmp_path / "a").config.num_attention_heads == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": {"name": "PRDiT-B/8/1"}}, "width: 768 by the config, 192 by the weights"),
        ({"model": {"name": "PRDiT-XS/12/1"}}, "patch: 12 by the config, 8 by the weights"),
        ({"model": {"name": "PRDiT-XS/8/4"}}, "depth: 4 by the config, 1 by the weights"),
        ({"model": {"name": "PRDiT-XS/8/1", "out_channels": 1}}, "out_channels: 1 by the config, 2 by the weights"),
        ({"model": {"name": "PRDiT-XS/8/1", "num_heads": 12}}, "num_heads: 12 by the config, 6 by the weights"),
        ({"model": {"name": "PRDiT-B/16/0-x16"}}, "model.name is 'PRDiT-B/16/0-x16', which is not a model that can"),
        ({"model": {"name": "PRDiT-XS/8/1-s4"}}, "stride: 4 by the config, 8 by the weights"),
        (
            {"model": {"name": "PRDiT-XS/8/1"}, "arch": "PRDiT-S/8/1"},
            "contradicts itself: arch is PRDiT-S/8/1, model.name is",
        ),
        ({"data": {"image_size": "128"}}, "data.image_size is '128'; expected a number of voxels or a list of three"),
        (
            {"data": {"image_size": [32, 32]}},
            r"data.image_size is \[32, 32\]; expected a number of voxels or a list of three",
        ),
        ({"data": {"image_size": -8}}, "data.image_size is -8; expected a positive integer"),
    ],
)
def test_a_config_that_contradicts_the_weights(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "lidc.yaml").write_text(yaml.safe_dump({**config(), **change}))
    ckpt = save(tmp_path / "a.pt", small_weights(), config=None)
    with pytest.raises(CardioDiTError, match=message):
        convert_prdit(ckpt, tmp_path / "model", cfg=tmp_path / "lidc.yaml")


def test_two_configs_that_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "lidc.yaml").write_text(yaml.safe_dump(config(size=64)))
    ckpt = save(tmp_path / "a.pt", small_weights())
    with pytest.raises(CardioDiTError, match=r"a.pt says size \(32, 32, 32\), but lidc.yaml says \(64, 64, 64\)"):
        convert_prdit(ckpt, tmp_path / "model", cfg=tmp_path / "lidc.yaml")


# --- Flow matching, large patches, super-resolution ---

FLOW_CASES = ("overlap", "s4")


def flow_case(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"prdit_flow/case_{name}.json").read_text())


def flow_expected(name: str) -> Weights:
    return load_file(GOLDEN / f"prdit_flow/expected_{name}.safetensors")


def flow_pipeline(name: str, folder: Path) -> PRDiTPipeline:
    """The recorded model, saved as the authors do and converted by the command."""
    recorded = flow_case(name)
    weights = {key: by_rule(key, shape) for key, shape in recorded["keys"].items()}
    ckpt = save(folder / "best.pt", weights, config=recorded["config"], epoch="best")
    assert main(["convert", "prdit", "--ckpt", str(ckpt), "--output_dir", str(folder / name)]) == 0
    pipe = PRDiTPipeline.from_pretrained(folder / name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", [*FLOW_CASES, "local"])
@torch.no_grad()
def test_flow_models(name: str, tmp_path: Path) -> None:
    recorded, golden, pipe = flow_case(name), flow_expected(name), flow_pipeline(name, tmp_path)
    model, process = pipe.transformer, VoxelFlowMatching()
    assert model.config.prediction_type == "flow_to_data" and pipe.scheduler.config.invert_sigmas
    assert model.config.tile_size == recorded["architecture"]["stride"]
    assert_matches(golden["t"] * 1000, golden["model_timestep"])
    assert_matches(model(golden["input"], golden["model_timestep"]).sample, golden["sample"])
    noisy = process.corrupt(golden["data"], golden["noise"], golden["model_timestep"])
    assert_matches(noisy, golden["noisy"])
    assert_matches(process.target(golden["data"], golden["noise"], golden["model_timestep"]), golden["target"])
    batch = {"noise": golden["noise"], "timestep": golden["model_timestep"]}
    assert_matches(process.losses(model, golden["data"], batch), golden["loss"])
    half = torch.full((len(noisy),), 500.0)
    between = process.corrupt(golden["data"], golden["noise"], half)
    estimate = process.clean_from(model(between, half).sample, between, half)
    assert_matches(estimate, golden["data_estimate_half"])
    if name in FLOW_CASES:
        for part in model.refiner_parts():
            for parameter in part.parameters():
                parameter.zero_()
        assert_matches(model(golden["input"], golden["model_timestep"]).sample, golden["coarse"])


@torch.no_grad()
def test_super_resolution(tmp_path: Path) -> None:
    recorded, golden, pipe = flow_case("sr"), flow_expected("sr"), flow_pipeline("sr", tmp_path)
    model = pipe.transformer
    assert (model.config.super_resolution, tuple(model.config.sample_size)) == (2, (32, 32, 32))
    assert tuple(model.base.config.sample_size) == (recorded["base_image_size"],) * 3
    whole = model(golden["input"], golden["timestep"]).sample
    assert_matches(whole, golden["sample"])
    assert_matches(model._upsampled(golden["input"], golden["timestep"]), golden["base_upsampled"])
    assert_matches(whole - golden["base_upsampled"], golden["correction"])
    assert pipe(num_inference_steps=2, seed=0).volumes.shape == (1, 32, 32, 32)


def test_super_resolution_needs_the_size_of_its_base(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recorded = flow_case("sr")
    weights = {key: by_rule(key, shape) for key, shape in recorded["keys"].items()}
    del recorded["config"]["data"]["base_image_size"]
    ckpt = save(tmp_path / "best.pt", weights, config=recorded["config"])
    code, said = run_convert(ckpt, tmp_path / "model", capsys)
    assert code == 1 and "expected data.base_image_size" in said
