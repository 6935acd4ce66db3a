"""Configs of the authors' checkpoints, inferred from names and shapes of their weights.

For repositories that hold checkpoints without YAML. The results have the expanded layout of `upstream_config.py` and
`medlord_config.py`. What weights do not show is as in all published configs.
"""

import re
from typing import Any

import torch

from cardiodit.convert.checkpoint import Checkpoint, Weights
from cardiodit.errors import CardioDiTError

Plain = dict[str, Any]

# A weight that only checkpoints of a stage have, by the converters' options.
MARKS = {
    "stage1": "quantizer.quantizer.embedding.weight",
    "tgca": "time_gate.weight",
    "controlnet": "controlnet_mid_block.weight",
    "dit": "x_embedder.proj.weight",
    "unet": "up_blocks.0.resnets.0.conv1.conv.weight",
}
HALVING = [2, 4, 1, 1]  # stride, kernel, dilation, padding
LATENTS = (64, 64, 32)  # of 512 × 512 × 256 voxels
DIT_HEADS = {384: 6, 768: 12, 1152: 16}  # by hidden size
WIDE, NARROW_HEAD, WIDE_HEAD = 128, 32, 64  # published U-Nets have heads of 64 if their first level has 128 channels
SCHEDULER = {"schedule": "cosine", "num_train_timesteps": 300, "prediction_type": "v_prediction"}


def stage_of(checkpoint: Checkpoint) -> str:
    """Return the stage, a key of `MARKS`, that a checkpoint belongs to."""
    weights = checkpoint.weights()
    for stage, mark in MARKS.items():
        if mark in weights:
            return stage
    raise CardioDiTError(
        f"{checkpoint.file} holds the weights of no published network: {', '.join(list(weights)[:4])} …"
    )


def stage1_config(checkpoint: Checkpoint) -> Plain:
    """Return the config of a VQ-GAN whose levels all halve the volume."""
    weights = checkpoint.weights()
    widths: list[int] = []
    residual: list[int] = []
    layers = 0
    for index in range(count(weights, r"encoder\.blocks\.(\d+)\.")):
        if f"encoder.blocks.{index}.conv1.conv.weight" in weights:
            residual[len(widths) - 1 :] = [weights[f"encoder.blocks.{index}.conv1.conv.weight"].shape[0]]
            layers += len(widths) == 1
        elif (kernel := weights[f"encoder.blocks.{index}.conv.weight"]).shape[-1] == HALVING[1]:
            widths.append(kernel.shape[0])
    codes = weights[MARKS["stage1"]]
    params = {
        "in_channels": weights["encoder.blocks.0.conv.weight"].shape[1],
        "out_channels": weights["encoder.blocks.0.conv.weight"].shape[1],
        "num_channels": widths,
        "num_res_channels": residual,
        "num_res_layers": layers,
        "downsample_parameters": HALVING,
        "upsample_parameters": [*HALVING, 0],
        "num_embeddings": codes.shape[0],
        "embedding_dim": codes.shape[1],
    }
    critic = checkpoint.tensors("discriminator") if checkpoint.entries.get("discriminator") else {}
    return {"model": {"params": params}, **({"discriminator": {"params": _critic(critic)}} if critic else {})}


def _critic(weights: Weights) -> Plain:
    first = weights["initial_conv.conv.weight"]
    return {
        "num_channels": first.shape[0],
        "in_channels": first.shape[1],
        "out_channels": weights["final_conv.conv.weight"].shape[0],
        "num_layers_d": count(weights, r"(\d+)\.conv\."),
        "kernel_size": first.shape[-1],
        "norm": "BATCH" if any("running_mean" in name for name in weights) else "INSTANCE",
    }


def dit_config(checkpoint: Checkpoint) -> Plain:
    """Return the config of a VolDiT transformer for the published size of latents."""
    weights = checkpoint.weights()
    patches = weights[MARKS["dit"]]
    hidden, channels, *patch = patches.shape
    labels = len(weights.get("y_embedder.embedding_table.weight", ()))
    outputs = weights["final_layer.linear.weight"].shape[0]
    tokens = weights["pos_embed"].shape[1]
    size = _size_of(tokens, patch, checkpoint)
    params = {
        "input_size": size,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": hidden,
        "depth": count(weights, r"blocks\.(\d+)\."),
        "num_heads": DIT_HEADS.get(hidden, max(1, hidden // 64)),
        "num_classes": max(0, labels - 1),
        "class_dropout_prob": 0.1 if labels else 0.0,
        "learn_sigma": outputs == 2 * channels * torch.Size(patch).numel(),
    }
    return {"model": {"params": params}, "scheduler": SCHEDULER}


def _size_of(tokens: int, patch: list[int], checkpoint: Checkpoint) -> list[int]:
    """Return the size of the latents: the published one, or one of its proportions with this number of tokens."""
    for factor in (1, 2, 4, 8):
        size = [n // factor for n in LATENTS]
        if torch.Size([n // p for n, p in zip(size, patch, strict=True)]).numel() == tokens:
            return size
    raise CardioDiTError(
        f"{checkpoint.file} has {tokens} positions, so it was trained on latents of another shape than "
        f"{' × '.join(map(str, LATENTS))}. Convert it with its config: `cardiodit convert voldit --help`."
    )


def tgca_config(checkpoint: Checkpoint) -> Plain:
    """Return the config of an adapter that steers all blocks; its masks are numbered."""
    channels = checkpoint.weights()["condition_embedder.conv_in.conv.weight"].shape[1]
    return {"tgca": {"params": {"condition_channels": channels}}}


def unet_config(checkpoint: Checkpoint) -> Plain:
    """Return the config of a MedLoRD U-Net."""
    return {"model": {"params": _unet_params(checkpoint.weights())}, "scheduler": SCHEDULER}


def _unet_params(weights: Weights) -> Plain:
    levels = range(count(weights, r"down_blocks\.(\d+)\."))
    widths = [weights[f"down_blocks.{level}.resnets.0.conv1.conv.weight"].shape[0] for level in levels]
    attention = [f"down_blocks.{level}.attentions.0.norm.weight" in weights for level in levels]
    return {
        "in_channels": weights["conv_in.conv.weight"].shape[1],
        "num_channels": widths,
        "num_res_blocks": [count(weights, rf"down_blocks\.{level}\.resnets\.(\d+)\.") for level in levels],
        "attention_levels": attention,
        "num_head_channels": NARROW_HEAD if widths[0] < WIDE else WIDE_HEAD,
    }


def controlnet_config(checkpoint: Checkpoint, unet: Plain, factor: int) -> Plain:
    """Return the config of a ControlNet; its masks are numbered.

    Args:
        unet: config of the U-Net.
        factor: voxels per latent, which its mask network must divide by.
    """
    weights, base = checkpoint.weights(), unet["model"]["params"]
    embedding = "controlnet_cond_embedding"
    first = weights[f"{embedding}.conv_in.conv.weight"]
    strided = range(1, count(weights, rf"{embedding}\.blocks\.(\d+)\."), 2)
    widths = [first.shape[0], *(weights[f"{embedding}.blocks.{i}.conv.weight"].shape[0] for i in strided)]
    keys = [f"mask{number}" for number in range(first.shape[1])]
    own = weights["conv_in.conv.weight"].shape[0]
    params = {
        **base,
        "with_conditioning": True,
        "r": own / base["num_channels"][0],
        "conditioning_embedding_in_channels": len(keys),
        "conditioning_embedding_num_channels": widths,
        "initial_stride": max(1, factor // 2 ** (len(widths) - 1)),
    }
    return {"controlnet": {"condition_keys": keys, "params": params}}


def scale_of_codes(checkpoint: Checkpoint) -> float:
    """Return 1 / the standard deviation of the latents, from the codes and how often training chose each."""
    weights = checkpoint.weights()
    codes = weights[MARKS["stage1"]].double()
    share = weights["quantizer.quantizer.ema_cluster_size"].double()
    share = (share if share.sum() > 0 else torch.ones_like(share))[:, None]
    share = share / (share.sum() * codes.shape[1])
    mean = (share * codes).sum()
    return float(1 / (share * (codes - mean).square()).sum().sqrt())


def count(weights: Weights, pattern: str) -> int:
    """Return 1 + the largest number that a pattern finds at the start of the names."""
    found = [int(match[1]) for name in weights if (match := re.match(pattern, name))]
    return 1 + max(found, default=-1)
