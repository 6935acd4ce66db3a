"""Typed reading of the YAML configs of CardioDiT's and VolDiT's autoencoders, in their compact and expanded schemas.

The dataclasses mirror the files: each section is a class and each key a typed field; a field without a default is
required.
"""

import os
import re
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
Ignored = dict[str, Any] | None  # a section
INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
MOST_INTERPOLATIONS = 20  # one inside another


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
    dead_code_threshold: float | None = None
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
    target_frames: Count | str | None = None  # "native" keeps the frames of each file
    time_pad_multiple: Count | None = None
    target_z: Count | None = None
    spatial_permute: tuple[int, ...] | None = None
    use_persistent: bool | None = None
    cache_dir: str | None = None
    scale_factor: float | None = None
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class VQGANRun(Run):
    disc_lr: float | None = None
    lr_update_gamma: float | None = None  # per optimizer step


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
    quantized: bool = True


# --- Layouts of the files ---


@dataclass(frozen=True, kw_only=True)
class CodeOnly:
    """Sections that only the authors' own code needs."""

    wandb: Ignored = None
    run_schema: Ignored = None
    latent_preprocessing: Ignored = None
    safety: Ignored = None
    data: Ignored = None


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
class _CompactVQGAN(CodeOnly):
    stage1: _Stage1
    discriminator: _Discriminator | None = None
    perceptual_network: _Perceptual = _Perceptual()


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
class _Encoding:
    """How their code encodes volumes for stage 2."""

    target_z: Count | None = None
    quantized: bool = True
    geometry_policy: str | None = None
    phase_endpoint: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _ExpandedVQGAN(CodeOnly):
    model: _VQModel
    discriminator: _Discriminator | None = None
    training: VQGANRun = VQGANRun()
    optim: _VQOptim = _VQOptim()  # MedLoRD's learning rates
    losses: _Losses = _Losses()
    encoding: _Encoding = _Encoding()


# --- Reading ---


def read_their_yaml(path: str | PathLike) -> dict[str, Any]:
    """Read a YAML file and resolve its interpolations: `${a.key}` and `${oc.env:NAME,default}`, nested or not.

    What cannot be resolved stays as it is: it is a path or a name that only the authors' code needs.
    """
    raw = read_yaml(path)
    return _resolved(raw, raw)


def _resolved(value: Any, root: dict[str, Any], depth: int = 0) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(item, root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root, depth) for item in value]
    match = INTERPOLATION.search(value) if isinstance(value, str) and depth < MOST_INTERPOLATIONS else None
    if match is None:
        return value
    found = _interpolated(match[1], root)
    if match[0] == value:
        return value if found is None else _resolved(found, root, depth + 1)
    if found is None or isinstance(found, dict | list):
        return value
    return _resolved(value[: match.start()] + str(found) + value[match.end() :], root, depth + 1)


def _interpolated(name: str, root: dict[str, Any]) -> Any:
    """Return the value of the innermost `${name}`; None if there is none."""
    if name.startswith("oc.env:"):
        variable, _, default = name.removeprefix("oc.env:").partition(",")
        return os.environ.get(variable.strip(), default.strip() or None)
    found: Any = root
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def read_vqgan_config(path: str | PathLike) -> VQGANConfig:
    """Read a stage 1 file in either schema."""
    raw, file = read_their_yaml(path), Path(path).name
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
        run["target_z"] = run["target_z"] or expanded.encoding.target_z
        config = VQGANConfig(
            file=file,
            params=expanded.model.params,
            discriminator=expanded.discriminator.params if expanded.discriminator else None,
            training=VQGANTraining(**run, **values_of(losses, LossWeights)),
            perceptual=losses.perceptual_params or losses.params.perceptual_params,
            jukebox=losses.jukebox_params or losses.params.jukebox_params,
            is_medlord="optim" in raw,
            quantized=expanded.encoding.quantized,
        )
    _check_levels(config.params, f"{file}: {section}.params")
    return config


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
