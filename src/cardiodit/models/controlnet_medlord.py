"""MedLoRD's ControlNet, a narrow copy of the U-Net's encoder with which masks steer the frozen U-Net.

Zhang et al. (arXiv:2302.05543). Masks at image resolution are embedded once, added to the latents, and carried along at
every step; what is learned is added to all states of the U-Net's way down and to its middle.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from cardiodit.errors import CardioDiTError
from cardiodit.models.adapter_tgca import ConditionEmbed, check_fingerprint
from cardiodit.models.conditions import Conditions
from cardiodit.models.transformer_dit import DiTAttention
from cardiodit.models.unet_medlord import (
    NORM_EPS,
    Levels,
    MedLoRDUNetModel,
    UNetEncoderModel,
    as_tokens,
    as_volume,
    skip_channels,
)


class ControlTransformerBlock(nn.Module):
    """Two self-attentions and a gated MLP, each with layer normalisation before it."""

    def __init__(self, dim: int, heads: int) -> None:
        from monai.networks.blocks import MLPBlock  # takes a second to import

        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = DiTAttention(dim, heads, qkv_bias=False)
        self.attn2 = DiTAttention(dim, heads, qkv_bias=False)
        self.ff = MLPBlock(dim, 4 * dim, act="GEGLU")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens))
        return tokens + self.ff(self.norm3(tokens))


class ControlAttention(nn.Module):
    """The attention layer of the ControlNet: a transformer block over all voxels."""

    def __init__(self, channels: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.proj_in = nn.Conv3d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([ControlTransformerBlock(channels, channels // head_dim)])
        self.proj_out = zero_projection(channels, channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = as_tokens(self.proj_in(self.norm(hidden_states)))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return hidden_states + self.proj_out(as_volume(tokens, hidden_states.shape[2:]))


class MedLoRDControlNetModel(UNetEncoderModel):
    """The ControlNet, without its base, a `MedLoRDUNetModel`.

    Args:
        in_channels: number of latent channels of the base.
        block_out_channels: number of channels of each level of the base.
        layers_per_block: number of residual blocks of each level of the base.
        attention_levels: which levels have attention.
        attention_head_dim: size of an attention head: one number, or one for each level.
        norm_num_groups: number of groups of group normalisation, which must divide the ControlNet's channels.
        width_ratio: the ControlNet's channels as a share of the base's.
        condition_channels: number of mask channels, see `Conditions`.
        condition_keys: names of the masks, which are columns of a manifest.
        condition_labels: labels of each mask that become channels of their own; None if each mask is one channel.
        condition_widths: number of channels of each level of the network that embeds the masks; every level but the
            first halves them.
        initial_stride: stride of the first of its levels. All strides together must be the autoencoder's factor.
        fingerprint: fingerprint of the base that the ControlNet was trained with, see `fingerprint_of`.
        other_labels: treatment of labels that are not listed: "refuse" raises an error, "background" sets them to 0.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512),
        layers_per_block: int | tuple[int, ...] = 2,
        attention_levels: tuple[bool, ...] = (False, False, True, True),
        attention_head_dim: int | tuple[int, ...] = 32,
        norm_num_groups: int = 32,
        width_ratio: float = 0.5,
        condition_channels: int = 1,
        condition_keys: tuple[str, ...] | None = None,
        condition_labels: tuple[tuple[int, ...], ...] | None = None,
        condition_widths: tuple[int, ...] = (32, 64),
        initial_stride: int = 2,
        fingerprint: str | None = None,
        other_labels: str = "refuse",
    ) -> None:
        super().__init__()
        shape = (layers_per_block, attention_levels, attention_head_dim, norm_num_groups, ControlAttention)
        widths = [max(1, int(width_ratio * width)) for width in block_out_channels]
        levels = Levels.of(widths, *shape)
        self.conditions = Conditions.of_config(condition_channels, condition_keys, condition_labels, other_labels)
        self._build_encoder(in_channels, levels)
        strides = [(2, 2, 2)] * (len(condition_widths) - 1)
        self.condition_embed = ConditionEmbed(condition_channels, widths[0], condition_widths, strides, initial_stride)
        self.controlnet_down_blocks = nn.ModuleList(
            zero_projection(own, theirs)
            for own, theirs in zip(
                skip_channels(widths, levels.blocks), skip_channels(block_out_channels, levels.blocks), strict=True
            )
        )
        self.controlnet_mid_block = zero_projection(widths[-1], block_out_channels[-1])

    def check_base(self, unet: MedLoRDUNetModel) -> None:
        """Raise unless the ControlNet fits a U-Net: its shape, and the weights that it was trained with."""
        names = ("in_channels", "block_out_channels", "layers_per_block")
        if different := [name for name in names if _listed(self.config[name]) != _listed(unet.config[name])]:
            described = ", ".join(f"{name} {self.config[name]}, not {unet.config[name]}" for name in different)
            raise CardioDiTError(f"The ControlNet was made for another U-Net than this one: {described}.")
        check_fingerprint(self.config.fingerprint, unet, "ControlNet", "U-Net")

    @apply_forward_hook
    def embed(self, condition: torch.Tensor, base: MedLoRDUNetModel, grid: Sequence[int]) -> torch.Tensor:
        """Embed masks `(B, K, *voxels)` at the size of the latents on the base's grid, which serves for all steps."""
        size = self.embedded_shape(base, grid)[1:]
        if condition.ndim != 2 + len(self.axis_names) or condition.shape[1] != self.config.condition_channels:
            keys = self.config.condition_keys or f"{self.config.condition_channels} channels"
            raise CardioDiTError(
                f"The ControlNet takes masks (batch, {keys}, {', '.join(self.axis_names)}), "
                f"got {tuple(condition.shape)}."
            )
        embedded = self.condition_embed(condition)
        if tuple(embedded.shape[2:]) != size:
            raise CardioDiTError(
                f"The ControlNet embeds masks of {tuple(condition.shape[2:])} at {tuple(embedded.shape[2:])}, but the "
                f"latents are {size}: condition_widths and initial_stride do not fit the autoencoder."
            )
        return embedded

    def embedded_shape(self, base: MedLoRDUNetModel, grid: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one sample's embedded masks."""
        size = (length * factor for length, factor in zip(grid, base.token_size, strict=True))
        return (self.condition_embed.conv_out.out_channels, *size)

    def control(
        self,
        embedded: torch.Tensor,
        base: MedLoRDUNetModel,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditioning_scale: float = 1.0,
    ) -> dict[str, Any]:
        """Return the arguments by which embedded masks steer a call of the U-Net."""
        down, middle = self(sample, timestep, embedded, conditioning_scale, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        embedded_condition: torch.Tensor,
        conditioning_scale: float = 1.0,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """Return what is added to the states of the U-Net's way down and to its middle.

        Args:
            sample: noisy latents `(B, C, *size)`.
            timestep: one number, or one for each sample `(B,)`.
            embedded_condition: embedded masks, from `embed`.
            conditioning_scale: strength of the control; 0 leaves the base alone.
            return_dict: return a `ControlNetOutput` (default) or a tuple.
        """
        self._check_input(sample)
        time = self.embed_time(sample, timestep)
        skips, middle = self.encode(self.conv_in(sample) + embedded_condition, time)
        down = [
            project(skip) * conditioning_scale for project, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        ]
        middle = self.controlnet_mid_block(middle) * conditioning_scale
        if not return_dict:
            return down, middle
        return ControlNetOutput(down_block_res_samples=tuple(down), mid_block_res_sample=middle)


def zero_projection(in_channels: int, out_channels: int) -> nn.Conv3d:
    """Return a 1 × 1 × 1 convolution that starts at zero, so that an untrained ControlNet changes nothing."""
    conv = nn.Conv3d(in_channels, out_channels, 1)
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
