"""The authors' YAML configs, read with types: CardioDiT's and VolDiT's, compact and expanded schema.

The dataclasses mirror the files: a section is a class, a key a field, its type what the key may hold, and a
field without a default is required.
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


# --- Stage 1: the VQ-GAN ---


@dataclass(frozen=True, kw_only=True)
class VQParams:
    """The autoencoder, in the authors' (MONAI's) words."""

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
        """One width for each level."""
        return _repeat(self.num_res_channels, len(self.num_channels))

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
    """The patch discriminator, in the authors' (MONAI's) words."""

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
    """Training keys of both stages; None where the file does not say."""

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
    """Everything a stage 1 file says about training, whichever schema it is written in."""


@dataclass(frozen=True)
class VQGANConfig:
    """A stage 1 file."""

    file: str
    params: VQParams
    discriminator: DiscriminatorParams | None
    training: VQGANTraining
    perceptual: PerceptualParams
    jukebox: JukeboxParams


# --- Stage 2: the diffusion transformer ---


@dataclass(frozen=True, kw_only=True)
class DiTParams:
    """The transformer, in the authors' words."""

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
    spacing: tuple[float, ...] | None = None  # scales the positions, which are compared when a checkpoint loads
    self_conditioning: bool = restricted(False, because="the transformers here have no self-conditioning")
    temporal_pe: str = restricted("absolute", because="the transformers here know absolute sine-cosine positions only")

    @property
    def patch(self) -> tuple[int, ...]:
        """The patch size along each axis."""
        return _repeat(self.patch_size, len(self.input_size))

    @property
    def dropout(self) -> float | None:
        """Of attention and MLP alike; None where the file does not say."""
        return self.attn_drop if self.mlp_drop is None else self.mlp_drop


@dataclass(frozen=True, kw_only=True)
class SchedulerParams:
    schedule: str = restricted("cosine", because="only the squared-cosine schedule of the published models is known")
    num_train_timesteps: Count = 300
    prediction_type: str = restricted("v_prediction", "epsilon", "sample", because="no other prediction is known")
    zero_terminal_snr: bool = restricted(False, because="the published schedule does not end at zero signal")


@dataclass(frozen=True, kw_only=True)
class DiTTraining(Run):
    """Everything a stage 2 file says about training, whichever schema it is written in."""

    betas: tuple[float, ...] | None = None
    min_snr_gamma: float | None = None
    offset_noise_strength: float | None = None
    preload_latents: bool | None = None
    use_bucket_sampler: bool | None = None
    latent_stats_path: str | None = None
    phase_dir: str | None = None
    alpha_pool: str | None = None
    self_conditioning: bool = restricted(False, because="the transformers here have no self-conditioning")
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
    """A stage 2 file."""

    file: str
    params: DiTParams
    scheduler: SchedulerParams
    training: DiTTraining


# --- VolDiT's adapter ---


@dataclass(frozen=True, kw_only=True)
class TGCAParams:
    """The adapter, in the authors' words; what a file does not say is as published."""

    condition_channels: Count = 1
    inject_layers: int | tuple[int, ...] | None = None
    finetune_last_n_blocks: int = 0


@dataclass(frozen=True)
class TGCAConfig:
    """An adapter's file."""

    file: str
    keys: tuple[str, ...]
    params: TGCAParams


# --- The files' layouts ---


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
class _LossParams:
    perceptual_params: PerceptualParams = PerceptualParams()
    jukebox_params: JukeboxParams = JukeboxParams()


@dataclass(frozen=True, kw_only=True)
class _Losses(LossWeights):
    params: _LossParams = _LossParams()


@dataclass(frozen=True, kw_only=True)
class _ExpandedVQGAN:
    model: _VQModel
    discriminator: _Discriminator | None = None
    training: VQGANRun = VQGANRun()
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
    """Reads a stage 1 file in either schema."""
    raw, file = read_yaml(path), Path(path).name
    section = _section_of(raw, file, wanted="stage1")
    if section == "stage1":
        config = _compact_vqgan(Reader(file).section(_CompactVQGAN, raw, ""), file)
    else:
        config = _expanded_vqgan(Reader(file).section(_ExpandedVQGAN, raw, ""), file)
    _check_levels(config.params, f"{file}: {section}.params")
    return config


def read_dit_config(path: str | PathLike) -> DiTConfig:
    """Reads a stage 2 file in either schema."""
    raw, file = read_yaml(path), Path(path).name
    section = _section_of(raw, file, wanted="dit")
    if section == "dit":
        dit = Reader(file).section(_CompactDiT, raw, "").dit
        config = DiTConfig(file, dit.params, dit.scheduler, DiTTraining(**_values(dit, DiTTraining)))
    else:
        config = _expanded_dit(Reader(file).section(_ExpandedDiT, raw, ""), file)
    _check_shape(config.params, f"{file}: {section}.params")
    return config


def read_tgca_config(path: str | PathLike) -> TGCAConfig:
    """Reads an adapter's file: what says how the adapter is built. How it was trained is left aside."""
    raw, file = read_yaml(path), Path(path).name
    section = raw.get("tgca")
    if not isinstance(section, dict):
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; an adapter's config has a section 'tgca'."
        )
    said = section.get("params") or {}
    if not isinstance(said, dict):
        raise CardioDiTError(f"{file}: tgca.params must be a section.")
    known = {f.name for f in fields(TGCAParams)}
    params = Reader(file).section(
        TGCAParams, {key: value for key, value in said.items() if key in known}, "tgca.params"
    )
    keys = section.get("condition_keys") or [f"mask{i}" for i in range(params.condition_channels)]
    if not isinstance(keys, list) or len(keys) != params.condition_channels:
        raise CardioDiTError(
            f"{file}: tgca.condition_keys {keys} must name {params.condition_channels} masks, as many as "
            "condition_channels says."
        )
    return TGCAConfig(file, tuple(map(str, keys)), params)


def _compact_vqgan(raw: _CompactVQGAN, file: str) -> VQGANConfig:
    return VQGANConfig(
        file=file,
        params=raw.stage1.params,
        discriminator=raw.discriminator.params if raw.discriminator else None,
        training=VQGANTraining(**_values(raw.stage1, VQGANTraining)),
        perceptual=raw.perceptual_network.params,
        jukebox=JukeboxParams(),
    )


def _expanded_vqgan(raw: _ExpandedVQGAN, file: str) -> VQGANConfig:
    return VQGANConfig(
        file=file,
        params=raw.model.params,
        discriminator=raw.discriminator.params if raw.discriminator else None,
        training=VQGANTraining(**_values(raw.training, VQGANRun), **_values(raw.losses, LossWeights)),
        perceptual=raw.losses.params.perceptual_params,
        jukebox=raw.losses.params.jukebox_params,
    )


def _expanded_dit(raw: _ExpandedDiT, file: str) -> DiTConfig:
    """`optim` lies over `training`; its learning rate is the compact schema's `base_lr`."""
    said = {key: value for key, value in _values(raw.optim, Optim).items() if value is not None}
    if "lr" in said:
        said["base_lr"] = said.pop("lr")
    training = DiTTraining(**{**_values(raw.training, DiTTraining), **said})
    return DiTConfig(file, raw.model.params, raw.scheduler, training)


def _values(section: Any, kind: type) -> dict[str, Any]:
    """What a section holds of the fields of `kind`."""
    return {f.name: getattr(section, f.name) for f in fields(kind)}


def _section_of(raw: dict[str, Any], file: str, wanted: str) -> str:
    """Where the model stands in the file: "stage1" or "dit" (compact schema), or "model" (expanded)."""
    stages = {"stage1": "stage 1 (VQ-GAN)", "dit": "stage 2 (transformer)"}
    other = "dit" if wanted == "stage1" else "stage1"
    found = wanted if wanted in raw else "model" if "model" in raw else other if other in raw else None
    if found == other or (found == "model" and _looks_like(raw["model"]) == other):
        raise CardioDiTError(
            f"{file} is a {stages[other]} config, but a {stages[wanted]} config was expected here. "
            "Were the two configs swapped?"
        )
    if found is None:
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; "
            f"a {stages[wanted]} config has a section '{wanted}' or 'model'."
        )
    return found


def _looks_like(model: Any) -> str | None:
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        return None
    return "stage1" if "num_embeddings" in params else "dit" if "input_size" in params else None


def _repeat(value: int | tuple[int, ...], times: int) -> tuple[int, ...]:
    return (value,) * times if isinstance(value, int) else value


def _levels(value: Any, levels: int) -> tuple[Level, ...]:
    """One entry for each level; a flat one, recognised by a number among its items, serves all levels."""
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
            "one for each axis was expected."
        )
    if any(size % patch for size, patch in zip(params.input_size, params.patch, strict=True)):
        raise CardioDiTError(
            f"{where}.patch_size {list(params.patch)} does not divide input_size {list(params.input_size)}; "
            "each axis must be a multiple of its patch."
        )
    if None not in (params.attn_drop, params.mlp_drop) and params.attn_drop != params.mlp_drop:
        raise CardioDiTError(
            f"{where}: attn_drop {params.attn_drop} and mlp_drop {params.mlp_drop} differ, but the "
            "transformer has one dropout for both. Make them equal; it acts while training only."
        )
    if params.hidden_size % params.num_heads:
        raise CardioDiTError(
            f"{where}.hidden_size {params.hidden_size} is no multiple of num_heads {params.num_heads}."
        )
