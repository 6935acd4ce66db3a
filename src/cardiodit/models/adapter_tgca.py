"""TGCA, VolDiT's timestep-gated control adapter: masks steer a frozen transformer, over three axes or four.

Masks become tokens of the transformer's grid once; at every step a gate that knows the time lets so much of them into
each block, before its attention. Over cine a mask is looked at slice by slice, over rows, columns and frames, as the VQ
model looks at images, so that one adapter serves both transformers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config

from cardiodit.errors import CardioDiTError
from cardiodit.models.conditions import Conditions
from cardiodit.models.loading import StrictModelMixin
from cardiodit.models.transformer_dit import DiTTransformerModel

SEEN_AT_ONCE = 3  # axes of a convolution; further ones, a cine's slices, are looked at one by one
PUBLISHED_FIRST_SCALE = 0.1

Controls = list[torch.Tensor | None]


class TGCAAdapterModel(StrictModelMixin):
    """The adapter alone; its base is a `DiT3DTransformerModel` or a `DiT4DTransformerModel`.

    Args:
        hidden_size: width of the base's tokens.
        num_layers: blocks of the base.
        num_axes: of the base's latents, 3 or 4.
        condition_channels: of the masks, see `cardiodit.models.conditions`.
        condition_keys: names of the masks, as columns of a manifest have them.
        condition_labels: of each mask, the labels that become channels; None where a mask is a channel as it is.
        inject_layers: blocks that are steered: None for all, a number for the last so many, or a list.
        channels: widths while the masks are made smaller; each level but the first one has a stride.
        strides: of these levels, along the last three axes.
        normalise_control: as the released code has it: what enters a block is normalised first, so that neither gate
            nor scale has an effect. For the authors' checkpoints only.
        fingerprint: of the base that it was trained on, see `fingerprint_of`.
        other_labels: what becomes of labels that are not listed: "refuse" makes them an error, "background" 0.
    """

    _keep_in_fp32_modules = ["time_gate"]

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_axes: int = 3,
        condition_channels: int = 1,
        condition_keys: list[str] | None = None,
        condition_labels: list[list[int]] | None = None,
        inject_layers: int | list[int] | None = None,
        channels: tuple[int, ...] = (8, 16, 32, 64, 128),
        strides: Sequence[Sequence[int]] = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        normalise_control: bool = False,
        fingerprint: str | None = None,
        other_labels: str = "refuse",
    ) -> None:
        super().__init__()
        if len(strides) != len(channels) - 1:
            raise CardioDiTError(
                f"strides={strides} must have one entry for each of channels={channels} but the first."
            )
        self.conditions = Conditions(
            tuple(condition_keys or (f"mask{i}" for i in range(condition_channels))),
            None if condition_labels is None else tuple(map(tuple, condition_labels)),
            other_labels,
        )
        if self.conditions.channels != condition_channels:
            raise CardioDiTError(
                f"condition_channels={condition_channels}, but the masks {', '.join(self.conditions.keys)} become "
                f"{self.conditions.channels} channels."
            )
        self.injected = injected_layers(inject_layers, num_layers)
        self.condition_embed = ConditionEmbed(condition_channels, hidden_size, channels, strides)
        self.time_gate = nn.Linear(hidden_size, 1)
        first = PUBLISHED_FIRST_SCALE if normalise_control else 1.0
        self.scales = nn.ParameterList(nn.Parameter(torch.full((1,), first)) for _ in self.injected)
        nn.init.zeros_(self.time_gate.weight)
        nn.init.zeros_(self.time_gate.bias)

    def embed(self, condition: torch.Tensor, base: DiTTransformerModel, grid: Sequence[int]) -> torch.Tensor:
        """Masks `(B, K, *size)` → tokens `(B, L, hidden)` of the base's grid, the same at every step."""
        if condition.ndim != 2 + self.config.num_axes or condition.shape[1] != self.config.condition_channels:
            keys = self.config.condition_keys or f"{self.config.condition_channels} channels"
            raise CardioDiTError(
                f"The adapter takes masks (batch, {keys}, {', '.join(base.axis_names)}), got {tuple(condition.shape)}."
            )
        folded = condition.flatten(2, -SEEN_AT_ONCE - 1).movedim(2, 1) if condition.ndim > 5 else condition[:, None]
        slices = folded.shape[1]
        features = self.condition_embed(folded.flatten(0, 1))  # (B·D, hidden, h, w, t)
        if tuple(features.shape[2:]) != tuple(grid[-SEEN_AT_ONCE:]):
            features = F.interpolate(features, tuple(grid[-SEEN_AT_ONCE:]), mode="trilinear", align_corners=False)
        features = features.unflatten(0, (-1, slices))  # (B, D, hidden, h, w, t)
        if slices != (rows := math.prod(grid[:-SEEN_AT_ONCE])):
            features = features.unflatten(1, (rows, -1)).mean(dim=2)
        tokens = features.movedim(2, -1).flatten(1, -2)
        if self.config.normalise_control:
            return tokens
        return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)  # gate and scale alone say how much

    def forward(self, tokens: torch.Tensor, time: torch.Tensor, conditioning_scale: float = 1.0) -> Controls:
        """What is added in each block of the base.

        Args:
            tokens: of the masks, from `embed`.
            time: `(B, hidden)`, the base's `embed_time`.
            conditioning_scale: how much of it; 0 is the base alone.
        """
        gate = self.gate(time).to(tokens.dtype)[:, :, None]
        controls: Controls = [None] * self.config.num_layers
        for layer, scale in zip(self.injected, self.scales, strict=True):
            control = scale * gate * tokens
            if self.config.normalise_control:
                control = F.layer_norm(control, control.shape[-1:], eps=1e-6)
            controls[layer] = control * conditioning_scale if conditioning_scale != 1.0 else control
        return controls

    def gate(self, time: torch.Tensor) -> torch.Tensor:
        """How open each sample is at its time, `(B, 1)` in 0 to 1."""
        return torch.sigmoid(self.time_gate(time.to(self.time_gate.weight.dtype)))


class ConditionEmbed(nn.Module):
    """Masks → features, halved again and again; nothing comes out before training."""

    def __init__(
        self, condition_channels: int, hidden_size: int, channels: Sequence[int], strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(condition_channels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider, stride in zip(channels[:-1], channels[1:], strides, strict=True):
            self.blocks.append(nn.Conv3d(width, width, 3, padding=1))
            h, w, t = stride
            self.blocks.append(nn.Conv3d(width, wider, 3, stride=(h, w, t), padding=1))
        for conv in (self.conv_in, *self.blocks):
            # By PyTorch's own draw, 0.0004 of what differs between two masks comes through.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.conv_out = nn.Conv3d(channels[-1], hidden_size, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        features = F.silu(self.conv_in(masks))
        for conv in self.blocks:
            features = F.silu(shrink(conv, features))
        return self.conv_out(features)


def shrink(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """A convolution with a stride.

    On CPU, torch 2.13 leaves what it computes in bfloat16 unwritten where a stride makes the last axis 1 long, under
    autocast, too. So one place more is computed there, and left away.
    """
    length, stride = x.shape[-1], conv.stride[-1]
    if x.device.type != "cpu" or stride == 1 or length > stride:
        return conv(x)
    return conv(F.pad(x, (0, 2 * stride - length)))[..., :1]


def injected_layers(asked: int | Sequence[int] | None, num_layers: int) -> list[int]:
    """Numbers of the blocks: None for all, a number for the last so many, or a list."""
    if asked is None:
        return list(range(num_layers))
    layers = list(range(num_layers))[-asked:] if isinstance(asked, int) and 0 < asked <= num_layers else asked
    if isinstance(layers, int) or not layers or not set(layers) <= set(range(num_layers)):
        raise CardioDiTError(
            f"inject_layers={asked}: expected null, how many of the last of the {num_layers} blocks, or a list of "
            f"their numbers from 0 to {num_layers - 1}."
        )
    return sorted(set(layers))
