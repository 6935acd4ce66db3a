"""Configs and options as a user writes them, and what is said when they are wrong."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cardiodit import DiT4DTransformerModel, VQModel4D
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.settings import DiTSettings, VQGANSettings, build_preprocessing
from cardiodit.training.train_dit import add_options
from cardiodit.training.upstream_config import translate_dit, translate_vqgan

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
PLACES = ["--training_ids", "a.csv", "--validation_ids", "b.csv", "--output_dir", "o", "--run_name", "r"]


def read_dit(*arguments: str) -> Request[DiTSettings]:
    return read_command_line([*PLACES, "--vae", "v", *arguments], DiTSettings, "d", "e", translate_dit, add_options)


def read_vqgan(*arguments: str) -> Request[VQGANSettings]:
    return read_command_line([*PLACES, *arguments], VQGANSettings, "d", "e", translate_vqgan)


def config(folder: Path, text: str) -> str:
    (folder / "my.yaml").write_text(text)
    return str(folder / "my.yaml")


def test_options_lie_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = config(tmp_path, "training: {learning_rate: 1e-3, train_batch_size: 8}\nmodel: {num_layers: 3}\n")
    settings = read_dit("--config", file, "--learning_rate", "2e-4", "--model.patch_size", "[1, 2, 2, 2]").settings
    assert settings.training.learning_rate == 2e-4
    assert settings.training.train_batch_size == 8
    assert (settings.model.num_layers, settings.model.patch_size) == (3, (1, 2, 2, 2))
    assert settings.training.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "training: {learning_rat: 1}",
            r"my.yaml: training.learning_rat is not a known key; did you mean 'learning_rate'",
        ),
        ("modle: {}", r"my.yaml: modle is not a known key; did you mean 'model'"),
        ("training: {train_batch_size: 0}", r"training.train_batch_size must be a positive integer, found 0"),
        ("training: {learning_rate: quick}", r"training.learning_rate must be a number, found 'quick'"),
        ("training: {use_ema: 1}", r"training.use_ema must be true or false, found 1"),
        ("diffusion: {loss: huber}", r"diffusion.loss must be 'smooth_l1' or 'mse' or 'l1', found 'huber'"),
        ("model: 3", r"model must be a section with keys, found 3"),
        ("model: [", r"my.yaml is not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        read_dit("--config", config(tmp_path, text))


def test_yaml_takes_no_for_false_and_we_take_it_back(tmp_path: Path) -> None:
    assert read_dit("--mixed_precision", "no").settings.training.mixed_precision == "no"
    file = config(tmp_path, "training: {mixed_precision: no}")
    assert read_dit("--config", file).settings.training.mixed_precision == "no"


def test_wrong_options_are_named_too() -> None:
    with pytest.raises(CardioDiTError, match="no option --learning_rat; did you mean --learning_rate"):
        read_dit("--learning_rat", "1")
    with pytest.raises(CardioDiTError, match=r"the command line: training.seed must be an integer, found 'x'"):
        read_dit("--seed", "x")
    with pytest.raises(
        CardioDiTError, match=r"There is no config nowhere.yaml. The package contains .*dit_ds8_b4.yaml"
    ):
        read_dit("--config", "nowhere.yaml")


def test_every_key_is_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """As `python -m` runs the script."""
    monkeypatch.setattr(sys, "argv", ["train_vqgan.py", "--help"])
    monkeypatch.delitem(sys.modules, "cardiodit.training.train_vqgan", raising=False)  # it is run, not imported
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cardiodit.training.train_vqgan", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    for part in (
        "--learning_rate V highest learning rate of the autoencoder (5.0e-05)",
        "--losses.perceptual_weights",
        "--data.crop",
        "example:",
    ):
        assert part in text
    lines = [line.strip() for line in shown.splitlines() if line.strip().startswith("--")]
    assert not [line for line in lines if line.endswith(" V") and len(line) < 20], "a key without a word of help"


# Sizes as the authors state them: weights that are trained, in millions.
@pytest.mark.parametrize(("size", "layers", "millions"), [("s", 8, 87.39), ("b", 12, 129.90), ("l", 16, 172.42)])
def test_the_published_transformers(size: str, layers: int, millions: float) -> None:
    """From the package wherever one stands: the checkout's folder is not needed."""
    settings = read_dit("--config", f"cardiodit/dit_ds8_{size}4.yaml").settings
    assert settings.model.num_layers == layers
    said = settings.model
    with torch.device("meta"):
        model = DiT4DTransformerModel(
            patch_size=said.patch_size,
            num_layers=said.num_layers,
            num_attention_heads=said.num_attention_heads,
            attention_head_dim=said.attention_head_dim,
            mlp_ratio=said.mlp_ratio,
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    training = settings.training
    published = (training.learning_rate, training.weight_decay, training.num_train_epochs, training.ema_decay)
    assert published == (1e-4, 1e-4, 3000, 0.9999)
    assert (training.lr_scheduler, training.lr_warmup_epochs, training.lr_min_ratio) == ("cosine", 100, 0.01)


def test_the_published_autoencoder() -> None:
    settings = read_vqgan("--config", str(ROOT / "configs" / "cardiodit" / "vqgan.yaml")).settings
    said = settings.model
    model = VQModel4D(said.in_channels, said.out_channels, said.channels, said.num_res_channels, said.num_res_layers)
    assert sum(p.numel() for p in model.parameters()) == 25_690_377
    assert build_preprocessing(settings.data.preprocessing) == PRESETS["cardiodit"]
    training = settings.training
    assert (training.learning_rate, training.discriminator_learning_rate) == (5e-5, 2e-5)
    assert (training.adam_beta1, training.adam_beta2, training.lr_gamma) == (0.5, 0.9, 0.9999)


def test_the_authors_files_are_configs(tmp_path: Path) -> None:
    settings = read_vqgan("--config", str(GOLDEN / "cardiodit" / "vqgan.yaml"), "--learning_rate", "1e-3").settings
    assert settings.model.channels == (8, 16)
    assert settings.model.num_embeddings == 64
    assert settings.losses.adversarial_weight == 0.005
    assert settings.discriminator.num_layers_d == 2
    assert settings.training.learning_rate == 1e-3
    assert settings.training.discriminator_learning_rate == 2e-5
    dit = read_dit("--config", str(GOLDEN / "cardiodit" / "dit.yaml")).settings
    assert (dit.model.num_layers, dit.model.num_attention_heads, dit.model.attention_head_dim) == (3, 4, 16)
    assert (dit.diffusion.num_train_timesteps, dit.label_column) == (300, None)


def test_the_authors_training_keys_have_their_meaning(tmp_path: Path) -> None:
    raw = yaml.safe_load((GOLDEN / "cardiodit" / "dit.yaml").read_text())
    raw["dit"] |= {"n_epochs": 7, "grad_accum_steps": 4, "base_lr": 3e-4, "warmup_epochs": 2, "min_lr_ratio": 0.1}
    raw["dit"] |= {"amp_dtype": "bf16", "eval_freq": 5, "ema_decay": 0.99}
    training = read_dit("--config", config(tmp_path, yaml.safe_dump(raw))).settings.training
    assert (training.num_train_epochs, training.gradient_accumulation_steps, training.learning_rate) == (7, 4, 3e-4)
    assert (training.lr_scheduler, training.lr_warmup_epochs, training.lr_min_ratio) == ("cosine", 2, 0.1)
    assert (training.mixed_precision, training.validation_epochs, training.ema_decay) == ("bf16", 5, 0.99)
    raw["dit"] |= {"phase_dir": "phases", "alpha_pool": "mean", "latent_time_pad_multiple": 4}
    raw["dit"] |= {"latent_stats_path": "stats.pt"}
    settings = read_dit("--config", config(tmp_path, yaml.safe_dump(raw))).settings
    assert (settings.phase_dir, settings.phase_pool, settings.frame_multiple) == ("phases", "mean", 4)
    assert settings.latent_statistics == "stats.pt"


def test_the_authors_newest_schema(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flow = read_dit("--config", str(GOLDEN / "cardiodit_flow" / "dit.yaml")).settings
    assert (flow.diffusion.objective, flow.diffusion.logit_mean, flow.diffusion.loss) == (
        "flow_matching",
        0.5,
        "smooth_l1",
    )
    assert flow.model.position_steps == pytest.approx((10 / 8, 54.4 / 8, 54.4 / 8, 1.0))
    assert flow.model.self_conditioning and flow.model.position_mode == "absolute"
    training = flow.training
    assert (training.max_train_steps, training.checkpointing_steps, training.lr_warmup_steps) == (300_000, 10_000, 5000)
    assert (training.lr_scheduler, training.mixed_precision) == ("cosine", "bf16")
    voldit = read_dit("--config", str(GOLDEN / "voldit_flow" / "dit.yaml")).settings
    assert voldit.model.position_steps == (1.0, 1.0, 1.786) and voldit.dimensions == 3
    assert (
        voldit.augmentation.flip_probability == voldit.augmentation.depth_flip_probability == 0.5
        and voldit.training.lr_warmup_epochs == 100
    )
    assert "cardiodit scale-factor --per_channel" in capsys.readouterr().err
    raw = yaml.safe_load((GOLDEN / "cardiodit_rope4d" / "dit.yaml").read_text())
    raw["training"] |= {"batch_strategy": "grad_accum_microbatch", "validation_primary_metric": "self_conditioned"}
    rope = read_dit("--config", config(tmp_path, yaml.safe_dump(raw))).settings
    assert (rope.model.position_mode, rope.model.qk_norm, rope.model.max_sample_size) == (
        "axial_rope",
        True,
        (4, 12, 8, 9),
    )
    assert (rope.diffusion.zero_terminal_snr, rope.diffusion.offset_noise_strength) == (True, 0.1)
    assert (rope.training.train_batch_size, rope.training.gradient_accumulation_steps) == (1, 8)
    assert rope.training.validation_metric == "self_conditioned"


def test_swapped_stages_are_told_apart() -> None:
    with pytest.raises(CardioDiTError, match="Were the two configs swapped"):
        read_dit("--config", str(GOLDEN / "cardiodit" / "vqgan.yaml"))


def test_a_switch_needs_no_value() -> None:
    settings = read_dit("--gradient_checkpointing", "--use_ema", "false").settings.training
    assert (settings.gradient_checkpointing, settings.use_ema) == (True, False)
