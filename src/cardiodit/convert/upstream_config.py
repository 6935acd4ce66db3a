"""Typed reading of the YAML configs of CardioDiT's and VolDiT's authors, in their compact and expanded schemas.

The dataclasses mirror the files: each section is a class and each key a typed field; a field without a default is
required.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit._util.typed_yaml import Count, Reader, read_yaml, restricted
from cardiodit.errors import CardioDiTError

PerAxis = int | tuple[int, ...]  # one number for all axes, or one for each
Level = tuple[PerAxis, ...]  # stride, kernel, dilation, padding (and output padding)
# By the section of the compact schema; MedLoRD's stage 2 has only the expanded one.
STAGES = {"stage1": "stage 1 (VQ-GAN)", "dit": "stage 2 (transformer)", "unet": "MedLoRD stage 2 (U-Net)"}


# --- Stage 1: the VQ-GAN ---


@dataclass(frozen=True, kw_only=True)
class VQParams:
    """Parameters of the autoencoder, named as in MONAI."""

    spatial_dims: int = restricted(3, because="the autoencoders of both systems are three-dimensional")
    in_channels: Count
    out_channels: Count
    num_channels: tuple[Count, ...]
    num_res_channels: Count | tuple[Count, ...]
    num_res_layers: int
    downsample_parameters: Level | tuple[Level, ...]
    upsample_parameters: Level | tuple[Level, ...]
    num_embeddings: Count
    embedding_dim: Count
    embedding_init: str = "normal"
    commitment_cost: float = 0.25
    decay: float = 0.99
    epsilon: float = 1e-5
    dropout: float = 0.0
    act: str = restricted("RELU", "relu", because="the autoencoder has ReLU activations")
    output_act: str | None = restricted(None, because="the decoder ends without an activation")
    ddp_sync: bool | None = None
    use_checkpointing: bool = False

    @property
    def res_channels(self) -> tuple[int, ...]:
        """Width of the residual units of each level."""
        return repeat(self.num_res_channels, len(self.num_channels))

    @property
    def downsampling(self) -> tuple[Level, ...]:
        """(stride, kernel, dilation, padding) of each level."""
        return _levels(self.downsample_parameters, len(self.num_channels))

    @property
    def upsampling(self) -> tuple[Level, ...]:
        """(stride, kernel, dilation, padding, output padding) of each level."""
        return _levels(self.upsample_parameters, len(self.num_channels))


@dataclass(frozen=True, kw_only=True)
class DiscriminatorParams:
    """Parameters of the patch discriminator, named as in MONAI."""

    spatial_dims: int = 3
    num_channels: Count
    num_layers_d: Count = 3
    in_channels: Count
    out_channels: Count = 1
    kernel_size: Count = 4
    norm: str | tuple[Any, ...] = "BATCH"
    bias: bool = False
    padding: PerAxis = 1
    activation: str | tuple[Any, ...] = ("LEAKYRELU", {"negative_slope": 0.2})
    dropout: float = 0.0
    last_conv_kernel_size: Count | None = None


@dataclass(frozen=True, kw_only=True)
class PerceptualParams:
    spatial_dims: int = 3
    network_type: str = "squeeze"
    is_fake_3d: bool = True
    fake_3d_ratio: float = 0.5


@dataclass(frozen=True, kw_only=True)
class JukeboxParams:
    spatial_dims: int = 3


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    perceptual_weight: float | None = None
    jukebox_weight: float | None = None
    adv_weight: float | None = None
    adv_warmup: int | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Training keys of both stages; None if the file does not set them."""

    n_epochs: Count | None = None
    eval_freq: Count | None = None
    batch_size: Count | None = None
    num_workers: int | None = None
    base_lr: float | None = None
    lr_gamma: float | None = None
    weight_decay: float | None = None
    warmup_epochs: int | None = None
    min_lr_ratio: float | None = None
    grad_accum_steps: Count | None = None
    grad_clip: float | None = None
    max_grad_norm: float | None = None
    amp_dtype: str | None = None
    use_ema: bool | None = None
    ema_decay: float | None = None
    ema_warmup_steps: int | None = None
    roi_size: tuple[Count, ...] | None = None
    target_frames: Count | None = None
    target_z: Count | None = None
    spatial_permute: tuple[int, ...] | None = None
    use_persistent: bool | None = None
    scale_factor: float | None = None
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class VQGANRun(Run):
    disc_lr: float | None = None


@dataclass(frozen=True, kw_only=True)
class VQGANTraining(VQGANRun, LossWeights):
    """All training keys of a stage 1 file, in either schema."""


@dataclass(frozen=True)
class VQGANConfig:
    """Config of stage 1."""

    file: str
    params: VQParams
    discriminator: DiscriminatorParams | None
    training: VQGANTraining
    perceptual: PerceptualParams
    jukebox: JukeboxParams
    is_medlord: bool = False


# --- Stage 2: the diffusion transformer ---


@dataclass(frozen=True, kw_only=True)
class DiTParams:
    """Parameters of the transformer."""

    input_size: tuple[Count, ...]
    patch_size: Count | tuple[Count, ...]
    in_channels: Count
    hidden_size: Count
    depth: Count
    num_heads: Count
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.0
    num_classes: int = 0
    learn_sigma: bool = False
    flash_attention: bool = False
    attn_drop: float | None = None
    mlp_drop: float | None = None
    spacing: tuple[float, ...] | None = None  # scales the positions, which are compared when a checkpoint is loaded
    self_conditioning: bool = restricted(False, because="self-conditioning is not supported")
    temporal_pe: str = restricted("absolute", because="only absolute sine-cosine positions are supported")

    @property
    def patch(self) -> tuple[int, ...]:
        """Patch size along each axis."""
        return repeat(self.patch_size, len(self.input_size))

    @property
    def dropout(self) -> float | None:
        """Dropout of attention and MLP; None if the file does not set it."""
        return self.attn_drop if self.mlp_drop is None else self.mlp_drop


@dataclass(frozen=True, kw_only=True)
class SchedulerParams:
    schedule: str = restricted("cosine", because="only the published squared-cosine schedule is supported")
    num_train_timesteps: Count = 300
    prediction_type: str = restricted("v_prediction", "epsilon", "sample", because="no other prediction is supported")
    zero_terminal_snr: bool = restricted(False, because="the published schedule does not end at zero signal")


@dataclass(frozen=True, kw_only=True)
class DiTTraining(Run):
    """All training keys of a stage 2 file, in either schema."""

    betas: tuple[float, ...] | None = None
    min_snr_gamma: float | None = None
    offset_noise_strength: float | None = None
    preload_latents: bool | None = None
    use_bucket_sampler: bool | None = None
    latent_stats_path: str | None = None
    phase_dir: str | None = None
    alpha_pool: str | None = None
    self_conditioning: bool = restricted(False, because="self-conditioning is not supported")
    normalize_latents: bool = restricted(False, because="latents are scaled by one factor, not channel by channel")


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: int | None = None
    min_lr_ratio: float | None = None
    betas: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DiTConfig:
    """Config of stage 2."""

    file: str
    params: DiTParams
    scheduler: SchedulerParams
    training: DiTTraining


# --- VolDiT's adapter ---


@dataclass(frozen=True, kw_only=True)
class TGCAParams:
    """Parameters of the adapter, by default as published."""

    condition_channels: Count = 1
    inject_layers: int | tuple[int, ...] | None = None
    finetune_last_n_blocks: int = 0


@dataclass(frozen=True)
class TGCAConfig:
    """Config of the adapter."""

    file: str
    keys: tuple[str, ...]
    params: TGCAParams


# --- Layouts of the files ---


@dataclass(frozen=True, kw_only=True)
class _Discriminator:
    params: DiscriminatorParams


@dataclass(frozen=True, kw_only=True)
class _Perceptual:
    params: PerceptualParams = PerceptualParams()


@dataclass(frozen=True, kw_only=True)
class _Stage1(VQGANTraining):
    params: VQParams


@dataclass(frozen=True, kw_only=True)
class _CompactVQGAN:
    stage1: _Stage1
    discriminator: _Discriminator | None = None
    perceptual_network: _Perceptual = _Perceptual()
    wandb: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _VQModel:
    params: VQParams


@dataclass(frozen=True, kw_only=True)
class _VQOptim:
    lr_g: float | None = None
    lr_d: float | None = None


@dataclass(frozen=True, kw_only=True)
class _LossParams:
    perceptual_params: PerceptualParams = PerceptualParams()
    jukebox_params: JukeboxParams = JukeboxParams()


@dataclass(frozen=True, kw_only=True)
class _Losses(LossWeights):
    params: _LossParams = _LossParams()
    perceptual_params: PerceptualParams | None = None  # MedLoRD has no section `params`
    jukebox_params: JukeboxParams | None = None


@dataclass(frozen=True, kw_only=True)
class _ExpandedVQGAN:
    model: _VQModel
    discriminator: _Discriminator | None = None
    training: VQGANRun = VQGANRun()
    optim: _VQOptim = _VQOptim()  # MedLoRD's learning rates
    losses: _Losses = _Losses()
    wandb: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _DiT(DiTTraining):
    params: DiTParams
    scheduler: SchedulerParams = SchedulerParams()


@dataclass(frozen=True, kw_only=True)
class _CompactDiT:
    dit: _DiT
    wandb: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _DiTModel:
    params: DiTParams


@dataclass(frozen=True, kw_only=True)
class _ExpandedDiT:
    model: _DiTModel
    scheduler: SchedulerParams = SchedulerParams()
    training: DiTTraining = DiTTraining()
    optim: Optim = Optim()
    wandb: dict[str, Any] | None = None


# --- Reading ---


def read_vqgan_config(path: str | PathLike) -> VQGANConfig:
    """Read a stage 1 file in either schema."""
    raw, file = read_yaml(path), Path(path).name
    section = model_section(raw, file, expected="stage1")
    if section == "stage1":
        compact = Reader(file).section(_CompactVQGAN, raw, "")
        config = VQGANConfig(
            file=file,
            params=compact.stage1.params,
            discriminator=compact.discriminator.params if compact.discriminator else None,
            training=VQGANTraining(**values_of(compact.stage1, VQGANTraining)),
            perceptual=compact.perceptual_network.params,
            jukebox=JukeboxParams(),
        )
    else:
        expanded = Reader(file).section(_ExpandedVQGAN, raw, "")
        losses, run = expanded.losses, values_of(expanded.training, VQGANRun)
        rates = {"base_lr": expanded.optim.lr_g, "disc_lr": expanded.optim.lr_d}
        run |= {name: rate for name, rate in rates.items() if rate is not None}
        config = VQGANConfig(
            file=file,
            params=expanded.model.params,
            discriminator=expanded.discriminator.params if expanded.discriminator else None,
            training=VQGANTraining(**run, **values_of(losses, LossWeights)),
            perceptual=losses.perceptual_params or losses.params.perceptual_params,
            jukebox=losses.jukebox_params or losses.params.jukebox_params,
            is_medlord="optim" in raw,
        )
    _check_levels(config.params, f"{file}: {section}.params")
    return config


def read_dit_config(path: str | PathLike) -> DiTConfig:
    """Read a stage 2 file in either schema."""
    raw, file = read_yaml(path), Path(path).name
    section = model_section(raw, file, expected="dit")
    if section == "dit":
        dit = Reader(file).section(_CompactDiT, raw, "").dit
        config = DiTConfig(file, dit.params, dit.scheduler, DiTTraining(**values_of(dit, DiTTraining)))
    else:
        expanded = Reader(file).section(_ExpandedDiT, raw, "")
        # `optim` overrides `training`; its learning rate is called `base_lr` in the compact schema.
        optim = {key: value for key, value in values_of(expanded.optim, Optim).items() if value is not None}
        if "lr" in optim:
            optim["base_lr"] = optim.pop("lr")
        training = DiTTraining(**{**values_of(expanded.training, DiTTraining), **optim})
        config = DiTConfig(file, expanded.model.params, expanded.scheduler, training)
    _check_shape(config.params, f"{file}: {section}.params")
    return config


def read_tgca_config(path: str | PathLike) -> TGCAConfig:
    """Read the parameters of an adapter's file; its training keys are ignored."""
    raw, file = read_yaml(path), Path(path).name
    section = raw.get("tgca")
    if not isinstance(section, dict):
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; an adapter's config has a section 'tgca'."
        )
    given = section.get("params") or {}
    if not isinstance(given, dict):
        raise CardioDiTError(f"{file}: tgca.params must be a section.")
    known = {f.name for f in fields(TGCAParams)}
    params = Reader(file).section(
        TGCAParams, {key: value for key, value in given.items() if key in known}, "tgca.params"
    )
    keys = section.get("condition_keys") or [f"mask{i}" for i in range(params.condition_channels)]
    if not isinstance(keys, list) or len(keys) != params.condition_channels:
        raise CardioDiTError(
            f"{file}: tgca.condition_keys {keys} must name as many masks as condition_channels, "
            f"{params.condition_channels}."
        )
    return TGCAConfig(file, tuple(map(str, keys)), params)


def values_of(section: Any, kind: type) -> dict[str, Any]:
    """Return the values of a section for the fields of the dataclass `kind`."""
    return {f.name: getattr(section, f.name) for f in fields(kind)}


def model_section(raw: dict[str, Any], file: str, expected: str) -> str:
    """Return the section with the model: "stage1" or "dit" in the compact schema, "model" in the expanded one."""
    section = next((name for name in (expected, "model", *STAGES) if name in raw), None)
    found = _stage_of(raw["model"]) if section == "model" else section
    if found not in (None, expected):
        raise CardioDiTError(
            f"{file} is a {STAGES[found]} config, but a {STAGES[expected]} config was expected here. "
            "Were the two configs swapped?"
        )
    if section is None:
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; "
            f"a {STAGES[expected]} config has a section '{expected}' or 'model'."
        )
    return section


def _stage_of(model: Any) -> str | None:
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        return None
    marks = {"num_embeddings": "stage1", "input_size": "dit", "num_res_blocks": "unet"}
    return next((stage for mark, stage in marks.items() if mark in params), None)


def repeat(value: int | tuple[int, ...], times: int) -> tuple[int, ...]:
    return (value,) * times if isinstance(value, int) else value


def _levels(value: Any, levels: int) -> tuple[Level, ...]:
    """Return one entry for each level; a flat entry, which contains numbers, is used for all levels."""
    return (value,) * levels if any(isinstance(item, int) for item in value) else value


def _check_levels(params: VQParams, where: str) -> None:
    levels = len(params.num_channels)
    per_level: dict[str, tuple[Sequence[Any], int]] = {
        "num_res_channels": (params.res_channels, 0),
        "downsample_parameters": (params.downsampling, 4),
        "upsample_parameters": (params.upsampling, 5),
    }
    for name, (entries, width) in per_level.items():
        if len(entries) != levels:
            raise CardioDiTError(f"{where}.{name} has {len(entries)} entries; expected {levels}, as num_channels has.")
        for entry in entries if width else ():
            if len(entry) != width or any(isinstance(item, tuple) and len(item) != 3 for item in entry):
                raise CardioDiTError(f"{where}.{name} holds {entry}; expected {width} items, each a number or three.")


def _check_shape(params: DiTParams, where: str) -> None:
    if len(params.patch) != len(params.input_size):
        raise CardioDiTError(
            f"{where}.patch_size has {len(params.patch)} numbers, input_size has {len(params.input_size)}; "
            "expected one for each axis."
        )
    if any(size % patch for size, patch in zip(params.input_size, params.patch, strict=True)):
        raise CardioDiTError(
            f"{where}.patch_size {list(params.patch)} does not divide input_size {list(params.input_size)}; "
            "each axis must be a multiple of its patch."
        )
    if None not in (params.attn_drop, params.mlp_drop) and params.attn_drop != params.mlp_drop:
        raise CardioDiTError(
            f"{where}: attn_drop {params.attn_drop} and mlp_drop {params.mlp_drop} differ, but the "
            "transformer has one dropout for both. Make them equal; dropout only matters in training."
        )
    if params.hidden_size % params.num_heads:
        raise CardioDiTError(
            f"{where}.hidden_size {params.hidden_size} is not a multiple of num_heads {params.num_heads}."
        )
