"""VolDiT's published checkpoints, with or without its adapter → a pipeline folder."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch

from cardiodit._util.atomic_io import new_folder
from cardiodit.convert.authors_config import (
    DiTConfig,
    TGCAConfig,
    read_dit_config,
    read_tgca_config,
    read_vqgan_config,
)
from cardiodit.convert.cardiodit import (
    build_discriminator,
    build_scheduler,
    build_transformer,
    build_vq_model,
    check_geometry,
    check_names,
    check_stages_agree,
    choose_scale_factor,
    construct,
    write_record,
)
from cardiodit.convert.checkpoint import Checkpoint, Weights, read_checkpoint, some
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.models import DiT3DTransformerModel, VQModel3D
from cardiodit.models.adapter_tgca import TGCAAdapterModel, fingerprint_of
from cardiodit.pipelines.pipeline_voldit import VolDiTPipeline
from cardiodit.pipelines.pipeline_voldit_control import VolDiTControlPipeline

BASE = "base_model."
SCALES = "adapter_scales."
HEAD = ("modulation_out", "proj_out")
# Our weights, as patterns, and what the authors call them; a scale is one of a list in both.
ADAPTER_NAMES = {
    r"condition_embed\.conv_(in|out)\.(\w+)": r"condition_embedder.conv_\1.conv.\2",
    r"condition_embed\.blocks\.(\d+)\.(\w+)": r"condition_embedder.blocks.\1.conv.\2",
    r"time_gate\.(\w+)": r"time_gate.\1",
    r"scales\.(\d+)": r"adapter_scales.\1",
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
    """Writes a `VolDiTPipeline` folder, or with an adapter a `VolDiTControlPipeline` folder.

    Args:
        stage1_ckpt, stage1_cfg, diff_ckpt, diff_cfg: checkpoints and YAML of the VQ-GAN and of the transformer.
        output_dir: a new or empty folder; written as a whole or not at all.
        scale_factor: what latents were multiplied by in training; read from `diff_cfg` where it is not given.
        tgca_ckpt, tgca_cfg: of the adapter.
        spacing: voxel size in mm along H, W, D of the training volumes, if known.
        ema: take the EMA weights of the transformer where the checkpoint holds them.
    """
    if (tgca_ckpt is None) != (tgca_cfg is None):
        raise CardioDiTError("An adapter needs both its checkpoint (tgca_ckpt) and its config (tgca_cfg).")
    vq_config, dit_config = read_vqgan_config(stage1_cfg), read_dit_config(diff_cfg)
    adapter_config = read_tgca_config(tgca_cfg) if tgca_cfg is not None else None
    check_stages_agree(vq_config, dit_config)
    check_geometry(spacing, None)
    scaling_factor = choose_scale_factor(scale_factor, dit_config)
    with new_folder(Path(output_dir)) as folder:
        stage1, stage2 = read_checkpoint(stage1_ckpt), read_checkpoint(diff_ckpt)
        # The base was trained on volumes resized to one size, the adapter on cropped and padded ones.
        steps = PRESETS["voldit" if tgca_ckpt is None else "voldit-tgca"].to_dict()
        vae = build_vq_model(
            stage1, vq_config, VQModel3D, scaling_factor=scaling_factor, spacing=spacing, preprocessing=steps
        )
        transformer = build_transformer(stage2, dit_config, DiT3DTransformerModel, ema)
        scheduler = build_scheduler(dit_config)
        adapters = {}
        if tgca_ckpt is not None and adapter_config is not None:
            adapters["adapter"] = checkpoint = read_checkpoint(tgca_ckpt)
            transformer = free_blocks(transformer, checkpoint, adapter_config, dit_config)
            adapter = build_adapter(checkpoint, adapter_config, transformer)
            VolDiTControlPipeline(vae, transformer, scheduler, adapter).save_pretrained(folder)
        else:
            VolDiTPipeline(vae, transformer, scheduler).save_pretrained(folder)
        discriminator = build_discriminator(stage1, vq_config)
        if discriminator is not None:
            discriminator.save_pretrained(folder / "discriminator")
        write_record(folder, stage2, ema, stage1, **adapters)
    if spacing is None:
        print("No voxel spacing was given (mm): the volumes of this model carry no scanner space.")
    return Path(output_dir)


def build_adapter(checkpoint: Checkpoint, config: TGCAConfig, transformer: DiT3DTransformerModel) -> TGCAAdapterModel:
    """The adapter of the authors' checkpoint, acting as their released code does."""
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
    weights = {name: value for name, value in checkpoint.weights().items() if not name.startswith(BASE)}
    weights = scales_in_order(weights, model.injected, base.num_layers)
    ours = model.state_dict()
    names = {name: adapter_name(name) for name in ours}
    check_names({names[name]: value.shape for name, value in ours.items()}, weights, checkpoint, config.file)
    model.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return model.eval()


def scales_in_order(weights: Weights, injected: Sequence[int], num_layers: int) -> Weights:
    """Scales by their place among the steered blocks, where the checkpoint has them by the blocks' numbers.

    It may then hold those of all blocks, steered or not.
    """
    held = {block: weights[f"{SCALES}{block}"] for block in range(num_layers) if f"{SCALES}{block}" in weights}
    if list(held) == list(range(len(injected))) or not set(injected) <= set(held):
        return weights
    others = {name: value for name, value in weights.items() if name not in {f"{SCALES}{block}" for block in held}}
    return {**others, **{f"{SCALES}{place}": held[block] for place, block in enumerate(injected)}}


def adapter_name(ours: str) -> str:
    """What the authors call a weight of ours."""
    for pattern, theirs in ADAPTER_NAMES.items():
        if match := re.fullmatch(pattern, ours):
            return match.expand(theirs)
    raise KeyError(ours)


def free_blocks(
    transformer: DiT3DTransformerModel, checkpoint: Checkpoint, config: TGCAConfig, dit_config: DiTConfig
) -> DiT3DTransformerModel:
    """The base with the blocks that the adapter's training was allowed to change, as it left them.

    Any other difference between the base inside the adapter's checkpoint and the one that is given is an error.
    """
    inside = {name.removeprefix(BASE): v for name, v in checkpoint.weights().items() if name.startswith(BASE)}
    last, count = config.params.finetune_last_n_blocks, transformer.config.num_layers
    if not inside and last:
        raise CardioDiTError(
            f"{checkpoint.file} holds the adapter alone, but {config.file} says that its training also changed the "
            f"last {last} blocks of the transformer (finetune_last_n_blocks). Give the checkpoint that holds them, as "
            f"{BASE}*."
        )
    if not inside:
        return transformer
    held = build_transformer(Checkpoint(checkpoint.path, {"model": inside}), dit_config, DiT3DTransformerModel, False)
    ours, theirs = transformer.state_dict(), held.state_dict()
    free = [f"transformer_blocks.{i}." for i in range(max(0, count - last), count)] if last else []
    allowed = (*free, *HEAD) if last else ()
    changed = [name for name, value in theirs.items() if not torch.allclose(value, ours[name], rtol=1e-4, atol=1e-6)]
    if strangers := [name for name in changed if not name.startswith(allowed)]:
        raise CardioDiTError(
            f"{checkpoint.file}: the transformer inside it is not the one that is given: {some(strangers)} differ, and "
            f"its training was allowed to change {f'only the last {last} blocks and the head' if last else 'none'}. "
            "Give the checkpoint that the adapter was trained on."
        )
    return held if last else transformer
