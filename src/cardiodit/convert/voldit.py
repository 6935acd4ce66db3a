"""Conversion of VolDiT's published checkpoints, with or without the adapter, into a pipeline folder."""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from cardiodit.convert.cardiodit import build_transformer, construct, convert_stages, load_weights, transformer_name
from cardiodit.convert.checkpoint import Checkpoint, Weights, read_checkpoint, some
from cardiodit.convert.dit_config import DiTConfig, TGCAConfig, read_dit_config, read_tgca_config
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.models import DiT3DTransformerModel, VQModel3D
from cardiodit.models.adapter_tgca import TGCAAdapterModel, fingerprint_of
from cardiodit.pipelines.pipeline_voldit import VolDiTControlPipeline, VolDiTPipeline

BASE_PREFIX = "base_model."
SCALES_PREFIX = "adapter_scales."
HEAD = ("modulation_out", "proj_out")
# The authors' names of our modules, which are given as patterns.
ADAPTER_NAMES = {
    r"condition_embed\.conv_(in|out)": r"condition_embedder.conv_\1.conv",
    r"condition_embed\.blocks\.(\d+)": r"condition_embedder.blocks.\1.conv",
    r"time_gate": r"time_gate",
    r"scales": r"adapter_scales",
}


def convert_voldit(
    stage1_ckpt: str | PathLike,
    stage1_cfg: str | PathLike,
    diff_ckpt: str | PathLike,
    diff_cfg: str | PathLike,
    output_dir: str | PathLike,
    scale_factor: float | None = None,
    tgca_ckpt: str | PathLike | None = None,
    tgca_cfg: str | PathLike | None = None,
    spacing: tuple[float, float, float] | None = None,
    ema: bool = True,
) -> Path:
    """Write a `VolDiTPipeline` folder, or with an adapter a `VolDiTControlPipeline` folder.

    Args:
        stage1_ckpt, stage1_cfg: checkpoint and YAML of the VQ-GAN.
        diff_ckpt, diff_cfg: checkpoint and YAML of the transformer.
        output_dir: new or empty folder, which is written completely or not at all.
        scale_factor: factor by which latents were multiplied in training; default: that in `diff_cfg`.
        tgca_ckpt, tgca_cfg: checkpoint and YAML of the adapter.
        spacing: voxel size of the training volumes in mm along H, W, D, if known.
        ema: use the EMA weights of the transformer if the checkpoint contains them.
    """
    if (tgca_ckpt is None) != (tgca_cfg is None):
        raise CardioDiTError("An adapter needs both its checkpoint (tgca_ckpt) and its config (tgca_cfg).")
    adapter_config = read_tgca_config(tgca_cfg) if tgca_cfg is not None else None

    def assemble(
        vae: VQModel3D, transformer: DiT3DTransformerModel, scheduler: Any, dit_config: DiTConfig
    ) -> tuple[VolDiTPipeline | VolDiTControlPipeline, dict[str, Checkpoint]]:
        if tgca_ckpt is None or adapter_config is None:
            return VolDiTPipeline(vae, transformer, scheduler), {}
        training = dit_config.training
        if dit_config.is_flow or dit_config.params.self_conditioning or training.normalize_latents:
            raise CardioDiTError(
                "The adapter cannot be converted: the authors' adapters steer bases trained by denoising, without "
                f"self-conditioning or normalised latents, and {dit_config.file} describes another one."
            )
        checkpoint = read_checkpoint(tgca_ckpt)
        transformer = fine_tuned_base(transformer, checkpoint, adapter_config, dit_config)
        adapter = build_adapter(checkpoint, adapter_config, transformer)
        return VolDiTControlPipeline(vae, transformer, scheduler, adapter), {"adapter": checkpoint}

    return convert_stages(
        stage1=(stage1_ckpt, stage1_cfg, VQModel3D),
        stage2=(diff_ckpt, read_dit_config(diff_cfg), partial(build_transformer, kind=DiT3DTransformerModel, ema=ema)),
        assemble=assemble,
        output_dir=output_dir,
        scale_factor=scale_factor,
        ema=ema,
        geometry={"spacing": spacing},
        # The base was trained on volumes resized to one size, the adapter on cropped and padded ones.
        preprocessing=PRESETS["voldit" if tgca_ckpt is None else "voldit-tgca"].to_dict(),
    )


def build_adapter(checkpoint: Checkpoint, config: TGCAConfig, transformer: DiT3DTransformerModel) -> TGCAAdapterModel:
    """Build the adapter of the authors' checkpoint, which computes what their released code computes."""
    base, layers = transformer.config, config.params.inject_layers
    model = construct(
        TGCAAdapterModel,
        config.file,
        hidden_size=base.num_attention_heads * base.attention_head_dim,
        num_layers=base.num_layers,
        condition_channels=config.params.condition_channels,
        condition_keys=list(config.keys),
        inject_layers=list(layers) if isinstance(layers, tuple) else layers,
        normalise_control=True,
        fingerprint=fingerprint_of(transformer),
    )
    weights = {name: value for name, value in checkpoint.weights().items() if not name.startswith(BASE_PREFIX)}
    weights = scales_in_order(weights, model.injected, base.num_layers)
    return load_weights(model, weights, lambda name: transformer_name(name, ADAPTER_NAMES), checkpoint, config.file)


def scales_in_order(weights: Weights, injected: Sequence[int], num_layers: int) -> Weights:
    """Number the scales by the order of the steered blocks, if the checkpoint numbers them by block.

    Such a checkpoint may hold the scales of all blocks, steered or not.
    """
    names = {block: f"{SCALES_PREFIX}{block}" for block in range(num_layers) if f"{SCALES_PREFIX}{block}" in weights}
    if list(names) == list(range(len(injected))) or not set(injected) <= set(names):
        return weights
    others = {name: value for name, value in weights.items() if name not in names.values()}
    return {**others, **{f"{SCALES_PREFIX}{index}": weights[names[block]] for index, block in enumerate(injected)}}


def fine_tuned_base(
    transformer: DiT3DTransformerModel, checkpoint: Checkpoint, config: TGCAConfig, dit_config: DiTConfig
) -> DiT3DTransformerModel:
    """Return the base with the blocks that the adapter's training was allowed to change, as the checkpoint has them.

    Raise if the base inside the adapter's checkpoint differs from the one that is given in any other block.
    """
    inside = {
        name.removeprefix(BASE_PREFIX): value
        for name, value in checkpoint.weights().items()
        if name.startswith(BASE_PREFIX)
    }
    last, count = config.params.finetune_last_n_blocks, transformer.config.num_layers
    if not inside and last:
        raise CardioDiTError(
            f"{checkpoint.file} holds the adapter alone, but {config.file} says that its training also changed the "
            f"last {last} blocks of the transformer (finetune_last_n_blocks). Give the checkpoint that holds them, as "
            f"{BASE_PREFIX}*."
        )
    if not inside:
        return transformer
    base = build_transformer(Checkpoint(checkpoint.path, {"model": inside}), dit_config, DiT3DTransformerModel, False)
    ours, theirs = transformer.state_dict(), base.state_dict()
    blocks = [f"transformer_blocks.{i}." for i in range(max(0, count - last), count)]
    allowed = (*blocks, *HEAD) if last else ()
    changed = [name for name, value in theirs.items() if not torch.allclose(value, ours[name], rtol=1e-4, atol=1e-6)]
    if unexpected := [name for name in changed if not name.startswith(allowed)]:
        allowed_parts = f"only the last {last} blocks and the head" if last else "none"
        raise CardioDiTError(
            f"{checkpoint.file} contains another transformer than the one given: {some(unexpected)} differ, and the "
            f"adapter's training was allowed to change {allowed_parts}. Give the adapter's own transformer."
        )
    return base if last else transformer
