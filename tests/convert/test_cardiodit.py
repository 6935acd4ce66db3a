import json
import os
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cardiodit import CardioDiTPipeline
from cardiodit.convert import cardiodit as cardiodit_conversion
from cardiodit.convert import convert_cardiodit, load_discriminator, load_transformer, load_vq_model
from cardiodit.errors import CardioDiTError
from cardiodit.models.discriminator import PatchDiscriminator

from ..conftest import begin

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
VQ_FILES = (GOLDEN / "cardiodit/vqgan_best_model.pth", GOLDEN / "cardiodit/vqgan.yaml")
DIT_FILES = (GOLDEN / "cardiodit/dit_best_model.pth", GOLDEN / "cardiodit/dit.yaml")
LABEL_FILES = (GOLDEN / "cardiodit_labels/dit_best_model.pth", GOLDEN / "cardiodit_labels/dit.yaml")

Change = Callable[[dict[str, Any]], Any]


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def expected(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}_expected.safetensors")


@pytest.fixture
def tamper(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """A copy of a checkpoint or config, changed in place by a function."""

    def write(path: Path, change: Change) -> Path:
        changed = tmp_path / f"changed_{path.name}"
        if path.suffix == ".yaml":
            content = yaml.safe_load(path.read_text())
            change(content)
            changed.write_text(yaml.safe_dump(content))
        else:
            content = deepcopy(torch.load(path, weights_only=True))
            change(content)
            torch.save(content, changed)
        return changed

    return write


def convert(output: Path, **changes: Any) -> Path:
    files = {
        "stage1_ckpt": VQ_FILES[0],
        "stage1_cfg": VQ_FILES[1],
        "diff_ckpt": DIT_FILES[0],
        "diff_cfg": DIT_FILES[1],
    }
    settings: dict[str, Any] = {"scale_factor": 1.25, "spacing": (1.5, 1.5, 8.0), "frame_time": 0.04}
    return convert_cardiodit(output_dir=output, **{**files, **settings, **changes})


# --- Golden values ---


@torch.no_grad()
def test_vq_model() -> None:
    model, golden = load_vq_model(*VQ_FILES), expected("cardiodit/vqgan")
    latents = model.encode(golden["image"]).latents
    assert_matches(latents, golden["latents"])
    quantized = model.quantize(latents)
    assert_matches(quantized.latents, golden["quantized"])
    assert_matches(quantized.latents, golden["stage2_inputs"])
    assert torch.equal(quantized.indices, golden["indices"])
    assert_matches(quantized.commitment_loss.reshape(1), golden["commitment_loss"])
    assert_matches(model(golden["image"]).sample, golden["reconstruction"])
    assert_matches(model.decode(golden["decode_input"]).sample, golden["decoded_from_latents"])


@torch.no_grad()
def test_codebook_update_while_training() -> None:
    model, golden = load_vq_model(*VQ_FILES).train(), expected("cardiodit/vqgan")
    model(golden["image"])
    assert_matches(model.quantizer.weight, golden["train_codebook"])
    assert_matches(model.quantizer.ema_counts, golden["train_ema_cluster_size"])
    assert_matches(model.quantizer.ema_sums, golden["train_ema_w"])


@torch.no_grad()
def test_discriminator() -> None:
    model, golden = load_discriminator(*VQ_FILES), expected("cardiodit/vqgan")
    assert model is not None
    assert_matches(model(golden["image"])[-1], golden["discriminator_logits"])


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("name", ["cardiodit", "cardiodit_labels"])
@torch.no_grad()
def test_transformer(name: str, ema: bool) -> None:
    model = load_transformer(GOLDEN / name / "dit_best_model.pth", GOLDEN / name / "dit.yaml", ema=ema)
    golden = expected(f"{name}/dit")
    sample = model(golden["hidden_states"], golden["timestep"], golden.get("class_labels")).sample
    assert_matches(sample, golden["sample_ema_weights" if ema else "sample_raw_weights"])


@torch.no_grad()
def test_transformer_with_null_label_and_without_label() -> None:
    model, golden = load_transformer(*LABEL_FILES), expected("cardiodit_labels/dit")
    null_labels = torch.full((2,), model.null_label)
    inputs = golden["hidden_states"], golden["timestep"]
    assert_matches(model(*inputs, null_labels).sample, golden["sample_null_label"])
    assert_matches(model(*inputs).sample, golden["sample_no_label"])


def test_expanded_configs_give_the_same_models(tmp_path: Path) -> None:
    compact = yaml.safe_load(VQ_FILES[1].read_text())
    expanded = {"model": {"params": compact["stage1"]["params"]}, "discriminator": compact["discriminator"]}
    (tmp_path / "vqgan.yaml").write_text(yaml.safe_dump(expanded))
    dit = yaml.safe_load(DIT_FILES[1].read_text())["dit"]
    (tmp_path / "dit.yaml").write_text(
        yaml.safe_dump({"model": {"params": dit["params"]}, "scheduler": dit["scheduler"]})
    )
    for ours, theirs in [
        (load_vq_model(VQ_FILES[0], tmp_path / "vqgan.yaml"), load_vq_model(*VQ_FILES)),
        (load_transformer(DIT_FILES[0], tmp_path / "dit.yaml"), load_transformer(*DIT_FILES)),
    ]:
        assert dict(ours.config) == dict(theirs.config)
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


# --- The folder ---


@torch.no_grad()
def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = convert(tmp_path / "deep" / "model")
    assert capsys.readouterr().out == ""
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    pipe = CardioDiTPipeline.from_pretrained(folder)
    golden = expected("cardiodit/dit")
    sample = pipe.transformer(golden["hidden_states"], golden["timestep"]).sample
    assert_matches(sample, golden["sample_ema_weights"])
    golden_vq = expected("cardiodit/vqgan")
    assert_matches(pipe.vae(golden_vq["image"]).sample, golden_vq["reconstruction"])
    assert pipe.vae.config.scaling_factor == 1.25
    assert tuple(pipe.vae.config.spacing) == (1.5, 1.5, 8.0)
    assert pipe.vae.config.frame_time == 0.04
    assert torch.equal(torch.tensor(pipe.scheduler.config.trained_betas), golden["betas"])
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    discriminator = PatchDiscriminator.from_pretrained(folder / "discriminator")
    assert_matches(discriminator(golden_vq["image"])[-1], golden_vq["discriminator_logits"])


def test_a_converted_codebook_is_never_drawn_again(tmp_path: Path) -> None:
    vae = CardioDiTPipeline.from_pretrained(convert(tmp_path / "model")).vae.train()
    golden = expected("cardiodit/vqgan")
    vae(golden["image"])
    assert_matches(vae.quantizer.weight, golden["train_codebook"])


def test_the_record_names_the_sources_without_their_paths(tmp_path: Path) -> None:
    text = (convert(tmp_path / "model", ema=False) / "conversion.json").read_text()
    record = json.loads(text)
    assert record["stage1"]["epoch"] == 7
    assert record["transformer"]["file"] == "dit_best_model.pth"
    assert record["transformer"]["ema"] is False
    assert len(record["transformer"]["sha256"]) == 64
    assert str(GOLDEN.parent) not in text and "/" not in text


def test_an_empty_output_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert (convert(tmp_path / "model") / "model_index.json").exists()


def test_without_a_spacing_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    convert(tmp_path / "model", spacing=None)
    assert "no scanner coordinates" in capsys.readouterr().out


def test_without_a_discriminator(tmp_path: Path, tamper: Callable) -> None:
    checkpoint = tamper(VQ_FILES[0], lambda content: content.pop("discriminator"))
    assert not (convert(tmp_path / "model", stage1_ckpt=checkpoint) / "discriminator").exists()


def test_scale_factor_of_the_config(tmp_path: Path, tamper: Callable, capsys: pytest.CaptureFixture) -> None:
    config = tamper(DIT_FILES[1], lambda content: content["dit"].update(scale_factor=2.5))
    folder = convert(tmp_path / "a", diff_cfg=config, scale_factor=None)
    assert json.loads((folder / "vae/config.json").read_text())["scaling_factor"] == 2.5
    folder = convert(tmp_path / "b", diff_cfg=config, scale_factor=3.0)
    assert json.loads((folder / "vae/config.json").read_text())["scaling_factor"] == 3.0
    assert "given scale factor 3.0, not 2.5" in capsys.readouterr().out


# --- Mistakes ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale_factor": None}, r"dit.yaml does not hold the scale factor.*--scale_factor.*noise"),
        ({"scale_factor": 0.0}, "finite number above 0, found 0.0"),
        ({"scale_factor": float("nan")}, "finite number above 0, found nan"),
        ({"scale_factor": float("inf")}, "finite number above 0, found inf"),
        ({"spacing": (1.5, 8.0)}, r"three positive numbers, mm .* found \[1.5, 8.0\]"),
        ({"spacing": (1.5, 1.5, -8.0)}, "three positive numbers, mm"),
        ({"frame_time": 40.0}, "40.0 s is longer than a heart beat.*give 0.04"),
        ({"frame_time": 0.0}, "positive number of seconds"),
        ({"stage1_ckpt": GOLDEN / "nowhere.pth"}, r"nowhere.pth does not exist"),
        ({"stage1_cfg": DIT_FILES[1]}, "swapped"),
        ({"diff_cfg": VQ_FILES[1]}, "swapped"),
        (
            {"stage1_ckpt": DIT_FILES[0]},
            r"dit_best_model.pth are not those .* vqgan.yaml describes. missing: enc",
        ),
        ({"diff_ckpt": VQ_FILES[0]}, r"vqgan_best_model.pth are not those .* dit.yaml describes. missing"),
        (
            {"diff_cfg": LABEL_FILES[1]},
            r"missing: y_embedder.*wrong shape: .*\[256, 64\] instead of \[512, 64\]",
        ),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        convert(tmp_path / "model", **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CardioDiTError, match=r"not empty, it contains notes.txt"):
        convert(tmp_path, stage1_ckpt=GOLDEN / "nowhere.pth")  # noticed before the checkpoints are opened
    with pytest.raises(CardioDiTError, match=r"notes.txt is a file"):
        convert(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_stages_of_different_models(tmp_path: Path, tamper: Callable) -> None:
    config = tamper(DIT_FILES[1], lambda content: content["dit"]["params"].update(in_channels=4))
    with pytest.raises(CardioDiTError, match=r"vqgan.yaml makes latents of 8 channels .* takes 4"):
        convert(tmp_path / "model", diff_cfg=config)


def test_a_3d_config(tamper: Callable) -> None:
    params = {"input_size": [8, 8, 4], "patch_size": 2}
    config = tamper(DIT_FILES[1], lambda content: content["dit"]["params"].update(params))
    with pytest.raises(CardioDiTError, match="input_size has 3 numbers, but a model with 4 axes"):
        load_transformer(DIT_FILES[0], config)


@pytest.mark.parametrize(("key", "value"), [("norm", "NONE"), ("activation", [1, 2, 3]), ("dropout", 3.0)])
def test_params_that_only_the_layers_can_judge(tamper: Callable, key: str, value: Any) -> None:
    config = tamper(VQ_FILES[1], lambda content: content["discriminator"]["params"].update({key: value}))
    with pytest.raises(CardioDiTError, match=r"vqgan.yaml: a PatchDiscriminator cannot be built"):
        load_discriminator(VQ_FILES[0], config)


def rename(entry: str, old: str, new: str) -> Change:
    return lambda content: content[entry].update({new: content[entry].pop(old)})


def reshape(entry: str, name: str) -> Change:
    return lambda content: content[entry].update({name: content[entry][name][..., :-1].clone()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename("model", "blocks.1.attn.qkv.weight", "blocks.1.attention.weight"),
            "missing: blocks.1.attn.qkv.weight; unexpected: blocks.1.attention.weight",
        ),
        (
            reshape("model", "blocks.0.mlp.fc2.weight"),
            r"wrong shape: blocks.0.mlp.fc2.weight \[64, 255\] instead of \[64, 256\]",
        ),
        (
            lambda content: content["model"].update({"blocks.3.attn.proj.bias": torch.zeros(64)}),
            r"unexpected: blocks.3.attn.proj.bias\.",
        ),
        (lambda content: content["model"].pop("pos_embed"), "missing: pos_embed"),
        (lambda content: content["model"]["pos_embed"].mul_(0.5), "trained with other positions"),
        (lambda content: content["model"]["pos_embed"].fill_(float("nan")), "trained with other positions"),
        (lambda content: content.pop("model"), "no entry 'model'; it holds epoch, best_loss"),
    ],
)
def test_foreign_transformer_weights(tamper: Callable, change: Change, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words) as caught:
        load_transformer(tamper(DIT_FILES[0], change), DIT_FILES[1], ema=False)
    assert "changed_dit_best_model.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename("model", "quantizer.quantizer.ema_w", "quantizer.ema_w"),
            "missing: quantizer.quantizer.ema_w; unexpected: quantizer.ema_w",
        ),
        (reshape("model", "decoder.blocks.0.conv.weight"), r"decoder.blocks.0.conv.weight .* instead of"),
    ],
)
def test_foreign_vq_weights(tamper: Callable, change: Change, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        load_vq_model(tamper(VQ_FILES[0], change), VQ_FILES[1])


def test_foreign_discriminator_weights(tamper: Callable) -> None:
    changed = tamper(VQ_FILES[0], rename("discriminator", "0.conv.weight", "layer.weight"))
    with pytest.raises(CardioDiTError, match=r"missing: 0.conv.weight; unexpected: layer.weight"):
        load_discriminator(changed, VQ_FILES[1])
    config = tamper(VQ_FILES[1], lambda content: content.pop("discriminator"))
    with pytest.raises(CardioDiTError, match="has no section 'discriminator'"):
        load_discriminator(VQ_FILES[0], config)


def test_a_checkpoint_of_ddp_and_compile(tamper: Callable) -> None:
    def wrap(content: dict[str, Any]) -> None:
        for table, entry in [(content, "model"), (content["ema"], "shadow")]:
            table[entry] = {f"module._orig_mod.{name}": value for name, value in table[entry].items()}

    ours = load_transformer(tamper(DIT_FILES[0], wrap), DIT_FILES[1]).state_dict()
    assert all(torch.equal(ours[n], v) for n, v in load_transformer(*DIT_FILES).state_dict().items())


def convert_and_die(folder: Path) -> None:
    written = cardiodit_conversion.write_record

    def write_and_die(*arguments: Any) -> None:
        written(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    cardiodit_conversion.write_record = write_and_die
    convert_cardiodit(*VQ_FILES, *DIT_FILES, folder, scale_factor=1.0)


def test_a_killed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    """Killed at the latest moment: all is written, nothing renamed."""
    process = begin(convert_and_die, tmp_path / "model")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert any((leftover / "conversion.json").exists() for leftover in tmp_path.iterdir())
    assert (convert(tmp_path / "model") / "model_index.json").exists()
