"""Typed reading of the YAML configs of MedLoRD's authors for the U-Net (stage 2) and the ControlNet (stage 3).

Stage 1 has the expanded schema of `upstream_config.py`.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit._util.typed_yaml import Count, Reader, read_yaml, restricted
from cardiodit.convert.dit_config import SchedulerParams
from cardiodit.convert.upstream_config import (
    Run,
    model_section,
    repeat,
    values_of,
)
from cardiodit.errors import CardioDiTError


@dataclass(frozen=True, kw_only=True)
class UNetParams:
    """Parameters of the U-Net, named as in MONAI."""

    spatial_dims: int = restricted(3, because="the U-Net is three-dimensional")
    in_channels: Count
    out_channels: Count | None = None
    num_res_blocks: Count | tuple[Count, ...]
    num_channels: tuple[Count, ...]
    attention_levels: tuple[bool, ...]
    num_head_channels: int | tuple[int, ...]
    norm_num_groups: Count = 32
    norm_eps: float = restricted(1e-6, because="group normalisation has this epsilon")
    with_conditioning: bool = False
    use_flash_attention: bool = False
    upcast_attention: bool = False
    resblock_updown: bool = restricted(False, because="sizes change by convolutions, not in residual blocks")
    transformer_num_layers: int = restricted(1, because="an attention layer has one transformer block")
    cross_attention_dim: int | None = restricted(None, because="there is no text context")
    num_class_embeds: int | None = restricted(None, 0, because="class labels are not supported")
    dropout_cattn: float = restricted(0.0, because="there is no dropout")

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments that our U-Net and ControlNet share."""
        heads = repeat(self.num_head_channels, len(self.num_channels))
        used = [size for size in heads if size > 0]
        sizes = [size or used[-1] for size in heads] if used else [1]  # 0 where a level has no attention
        return {
            "in_channels": self.in_channels,
            "block_out_channels": self.num_channels,
            "layers_per_block": self.num_res_blocks,
            "attention_levels": self.attention_levels,
            "attention_head_dim": sizes[0] if len(set(sizes)) == 1 else sizes,
            "norm_num_groups": self.norm_num_groups,
        }


@dataclass(frozen=True, kw_only=True)
class ControlNetParams(UNetParams):
    """Parameters of the ControlNet."""

    r: float = 0.25
    conditioning_embedding_in_channels: Count = 1
    conditioning_embedding_num_channels: tuple[Count, ...] = (16, 32, 96, 256)
    initial_stride: Count = 1


@dataclass(frozen=True, kw_only=True)
class UNetTraining(Run):
    """All training keys of a stage 2 or 3 file."""

    lr: float | None = None
    use_precomputed_latents: bool | None = None
    preload_latents: bool | None = None
    control_dropout: float | None = None
    spatial_dropout_prob: float | None = None
    spatial_dropout_patch_size: Count | None = None
    cache: bool | None = None
    persistent: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _UNetOptim:
    lr: float | None = None
    lr_gamma: float | None = None


@dataclass(frozen=True)
class UNetConfig:
    """Config of MedLoRD's stage 2."""

    file: str
    params: UNetParams
    scheduler: SchedulerParams
    training: UNetTraining


@dataclass(frozen=True)
class ControlNetConfig:
    """Config of MedLoRD's stage 3."""

    file: str
    keys: tuple[str, ...]
    params: ControlNetParams
    training: UNetTraining


@dataclass(frozen=True, kw_only=True)
class _UNetModel:
    params: UNetParams


@dataclass(frozen=True, kw_only=True)
class _UNetFile:
    model: _UNetModel
    scheduler: SchedulerParams = SchedulerParams()
    training: UNetTraining = UNetTraining()
    optim: _UNetOptim = _UNetOptim()
    wandb: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class _ControlNet:
    condition_keys: tuple[str, ...]
    params: ControlNetParams


@dataclass(frozen=True, kw_only=True)
class _Ldm:
    scheduler: SchedulerParams = SchedulerParams()


@dataclass(frozen=True, kw_only=True)
class _ControlNetFile:
    controlnet: _ControlNet
    pretrained_model: dict[str, Any] | None = None  # repeats stage 2's config
    ldm: _Ldm = _Ldm()
    training: UNetTraining = UNetTraining()
    wandb: dict[str, Any] | None = None


# --- Reading ---


def read_unet_config(path: str | PathLike) -> UNetConfig:
    """Read MedLoRD's stage 2 file."""
    raw, file = read_yaml(path), Path(path).name
    model_section(raw, file, expected="unet")
    read = Reader(file).section(_UNetFile, raw, "")
    params = read.model.params
    if params.with_conditioning:
        raise CardioDiTError(f"{file}: model.params.with_conditioning is true, but the U-Net has no text context.")
    if params.out_channels not in (None, params.in_channels):
        raise CardioDiTError(
            f"{file}: model.params.out_channels {params.out_channels} must equal in_channels {params.in_channels}."
        )
    rates = {name: rate for name, rate in values_of(read.optim, _UNetOptim).items() if rate is not None}
    training = UNetTraining(**{**values_of(read.training, UNetTraining), **_as_base_rate(rates)})
    return UNetConfig(file, params, read.scheduler, training)


def read_controlnet_config(path: str | PathLike) -> ControlNetConfig:
    """Read MedLoRD's stage 3 file."""
    raw, file = read_yaml(path), Path(path).name
    if not isinstance(raw.get("controlnet"), dict):
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; a ControlNet's config has a section "
            "'controlnet'."
        )
    read = Reader(file).section(_ControlNetFile, raw, "")
    keys, params = read.controlnet.condition_keys, read.controlnet.params
    if len(keys) != params.conditioning_embedding_in_channels:
        raise CardioDiTError(
            f"{file}: controlnet.condition_keys {list(keys)} must name as many masks as "
            f"conditioning_embedding_in_channels, {params.conditioning_embedding_in_channels}."
        )
    given = values_of(read.training, UNetTraining)
    training = UNetTraining(**{**given, **_as_base_rate({"lr": given["lr"]})})
    return ControlNetConfig(file, keys, params, training)


def _as_base_rate(training: dict[str, Any]) -> dict[str, Any]:
    """Rename the learning rate as in the compact schema, if it is given."""
    rate = training.pop("lr", None)
    return training if rate is None else {**training, "base_lr": rate}
