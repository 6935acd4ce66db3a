"""Conversion of MedLoRD's published checkpoints, with or without the ControlNet, into a pipeline folder."""

import re
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit.convert.cardiodit import construct, convert_stages, load_weights
from cardiodit.convert.checkpoint import Checkpoint, read_checkpoint
from cardiodit.convert.medlord_config import (
    ControlNetConfig,
    UNetConfig,
    read_controlnet_config,
    read_unet_config,
)
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.models import VQModel3D
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
from cardiodit.models.unet_medlord import MedLoRDUNetModel
from cardiodit.pipelines.pipeline_medlord import MedLoRDControlPipeline, MedLoRDPipeline

LATENTS = {4: (128, 128, 64), 8: (64, 64, 32)}  # of volumes of 512 × 512 × 256, by the autoencoder's factor
# Replacements that turn our names of weights into the authors', one after the other.
NAMES = (
    (r"^time_embed\.linear_1", r"time_embed.0"),
    (r"^time_embed\.linear_2", r"time_embed.2"),
    (r"\.blocks\.(\d+)\.(resnet|attention)\.", r".\2s.\1."),
    (r"\.attn\.to_", r".to_"),
    (r"^condition_embed", r"controlnet_cond_embedding"),
    (r"(^conv_in|^out\.1|\.op|upsampler\.conv|\.proj_in|\.proj_out)\.(weight|bias)$", r"\1.conv.\2"),
    (r"(embedding\.conv_in|embedding\.blocks\.\d+)\.(weight|bias)$", r"\1.conv.\2"),
)
UNUSED = re.compile(r"(.*attention(?:s\.\d+)?)\.proj_attn\.(weight|bias)")  # in the checkpoints, but never applied


def convert_medlord(
    stage1_ckpt: str | PathLike,
    stage1_cfg: str | PathLike,
    diff_ckpt: str | PathLike,
    diff_cfg: str | PathLike,
    output_dir: str | PathLike,
    scale_factor: float | None = None,
    controlnet_ckpt: str | PathLike | None = None,
    controlnet_cfg: str | PathLike | None = None,
    spacing: tuple[float, float, float] | None = None,
    ema: bool = True,
    ema_base: bool = False,
) -> Path:
    """Write a `MedLoRDPipeline` folder, or with a ControlNet a `MedLoRDControlPipeline` folder.

    Args:
        stage1_ckpt, stage1_cfg: checkpoint and YAML of the VQ-GAN.
        diff_ckpt, diff_cfg: checkpoint and YAML of the U-Net.
        output_dir: new or empty folder, which is written completely or not at all.
        scale_factor: factor by which latents were multiplied in training; default: that in `diff_cfg`.
        controlnet_ckpt, controlnet_cfg: checkpoint and YAML of the ControlNet.
        spacing: voxel size of the training volumes in mm along H, W, D, if known.
        ema: use the EMA weights of the U-Net without a ControlNet, and those of a ControlNet, if there are any.
        ema_base: use the EMA weights of the U-Net with a ControlNet, too. The authors trained it on the raw weights.
    """
    if (controlnet_ckpt is None) != (controlnet_cfg is None):
        raise CardioDiTError("A ControlNet needs both its checkpoint (controlnet_ckpt) and config (controlnet_cfg).")
    control_config = read_controlnet_config(controlnet_cfg) if controlnet_cfg is not None else None
    averaged = ema and (control_config is None or ema_base)

    def assemble(
        vae: VQModel3D, unet: MedLoRDUNetModel, scheduler: Any, _: UNetConfig
    ) -> tuple[MedLoRDPipeline, dict[str, Checkpoint]]:
        factor = vae.scale_factors[0]
        if factor in LATENTS:
            unet.register_to_config(sample_size=LATENTS[factor])
        if controlnet_ckpt is None or control_config is None:
            return MedLoRDPipeline(vae, unet, scheduler), {}
        checkpoint = read_checkpoint(controlnet_ckpt)
        controlnet = build_controlnet(checkpoint, control_config, ema, fingerprint_of(unet))
        check_factor(controlnet, vae, control_config)
        return MedLoRDControlPipeline(vae, unet, controlnet, scheduler), {"controlnet": checkpoint}

    return convert_stages(
        stage1=(stage1_ckpt, stage1_cfg, VQModel3D),
        stage2=(diff_ckpt, read_unet_config(diff_cfg), partial(build_unet, ema=averaged)),
        assemble=assemble,
        output_dir=output_dir,
        scale_factor=scale_factor,
        ema=averaged,
        geometry={"spacing": spacing},
        # As VolDiT: the U-Net was trained on volumes resized to one size, the ControlNet on cropped and padded ones.
        preprocessing=PRESETS["voldit" if control_config is None else "voldit-tgca"].to_dict(),
    )


def load_unet(ckpt: str | PathLike, cfg: str | PathLike, ema: bool = True) -> MedLoRDUNetModel:
    """Load the U-Net of the authors' stage 2 checkpoint, with its EMA weights if it contains them."""
    return build_unet(read_checkpoint(ckpt), read_unet_config(cfg), ema)


def load_controlnet(ckpt: str | PathLike, cfg: str | PathLike, ema: bool = True) -> MedLoRDControlNetModel:
    """Load the ControlNet of the authors' stage 3 checkpoint, with its EMA weights if it contains them."""
    return build_controlnet(read_checkpoint(ckpt), read_controlnet_config(cfg), ema)


def build_unet(checkpoint: Checkpoint, config: UNetConfig, ema: bool = True) -> MedLoRDUNetModel:
    model = construct(
        MedLoRDUNetModel,
        config.file,
        **config.params.shape,
        prediction_type=config.scheduler.prediction_type,
    )
    weights = checkpoint.weights(ema)
    attending = {name.rpartition(".to_q.")[0] for name in map(author_name, model.state_dict()) if ".to_q." in name}
    unused = {
        name: value.shape
        for name, value in weights.items()
        if (match := UNUSED.fullmatch(name)) and match[1] in attending
    }
    return load_weights(model, weights, author_name, checkpoint, config.file, unused)


def build_controlnet(
    checkpoint: Checkpoint, config: ControlNetConfig, ema: bool = True, fingerprint: str | None = None
) -> MedLoRDControlNetModel:
    params = config.params
    if not params.with_conditioning:
        raise CardioDiTError(f"{config.file}: controlnet.params.with_conditioning must be true, as published.")
    model = construct(
        MedLoRDControlNetModel,
        config.file,
        **params.shape,
        width_ratio=params.r,
        condition_channels=params.conditioning_embedding_in_channels,
        condition_keys=config.keys,
        condition_widths=params.conditioning_embedding_num_channels,
        initial_stride=params.initial_stride,
        fingerprint=fingerprint,
    )
    return load_weights(model, checkpoint.weights(ema), author_name, checkpoint, config.file)


def author_name(ours: str) -> str:
    """Return the authors' name of one of our weights."""
    for pattern, theirs in NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def check_factor(controlnet: MedLoRDControlNetModel, vae: VQModel3D, config: ControlNetConfig) -> None:
    """Raise if masks would not be embedded at the size of the latents."""
    widths, first = controlnet.config.condition_widths, controlnet.config.initial_stride
    factor = first * 2 ** (len(widths) - 1)
    if set(vae.scale_factors) != {factor}:
        raise CardioDiTError(
            f"{config.file} divides masks by {factor}, but the autoencoder divides volumes by {vae.scale_factors[0]}: "
            "the ControlNet was trained with another autoencoder, or conditioning_embedding_num_channels and "
            "initial_stride in its config are wrong."
        )
