from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cardiodit.convert.dit_config import read_dit_config
from cardiodit.convert.upstream_config import read_vqgan_config
from cardiodit.errors import CardioDiTError

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
HEIGHT_AND_WIDTH_ONLY = [[2, 2, 1], [4, 4, 1], 1, [1, 1, 0]]

EXPANDED_VQGAN = """
model:
  params:
    spatial_dims: 3
    in_channels: 1
    out_channels: 1
    num_channels: [128, 256, 256]
    num_res_channels: [128, 256, 256]
    num_res_layers: 2
    downsample_parameters: [[2, 4, 1, 1], [2, 4, 1, 1], [[2, 2, 1], [4, 4, 1], 1, [1, 1, 0]]]
    upsample_parameters: [[[2, 2, 1], [4, 4, 1], 1, [1, 1, 0], [0, 0, 0]], [2, 4, 1, 1, 0], [2, 4, 1, 1, 0]]
    num_embeddings: 4096
    embedding_dim: 8
    embedding_init: normal
    commitment_cost: 0.25
    decay: 0.95
    epsilon: 1e-5
    dropout: 0.0
    act: "RELU"
    output_act: null
    ddp_sync: true
    use_checkpointing: false
discriminator:
  params: {spatial_dims: 3, num_channels: 64, num_layers_d: 3, in_channels: 1, out_channels: 1,
           norm: INSTANCE, bias: false, padding: 1, activation: [LEAKYRELU, {negative_slope: 0.2}],
           last_conv_kernel_size: 1}
training:
  n_epochs: 500
  eval_freq: 10
  batch_size: 4
  num_workers: 8
  base_lr: 5.0e-5
  disc_lr: 2e-5
  lr_gamma: 0.9999
  roi_size: [224, 224, 32]
  target_frames: 32
  use_persistent: true
  spatial_permute: null
losses:
  perceptual_weight: 0.2
  jukebox_weight: 0.1
  adv_weight: 0.05
  adv_warmup: 50
  params:
    perceptual_params: {spatial_dims: 3, network_type: squeeze}
    jukebox_params: {spatial_dims: 3}
wandb: {entity: null, project: anything, offline: true}
"""

EXPANDED_DIT = """
model:
  params:
    input_size: [10, 28, 28, 8]
    patch_size: [1, 4, 4, 2]
    in_channels: 8
    hidden_size: 1024
    depth: 12
    num_heads: 16
    mlp_ratio: 4
    class_dropout_prob: 0.0
    num_classes: 0
    learn_sigma: false
    flash_attention: true
    attn_drop: 0.1
    mlp_drop: 0.1
    spacing: null
    self_conditioning: false
    temporal_pe: absolute
scheduler: {schedule: cosine, num_train_timesteps: 1000, prediction_type: epsilon, zero_terminal_snr: false}
training:
  n_epochs: 3000
  eval_freq: 10
  batch_size: 2
  num_workers: 8
  amp_dtype: bf16
  scale_factor: 4.364003
  preload_latents: true
  use_ema: true
  ema_decay: 0.9999
  ema_warmup_steps: 0
  min_snr_gamma: 5.0
  self_conditioning: false
  offset_noise_strength: 0.0
  grad_accum_steps: 4
  normalize_latents: false
  latent_stats_path: null
  phase_dir: null
  alpha_pool: linear
  use_bucket_sampler: false
  max_grad_norm: 1.0
optim: {lr: 1e-4, weight_decay: 1.0e-4, warmup_epochs: 100, min_lr_ratio: 0.01, betas: [0.9, 0.95]}
wandb: {entity: null}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_yaml(content: Any, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write_yaml


def golden(name: str) -> dict[str, Any]:
    return yaml.safe_load((GOLDEN / name).read_text())


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = deepcopy(config)
    section = config
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    return config


def test_compact_vqgan() -> None:
    config = read_vqgan_config(GOLDEN / "cardiodit/vqgan.yaml")
    assert config.params.num_channels == (8, 16)
    assert config.params.downsampling == ((2, 4, 1, 1), (2, 4, 1, 1))
    assert config.params.decay == 0.99
    assert config.discriminator is not None and config.discriminator.kernel_size == 3
    assert (config.training.base_lr, config.training.disc_lr) == (5e-5, 2e-5)
    assert (config.training.perceptual_weight, config.training.adv_weight) == (0.002, 0.005)
    assert config.perceptual.network_type == "squeeze"


def test_expanded_vqgan(write: Any) -> None:
    config = read_vqgan_config(write(EXPANDED_VQGAN))
    assert config.params.downsampling[2] == ((2, 2, 1), (4, 4, 1), 1, (1, 1, 0))
    assert config.params.upsampling[0] == ((2, 2, 1), (4, 4, 1), 1, (1, 1, 0), (0, 0, 0))
    assert config.params.epsilon == 1e-5  # PyYAML reads it as text
    assert config.discriminator is not None and config.discriminator.norm == "INSTANCE"
    assert config.training.disc_lr == 2e-5
    assert config.training.roi_size == (224, 224, 32)
    assert (config.training.jukebox_weight, config.training.adv_warmup) == (0.1, 50)


def test_compact_dit() -> None:
    config = read_dit_config(GOLDEN / "cardiodit_labels/dit.yaml")
    assert config.params.patch == (1, 4, 4, 2)
    assert (config.params.num_classes, config.params.class_dropout_prob) == (4, 0.1)
    assert config.params.learn_sigma
    assert config.scheduler.num_train_timesteps == 300
    assert config.training.scale_factor is None


def test_expanded_dit(write: Any) -> None:
    config = read_dit_config(write(EXPANDED_DIT))
    assert config.params.mlp_ratio == 4.0
    assert config.params.of_model["dropout"] == 0.1 and "attention_dropout" not in config.params.of_model
    assert config.params.of_model["projection_dropout"] == 0.0
    assert config.scheduler.prediction_type == "epsilon"
    assert config.training.scale_factor == 4.364003
    assert (config.training.base_lr, config.training.betas) == (1e-4, (0.9, 0.95))


def test_both_schemas_of_one_model_are_equal(write: Any) -> None:
    compact = golden("cardiodit/vqgan.yaml")
    run = {key: value for key, value in compact["stage1"].items() if key in ("base_lr", "disc_lr")}
    expanded = {
        "model": {"params": compact["stage1"]["params"]},
        "discriminator": compact["discriminator"],
        "training": run,
        "losses": {
            "perceptual_weight": 0.002,
            "adv_weight": 0.005,
            "params": {"perceptual_params": compact["perceptual_network"]["params"]},
        },
    }
    assert read_vqgan_config(write(expanded, "vqgan.yaml")) == read_vqgan_config(GOLDEN / "cardiodit/vqgan.yaml")

    compact = changed(golden("cardiodit/dit.yaml"), "dit.base_lr", 1e-4)
    expanded = {
        "model": {"params": compact["dit"]["params"]},
        "scheduler": compact["dit"]["scheduler"],
        "optim": {"lr": 1e-4},
    }
    expected = read_dit_config(write(compact, "dit.yaml"))
    assert read_dit_config(write(expanded, "dit.yaml")) == expected


def test_training_keys_of_the_compact_schema(write: Any) -> None:
    config = golden("cardiodit/dit.yaml")
    config["dit"] |= {"n_epochs": 10, "scale_factor": 1.25, "weight_decay": "1e-4", "min_lr_ratio": 0}
    training = read_dit_config(write(config)).training
    assert (training.n_epochs, training.scale_factor) == (10, 1.25)
    assert (training.weight_decay, training.min_lr_ratio) == (1e-4, 0.0)


@pytest.mark.parametrize("entry", [[2, 4, 1, 1], HEIGHT_AND_WIDTH_ONLY])
def test_one_flat_entry_serves_all_levels(write: Any, entry: list) -> None:
    config = changed(golden("cardiodit/vqgan.yaml"), "stage1.params.downsample_parameters", entry)
    config = changed(config, "stage1.params.num_res_channels", 16)
    params = read_vqgan_config(write(config)).params
    assert [list(level) for level in params.downsampling] == [
        [tuple(item) if isinstance(item, list) else item for item in entry]
    ] * 2
    assert params.res_channels == (16, 16)


def test_one_patch_size_for_all_axes(write: Any) -> None:
    config = changed(golden("cardiodit/dit.yaml"), "dit.params.patch_size", 2)
    assert read_dit_config(write(config)).params.patch == (2, 2, 2, 2)


def test_a_3d_transformer(write: Any) -> None:
    config = changed(golden("cardiodit/dit.yaml"), "dit.params.input_size", [8, 8, 4])
    config = changed(config, "dit.params.patch_size", 4)
    assert read_dit_config(write(config)).params.patch == (4, 4, 4)


VQGAN_MISTAKES = [
    ("stage1.params.num_chanels", [8], ["stage1.params.num_chanels", "did you mean 'num_channels'"]),
    ("stage1.params.embedding_dim", "eight", ["stage1.params.embedding_dim", "positive integer", "'eight'"]),
    ("stage1.params.embedding_dim", 0, ["embedding_dim", "positive integer", "found 0"]),
    ("stage1.params.embedding_dim", True, ["embedding_dim", "positive integer", "found True"]),
    ("stage1.params.decay", "fast", ["stage1.params.decay", "a number", "'fast'"]),
    ("stage1.params.num_channels", [8, "x"], ["num_channels", "a list of positive integers", "[8, 'x']"]),
    ("stage1.params.num_channels", [8, 16, 32], ["num_res_channels has 2 entries", "expected 3"]),
    ("stage1.params.downsample_parameters", [[2, 4, 1], [2, 4, 1]], ["downsample_parameters", "4 items"]),
    ("stage1.params.upsample_parameters", [2, 4, 1, 1], ["upsample_parameters", "5 items"]),
    ("stage1.params.spatial_dims", 2, ["stage1.params.spatial_dims", "three-dimensional"]),
    ("stage1.params.act", "PRELU", ["stage1.params.act", "'PRELU'", "ReLU"]),
    ("stage1.params.output_act", "TANH", ["stage1.params.output_act", "'TANH'", "without an activation"]),
    ("stage1.params", [1], ["stage1.params", "section"]),
    ("stage1.disc_lrate", 1e-5, ["stage1.disc_lrate", "did you mean 'disc_lr'"]),
    ("discriminator.params.kernel_size", [3], ["discriminator.params.kernel_size", "found [3]"]),
    ("perceptual_net", {}, ["perceptual_net", "did you mean 'perceptual_network'"]),
]


@pytest.mark.parametrize(("key", "value", "words"), VQGAN_MISTAKES)
def test_mistakes_in_a_vqgan_config(write: Any, key: str, value: Any, words: list[str]) -> None:
    path = write(changed(golden("cardiodit/vqgan.yaml"), key, value))
    with pytest.raises(CardioDiTError) as caught:
        read_vqgan_config(path)
    for word in ["config.yaml", *words]:
        assert word in str(caught.value)


DIT_MISTAKES = [
    ("dit.params.hiden_size", 64, ["dit.params.hiden_size", "did you mean 'hidden_size'"]),
    ("dit.params.learn_sigma", "no way", ["dit.params.learn_sigma", "true or false", "'no way'"]),
    ("dit.params.depth", 3.0, ["dit.params.depth", "positive integer", "3.0"]),
    ("dit.params.patch_size", [1, 4, 4], ["patch_size has 3 numbers", "input_size has 4"]),
    ("dit.params.patch_size", [1, 3, 4, 2], ["[1, 3, 4, 2]", "does not divide", "[2, 8, 8, 4]"]),
    ("dit.params.num_heads", 5, ["hidden_size 64", "num_heads 5"]),
    ("dit.self_conditioning", True, ["self_conditioning is True in training and False in the model"]),
    ("dit.params.temporal_pe", "rope3d", ["dit.params.temporal_pe", "'rope3d'", "'absolute'"]),
    ("dit.scheduler.schedule", "linear", ["dit.scheduler.schedule", "'linear'", "'cosine'"]),
    ("dit.scheduler.prediction_type", "flow", ["dit.scheduler.prediction_type", "'flow'", "'epsilon'"]),
    ("dit.scale_factor", [1.0], ["dit.scale_factor", "a number or null", "[1.0]"]),
]


@pytest.mark.parametrize(("key", "value", "words"), DIT_MISTAKES)
def test_mistakes_in_a_dit_config(write: Any, key: str, value: Any, words: list[str]) -> None:
    config = changed(golden("cardiodit/dit.yaml"), key, value)
    with pytest.raises(CardioDiTError) as caught:
        read_dit_config(write(config))
    for word in ["config.yaml", *words]:
        assert word in str(caught.value)


def test_a_missing_key(write: Any) -> None:
    config = golden("cardiodit/dit.yaml")
    del config["dit"]["params"]["depth"]
    with pytest.raises(CardioDiTError, match=r"config.yaml: dit.params.depth is missing"):
        read_dit_config(write(config))


def test_mistakes_in_the_expanded_schema_name_its_sections(write: Any) -> None:
    config = yaml.safe_load(EXPANDED_DIT)
    with pytest.raises(CardioDiTError, match=r"model.params.qk_nrm is not a known key"):
        read_dit_config(write(changed(config, "model.params.qk_nrm", True)))
    with pytest.raises(CardioDiTError, match=r"training.normalize_latents must be true or false"):
        read_dit_config(write(changed(config, "training.normalize_latents", "yes")))
    with pytest.raises(CardioDiTError, match=r"scheduler_typ is not a known key; did you mean 'scheduler_type'"):
        read_dit_config(write(changed(config, "scheduler_typ", "flow_matching")))
    assert read_dit_config(write(changed(config, "scheduler_type", "flow_matching"))).prediction_type == "flow"


@pytest.mark.parametrize("content", [EXPANDED_DIT, (GOLDEN / "cardiodit/dit.yaml").read_text()])
def test_a_transformer_config_in_place_of_a_vqgan_config(write: Any, content: str) -> None:
    with pytest.raises(CardioDiTError, match=r"stage 2 \(transformer\) config, but a stage 1 .* swapped"):
        read_vqgan_config(write(content))


@pytest.mark.parametrize("content", [EXPANDED_VQGAN, (GOLDEN / "cardiodit/vqgan.yaml").read_text()])
def test_a_vqgan_config_in_place_of_a_transformer_config(write: Any, content: str) -> None:
    with pytest.raises(CardioDiTError, match=r"stage 1 \(VQ-GAN\) config, but a stage 2 .* swapped"):
        read_dit_config(write(content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no sections"),
        ("- 1\n- 2\n", "holds no sections"),
        ("dit: [1, 2\n", "is not valid YAML"),
        ("tgca: {}\n", "has the sections tgca"),
        ("dit: 3\n", "dit must be a section"),
        ("when: 2020-99-99\n", "is not valid YAML"),
    ],
)
def test_files_that_are_no_config(write: Any, content: str, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        read_dit_config(write(content))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"nowhere.yaml does not exist"):
        read_dit_config(tmp_path / "nowhere.yaml")
    with pytest.raises(CardioDiTError, match="is a folder, not a file"):
        read_dit_config(tmp_path)
    with pytest.raises(CardioDiTError, match="not UTF-8 text. A YAML config was expected"):
        read_dit_config(GOLDEN / "codebook.safetensors")
    with pytest.raises(CardioDiTError, match="has 2321169 bytes; at most 1048576 were expected"):
        read_dit_config(GOLDEN / "cardiodit/dit_best_model.pth")
