"""MedLoRD's 3D U-Net, a denoiser of the latents of large CT volumes, built from MONAI's residual blocks.

Ronneberger et al. (arXiv:1505.04597) with the time embedding of Ho et al. (arXiv:2006.11239). Its encoder, the way down
and the middle, is shared with the ControlNet that steers it by masks (`controlnet_medlord.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput

from cardiodit.errors import CardioDiTError
from cardiodit.models.adapter_tgca import shrink
from cardiodit.models.clinical_conditions import ClinicalConditions, ConditionEmbedding
from cardiodit.models.loading import DenoiserMixin
from cardiodit.models.transformer_dit import PREDICTION_TYPES, DiTAttention

NORM_EPS = 1e-6
PerLevel = int | tuple[int, ...]  # one number for all levels, or one for each


@dataclass(frozen=True)
class Levels:
    """Shape of the levels of a U-Net, from the latents' own resolution to the coarsest.

    Args:
        widths: number of channels of each level.
        blocks: number of residual blocks of each level.
        head_dims: size of each level's attention heads; 0 for levels without attention.
        middle_head_dim: the same for the middle, which always has attention.
        groups: number of groups of all group normalisations.
        attention: makes the attention layer of a number of channels and a head size.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    head_dims: tuple[int, ...]
    middle_head_dim: int
    groups: int
    attention: Callable[[int, int, int], nn.Module]

    @classmethod
    def of(
        cls,
        widths: Sequence[int],
        blocks: PerLevel,
        has_attention: Sequence[bool],
        head_dim: PerLevel,
        groups: int,
        attention: Callable[[int, int, int], nn.Module],
    ) -> "Levels":
        """Check the shape that a config describes; the middle needs a head size even where no level has attention."""
        count = len(widths)
        each = {
            "layers_per_block": blocks if not isinstance(blocks, int) else (blocks,) * count,
            "attention_levels": has_attention,
            "attention_head_dim": head_dim if not isinstance(head_dim, int) else (head_dim,) * count,
        }
        for name, values in each.items():
            if len(values) != count:
                raise CardioDiTError(f"{name}={list(values)} must have one entry for each of the {count} levels.")
        dims = tuple(each["attention_head_dim"])
        for level, (width, dim) in enumerate(zip(widths, dims, strict=True)):
            if width % groups:
                raise CardioDiTError(
                    f"Level {level} has {width} channels, which {groups} groups of normalisation do not divide."
                )
            needs_heads = has_attention[level] or level == count - 1
            if dim < 1 or (needs_heads and width % dim):
                raise CardioDiTError(f"Level {level} has {width} channels, which heads of {dim} do not divide.")
        used = tuple(dim if on else 0 for dim, on in zip(dims, has_attention, strict=True))
        return cls(tuple(widths), tuple(each["layers_per_block"]), used, dims[-1], groups, attention)


def residual_block(in_channels: int, out_channels: int, time_width: int, groups: int) -> nn.Module:
    """Return MONAI's residual block, conditioned on time, whose second convolution starts at zero."""
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock  # takes a second to import

    return DiffusionUNetResnetBlock(3, in_channels, time_width, out_channels, norm_num_groups=groups, norm_eps=NORM_EPS)


def as_tokens(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, *size) → (B, voxels, C)."""
    return volume.flatten(2).transpose(1, 2)


def as_volume(tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(B, voxels, C) → (B, C, *size)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


class UNetAttention(nn.Module):
    """Self-attention over all voxels, without a projection of its output: the published code never applies its own."""

    def __init__(self, channels: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.attn = DiTAttention(channels, channels // head_dim)
        self.attn.to_out = nn.ModuleList()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended = self.attn(as_tokens(self.norm(hidden_states)))
        return hidden_states + as_volume(attended, hidden_states.shape[2:])


class Downsampler(nn.Module):
    """Halve the size with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv3d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return shrink(self.op, hidden_states)


class Upsampler(nn.Module):
    """Double the size by repetition, and smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class UNetBlock(nn.Module):
    """A residual block, followed by attention if its level has it.

    Args:
        in_channels, out_channels: number of channels.
        levels: shape of the U-Net.
        head_dim: size of an attention head; 0 for no attention.
    """

    def __init__(self, in_channels: int, out_channels: int, levels: Levels, head_dim: int) -> None:
        super().__init__()
        self.resnet = residual_block(in_channels, out_channels, 4 * levels.widths[0], levels.groups)
        self.attention = levels.attention(out_channels, head_dim, levels.groups) if head_dim else None

    def forward(self, time: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Transform the concatenation of one or two states (B, C, *size)."""
        hidden_states = self.resnet(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), time)
        return hidden_states if self.attention is None else self.attention(hidden_states)


class UNetLevel(nn.Module):
    """Blocks of one resolution; `DownLevel` and `UpLevel` say what they are given.

    Args:
        channels: number of input and output channels of each block.
        levels: shape of the U-Net.
        head_dim: size of the attention heads; 0 for no attention.
    """

    _gradient_checkpointing_func: Any  # set by diffusers

    def __init__(self, channels: Sequence[tuple[int, int]], levels: Levels, head_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(UNetBlock(*widths, levels, head_dim) for widths in channels)
        self.gradient_checkpointing = False

    def _run(self, block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


class DownLevel(UNetLevel):
    """A level of the way down; all but the last end with a downsampler."""

    def __init__(self, channels: Sequence[tuple[int, int]], levels: Levels, head_dim: int, is_last: bool) -> None:
        super().__init__(channels, levels, head_dim)
        self.downsampler = None if is_last else Downsampler(channels[-1][1])

    def forward(self, hidden_states: torch.Tensor, time: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of every block and of the downsampler; the last one goes to the next level."""
        outputs = [hidden_states]
        for block in self.blocks:
            outputs.append(self._run(block, time, outputs[-1]))
        if self.downsampler is not None:
            outputs.append(self.downsampler(outputs[-1]))
        return outputs[1:]


class UpLevel(UNetLevel):
    """A level of the way up; all but the last end with an upsampler."""

    def __init__(self, channels: Sequence[tuple[int, int]], levels: Levels, head_dim: int, is_last: bool) -> None:
        super().__init__(channels, levels, head_dim)
        self.upsampler = None if is_last else Upsampler(channels[-1][1])

    def forward(self, hidden_states: torch.Tensor, time: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Transform with one state of the way down for each block, in the order of their use."""
        for block, skip in zip(self.blocks, skips, strict=True):
            hidden_states = self._run(block, time, hidden_states, skip)
        return hidden_states if self.upsampler is None else self.upsampler(hidden_states)


class UNetMiddle(nn.Module):
    """The coarsest resolution: a residual block, attention, a residual block."""

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        width, time_width = levels.widths[-1], 4 * levels.widths[0]
        self.resnet_1 = residual_block(width, width, time_width, levels.groups)
        self.attention = levels.attention(width, levels.middle_head_dim, levels.groups)
        self.resnet_2 = residual_block(width, width, time_width, levels.groups)

    def forward(self, hidden_states: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.resnet_2(self.attention(self.resnet_1(hidden_states, time)), time)


class UNetEncoderModel(DenoiserMixin):
    """The parts that the U-Net and its ControlNet share: time embedding, way down and middle."""

    _gradient_checkpointing_func: Any  # set by diffusers

    axis_names = ("height", "width", "depth")

    _supports_gradient_checkpointing = True
    _no_split_modules = ["UNetBlock", "UNetMiddle"]
    _skip_layerwise_casting_patterns = ["time_embed", "condition_embed", "norm", "^conv_in", "^out", "^controlnet_"]
    _keep_in_fp32_modules = ["time_embed", "condition_embed"]

    def _build_encoder(self, in_channels: int, levels: Levels) -> None:
        first = levels.widths[0]
        self.conv_in = nn.Conv3d(in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(first, 4 * first)
        self.down_blocks = nn.ModuleList()
        for level, (width, count) in enumerate(zip(levels.widths, levels.blocks, strict=True)):
            before = levels.widths[max(0, level - 1)]
            channels = [(before if block == 0 else width, width) for block in range(count)]
            is_last = level == len(levels.widths) - 1
            self.down_blocks.append(DownLevel(channels, levels, levels.head_dims[level], is_last))
        self.middle_block = UNetMiddle(levels)
        self.gradient_checkpointing = False

    @property
    def token_size(self) -> tuple[int, ...]:
        """Latents per voxel of the coarsest level along each axis, of which sizes must be multiples."""
        return (2 ** (len(self.config.attention_levels) - 1),) * len(self.axis_names)

    def grid_of(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the coarsest level for latents of this size, or raise if an axis cannot be halved."""
        for name, length, factor in zip(self.axis_names, size, self.token_size, strict=True):
            if length % factor or length < factor:
                raise CardioDiTError(
                    f"The latent's {name} axis has size {length}, which this U-Net cannot halve "
                    f"{len(self.config.attention_levels) - 1} times: {name} must be a multiple of {factor}."
                )
        return tuple(length // factor for length, factor in zip(size, self.token_size, strict=True))

    def embed_time(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """Return the time embedding of each sample, (B, 4 × first width)."""
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        features = self.time_proj(timestep).to(self.time_embed.linear_1.weight.dtype)  # float32
        return self.time_embed(features).to(sample.dtype)

    def encode(self, hidden_states: torch.Tensor, time: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return all states of the way down, which begin with the input, and the middle."""
        skips = [hidden_states]
        for level in self.down_blocks:
            skips += level(skips[-1], time)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return skips, self._gradient_checkpointing_func(self.middle_block, skips[-1], time)
        return skips, self.middle_block(skips[-1], time)

    def compile_repeated_blocks(self, *arguments: Any, **settings: Any) -> None:
        """Compile the model as a whole: the levels of a U-Net differ, so it has no blocks that repeat."""
        self.compile(*arguments, **settings)

    def enable_cache(self, config: Any) -> None:
        raise CardioDiTError(
            "diffusers' caches between sampling steps skip blocks of transformers, which a U-Net does not have. Sample "
            "with fewer steps instead."
        )

    def _check_input(self, sample: torch.Tensor) -> None:
        if sample.ndim != 2 + len(self.axis_names):
            raise CardioDiTError(
                f"{type(self).__name__} expects (batch, channel, {', '.join(self.axis_names)}), "
                f"got {sample.ndim} axes: {tuple(sample.shape)}."
            )
        if sample.shape[1] != self.config.in_channels:
            raise CardioDiTError(
                f"This model takes latents of {self.config.in_channels} channels, got {sample.shape[1]}: "
                f"{tuple(sample.shape)}."
            )
        self.grid_of(sample.shape[2:])


class MedLoRDUNetModel(UNetEncoderModel):
    """MedLoRD's denoiser over volume latents `(B, C, H, W, D)`, in NIfTI order with the slice axis last.

    Args:
        sample_size: size of the training latents along height, width and depth; other multiples of
            2^(levels - 1) may be used at any call. In training, that of the latents by default.
        in_channels: number of latent channels; in training, that of the latents by default.
        block_out_channels: number of channels of each level; every level but the last halves the latents.
        layers_per_block: number of residual blocks of each level on the way down; the way up has one more.
        attention_levels: which levels have attention; the middle always has.
        attention_head_dim: size of an attention head: one number, or one for each level.
        norm_num_groups: number of groups of group normalisation, which must divide all numbers of channels.
        prediction_type: training target of the model: "v_prediction", "epsilon" or "sample".
        training_precision: precision of the training, "float32", "bfloat16" or "float16"; None if unknown.
        conditions: clinical conditions by name, see `DiTTransformerModel`; None for none, as published.
        condition_dropout_prob: probability of dropping each clinical condition of a sample in training.
        unconditional_prob: probability of dropping all clinical conditions of a sample together.
    """

    null_label = None  # the published model has no class labels

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, ...] = (64, 64, 32),
        in_channels: int = 8,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 512),
        layers_per_block: int | tuple[int, ...] = 2,
        attention_levels: tuple[bool, ...] = (False, False, True, True),
        attention_head_dim: int | tuple[int, ...] = 32,
        norm_num_groups: int = 32,
        prediction_type: str = "v_prediction",
        training_precision: str | None = None,
        conditions: dict[str, Any] | None = None,
        condition_dropout_prob: float = 0.0,
        unconditional_prob: float = 0.0,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise CardioDiTError(f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}.")
        levels = Levels.of(
            block_out_channels, layers_per_block, attention_levels, attention_head_dim, norm_num_groups, UNetAttention
        )
        self._build_encoder(in_channels, levels)
        self.grid_of(sample_size)  # fails early
        self.up_blocks = nn.ModuleList()
        skips = skip_channels(levels.widths, levels.blocks)
        width = levels.widths[-1]
        for level in reversed(range(len(levels.widths))):
            channels = []
            for _ in range(levels.blocks[level] + 1):
                channels.append((width + skips.pop(), levels.widths[level]))
                width = levels.widths[level]
            self.up_blocks.append(UpLevel(channels, levels, levels.head_dims[level], is_last=level == 0))
        out = nn.Conv3d(width, in_channels, 3, padding=1)
        for parameter in out.parameters():
            nn.init.zeros_(parameter)
        self.out = nn.Sequential(nn.GroupNorm(norm_num_groups, width, NORM_EPS), out)
        self.conditions, self.condition_embed = ClinicalConditions.of_config(conditions), None
        if self.conditions is not None:
            self.condition_embed = ConditionEmbedding(self.conditions, 4 * levels.widths[0])
            self.condition_embed.initialise()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
        conditions: torch.Tensor | None = None,
    ) -> UNet3DConditionOutput | tuple[torch.Tensor]:
        """Predict the training target (`prediction_type`) from noisy latents.

        Args:
            sample: noisy latents `(B, C, *size)`; the size may differ from that in training.
            timestep: one number, or one for each sample `(B,)`.
            down_block_additional_residuals: what a ControlNet adds to each state of the way down.
            mid_block_additional_residual: what a ControlNet adds to the middle.
            return_dict: return a `UNet3DConditionOutput` (default) or a tuple.
            conditions: clinical conditions `(B, columns)`, NaN where one is not given; default: none is given.

        Returns:
            `sample`, with the shape of the input.
        """
        self._check_input(sample)
        time = self.embed_time(sample, timestep)
        if self.condition_embed is not None:
            time = time + self.condition_embed(conditions, time)
        elif conditions is not None:
            raise CardioDiTError("conditions were given, but this model was trained without clinical conditions.")
        skips, hidden_states = self.encode(self.conv_in(sample), time)
        if down_block_additional_residuals is not None:
            skips = [skip + more for skip, more in zip(skips, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            hidden_states = hidden_states + mid_block_additional_residual
        level: Any
        for level in self.up_blocks:
            used = [skips.pop() for _ in level.blocks]
            hidden_states = level(hidden_states, time, used)
        sample = self.out(hidden_states)  # the published head has no activation
        return UNet3DConditionOutput(sample=sample) if return_dict else (sample,)


def skip_channels(widths: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """Return the number of channels of each state of the way down, beginning with the input's."""
    channels = [widths[0]]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        channels += [width] * (count + (level < len(widths) - 1))
    return channels
