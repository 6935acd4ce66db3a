"""TGCA, VolDiT's timestep-gated control adapter, with which masks steer a frozen transformer over three or four axes.

Masks are embedded once as tokens of the transformer's grid. At every step a gate that depends on the timestep scales
what is added to each block before its attention. A cine's mask is embedded slice by slice, over rows, columns and
frames, as the VQ model encodes images, so that one adapter serves both transformers.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.utils import logging
from diffusers.utils.accelerate_utils import apply_forward_hook

from cardiodit.errors import CardioDiTError
from cardiodit.models.conditions import Conditions
from cardiodit.models.loading import StrictModelMixin
from cardiodit.models.transformer_dit import DiTTransformerModel

logger = logging.get_logger(__name__)

SEEN_AT_ONCE = 3  # axes of a convolution; the slices of a cine are embedded one by one
PUBLISHED_INITIAL_SCALE = 0.1

FINGERPRINT_VERSION = 2  # version 1 could not tell tensors of the same size apart
FINGERPRINT_NUMBERS = 64  # the distance of two fingerprints is that of the weights within 9%
# Rounding to bfloat16 moves weights by 0.0017 to 0.0019 of their norm, to float16 by 0.0002; one step of AdamW at 2e-4
# by 0.004 and more, 24 steps by 0.05. Training that moves them by less than TOLERANCE, such as 24 steps at 1e-5, cannot
# be told apart from rounding.
TOLERANCE = 0.003
# Quantising the phantom model to 8 bits moves its weights by 0.004, to 4 bits by 0.06, and coarser quantisation by
# more, which much fine-tuning does not exceed. Exchanging two blocks moves them by 0.7; another model differs by 1.4.
QUANTISED_TOLERANCE = 0.4
SMALLEST = 2**-14  # float16 represents smaller values less precisely or not at all


@dataclass(frozen=True)
class Controls(Sequence):
    """The additions to each block of the base, or None. They are computed one by one: all at once need much memory.

    Args:
        tokens: embedded masks `(B, L, hidden)`.
        factors: gate times scale of each steered block, by its number, each `(B, 1, 1)`.
        blocks: number of blocks of the base.
        normalise: whether each control is normalised.
        conditioning_scale: strength of all.
    """

    tokens: torch.Tensor
    factors: dict[int, torch.Tensor]
    blocks: int
    normalise: bool
    conditioning_scale: float

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, block: Any) -> Any:
        if not 0 <= block < self.blocks:
            raise IndexError(block)
        if block not in self.factors:
            return None
        control = self.factors[block] * self.tokens
        if self.normalise:
            control = F.layer_norm(control, control.shape[-1:], eps=1e-6)
        return control * self.conditioning_scale if self.conditioning_scale != 1.0 else control


class TGCAAdapterModel(StrictModelMixin):
    """The adapter, without its base: a `DiT3DTransformerModel` or `DiT4DTransformerModel`.

    Args:
        hidden_size: width of the base's tokens.
        num_layers: number of blocks of the base.
        num_axes: number of axes of the base's latents, 3 or 4.
        condition_channels: number of mask channels, see `Conditions`.
        condition_keys: names of the masks, which are columns of a manifest.
        condition_labels: labels of each mask that become channels of their own; None if each mask is one channel.
        inject_layers: transformer blocks to steer: a number n for the last n, or a list of block numbers. Default: all.
        channels: number of channels of each level of the network that embeds the masks.
        strides: stride of every level but the first along the last three axes; in training, strides that fit the base
            are chosen by default.
        normalise_control: apply layer normalisation to the adapter's output before each block, as the released code
            does, although that cancels the effect of gate and scale; only for the authors' checkpoints.
        fingerprint: fingerprint of the base that the adapter was trained with, see `fingerprint_of`.
        other_labels: treatment of labels that are not listed: "refuse" raises an error, "background" sets them to 0.
    """

    _keep_in_fp32_modules = ["time_gate"]

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_axes: int = 3,
        condition_channels: int = 1,
        condition_keys: tuple[str, ...] | None = None,
        condition_labels: tuple[tuple[int, ...], ...] | None = None,
        inject_layers: int | tuple[int, ...] | None = None,
        channels: tuple[int, ...] = (8, 16, 32, 64, 128),
        strides: tuple[tuple[int, ...], ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        normalise_control: bool = False,
        fingerprint: str | None = None,
        other_labels: str = "refuse",
    ) -> None:
        super().__init__()
        if len(strides) != len(channels) - 1:
            raise CardioDiTError(
                f"strides={strides} must have one entry for each of channels={channels} except the first."
            )
        self.conditions = Conditions.of_config(condition_channels, condition_keys, condition_labels, other_labels)
        self.injected = injected_layers(inject_layers, num_layers)
        self.condition_embed = ConditionEmbed(condition_channels, hidden_size, channels, strides)
        self.time_gate = nn.Linear(hidden_size, 1)
        scale = PUBLISHED_INITIAL_SCALE if normalise_control else 1.0
        self.scales = nn.ParameterList(nn.Parameter(torch.full((1,), scale)) for _ in self.injected)
        nn.init.zeros_(self.time_gate.weight)
        nn.init.zeros_(self.time_gate.bias)

    def check_base(self, transformer: DiTTransformerModel) -> None:
        """Raise unless the adapter fits a transformer: its shape, and the weights that it was trained with."""
        base = transformer.config
        wanted = (base.num_attention_heads * base.attention_head_dim, base.num_layers, len(transformer.axis_names))
        if (self.config.hidden_size, self.config.num_layers, self.config.num_axes) != wanted:
            raise CardioDiTError(
                f"The adapter was made for a transformer of width {self.config.hidden_size}, {self.config.num_layers} "
                f"blocks and {self.config.num_axes} axes; this one has {wanted[0]}, {wanted[1]} and {wanted[2]}."
            )
        check_fingerprint(self.config.fingerprint, transformer, "adapter", "transformer")

    @apply_forward_hook
    def embed(self, condition: torch.Tensor, base: DiTTransformerModel, grid: Sequence[int]) -> torch.Tensor:
        """Embed masks `(B, K, *size)` as tokens `(B, L, hidden)` of the base's grid, which serve for all steps."""
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
        return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)  # only gate and scale set the strength

    def forward(self, tokens: torch.Tensor, time: torch.Tensor, conditioning_scale: float = 1.0) -> Controls:
        """Return what is added in each block of the base, or None for blocks that are not steered.

        Args:
            tokens: embedded masks, from `embed`.
            time: time embedding `(B, hidden)`, from the base's `embed_time`.
            conditioning_scale: strength of the control; 0 leaves the base alone.
        """
        gate = self.gate(time).to(tokens.dtype)[:, :, None]
        factors = {layer: scale * gate for layer, scale in zip(self.injected, self.scales, strict=True)}
        normalise = self.config.normalise_control
        return Controls(tokens, factors, self.config.num_layers, normalise, conditioning_scale)

    def embedded_shape(self, base: DiTTransformerModel, grid: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of one sample's embedded masks."""
        return math.prod(grid), self.config.hidden_size

    def control(
        self,
        embedded: torch.Tensor,
        base: DiTTransformerModel,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning_scale: float = 1.0,
    ) -> dict[str, Any]:
        """Return the arguments by which embedded masks steer a call of the transformer."""
        return {"block_controls": self(embedded, base.embed_time(latents, timestep), conditioning_scale)}

    def gate(self, time: torch.Tensor) -> torch.Tensor:
        """Return the gate of each sample at its timestep, `(B, 1)` between 0 and 1."""
        return torch.sigmoid(self.time_gate(time.to(self.time_gate.weight.dtype)))


class ConditionEmbed(nn.Module):
    """Convolutions that embed masks at the resolution of the latents; the output is zero before training."""

    def __init__(
        self,
        condition_channels: int,
        hidden_size: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        initial_stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(condition_channels, channels[0], 3, stride=initial_stride, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider, stride in zip(channels[:-1], channels[1:], strides, strict=True):
            self.blocks.append(nn.Conv3d(width, width, 3, padding=1))
            h, w, t = stride
            self.blocks.append(nn.Conv3d(width, wider, 3, stride=(h, w, t), padding=1))
        for conv in (self.conv_in, *self.blocks):
            # With PyTorch's default initialisation only 0.0004 of the difference between two masks would be kept.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.conv_out = nn.Conv3d(channels[-1], hidden_size, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        features = F.silu(shrink(self.conv_in, masks))
        for conv in self.blocks:
            features = F.silu(shrink(conv, features))
        return self.conv_out(features)


def shrink(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply a convolution with a stride.

    In bfloat16 on the CPU, also under autocast, torch 2.13 does not write the result if a stride makes the last axis 1
    long. There, one more position is computed and dropped.
    """
    length, stride = x.shape[-1], conv.stride[-1]
    if x.device.type != "cpu" or stride == 1 or length > stride:
        return conv(x)
    return conv(F.pad(x, (0, 2 * stride - length)))[..., :1]


def injected_layers(inject_layers: int | Sequence[int] | None, num_layers: int) -> list[int]:
    """Return the numbers of the steered blocks: None means all, a number the last blocks, or they are listed."""
    numbers = list(range(num_layers))
    if inject_layers is None:
        return numbers
    if isinstance(inject_layers, int):
        layers: Sequence[int] = numbers[-inject_layers:] if 0 < inject_layers <= num_layers else []
    else:
        layers = inject_layers
    if not layers or not set(layers) <= set(numbers):
        raise CardioDiTError(
            f"inject_layers={inject_layers}: expected null, a number of blocks from 1 to {num_layers} counted from the "
            f"last, or a list of block numbers from 0 to {num_layers - 1}."
        )
    return sorted(set(layers))


@torch.no_grad()
def fingerprint_of(model: nn.Module) -> str:
    """Return a few numbers that identify the weights of a model up to rounding, so that an adapter can check its base.

    Every tensor contributes equally, whatever its size.
    """
    sums, tensors = torch.zeros(FINGERPRINT_NUMBERS, dtype=torch.float64), 0
    for name, parameter in getattr(model, "_orig_mod", model).named_parameters():  # torch.compile wraps the model
        plain = parameter.detach().dequantize() if _is_quantised(parameter) else parameter.detach()
        weights = F.hardshrink(plain.to("cpu", torch.float32).flatten(), SMALLEST)
        norm = float(weights.norm())
        if norm > 0:
            sums += _signed_sums(name, weights) / norm
            tensors += 1
    numbers = (sums / math.sqrt(max(tensors, 1))).tolist()
    return " ".join([f"{FINGERPRINT_VERSION}:", *(f"{number:.6f}" for number in numbers)])


def _signed_sums(name: str, weights: torch.Tensor) -> torch.Tensor:
    """Sum every 64th weight, with random signs that depend on the tensor's name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    signs = torch.randint(2, weights.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8) * 2 - 1
    signed = F.pad(weights * signs, (0, -len(weights) % FINGERPRINT_NUMBERS))
    return signed.view(-1, FINGERPRINT_NUMBERS).sum(dim=0, dtype=torch.float64)


def _is_quantised(parameter: torch.Tensor) -> bool:
    """Return whether torchao stores this weight as integers with scales."""
    return type(parameter.data).__module__.startswith("torchao.")


def is_readable(fingerprint: Any) -> bool:
    """Return whether this is a fingerprint of the current version; others cannot be compared."""
    return isinstance(fingerprint, str) and fingerprint.startswith(f"{FINGERPRINT_VERSION}:")


def distance(first: str, second: str) -> float:
    """Return the distance between the weights of two fingerprints, relative to their norm."""
    numbers = [[float(number) for number in text.split()[1:]] for text in (first, second)]
    return math.dist(*numbers)


def fits(fingerprint: str, model: nn.Module) -> bool:
    """Return whether a model has the weights of a fingerprint, up to rounding to the model's precision."""
    tolerance = QUANTISED_TOLERANCE if any(map(_is_quantised, model.parameters())) else TOLERANCE
    return distance(fingerprint, fingerprint_of(model)) <= tolerance


def check_fingerprint(fingerprint: str | None, base: nn.Module, steering: str, steered: str) -> None:
    """Raise if a fingerprint is that of other weights than a model's; warn if it cannot be compared.

    Args:
        fingerprint: the fingerprint, if there is one.
        base: the model.
        steering, steered: words for the model that holds the fingerprint and for the base.
    """
    if not is_readable(fingerprint):
        why = "does not record" if fingerprint is None else "records in another version's format"
        logger.warning(
            f"The {steering} {why} which {steered} it was trained on, so it could not be checked whether they "
            "belong together."
        )
    elif not fits(str(fingerprint), base):
        raise CardioDiTError(
            f"The {steering} was trained on another {steered} (their weights differ by more than rounding). Open it "
            f"with the {steered} that it was trained on, or train it for this one."
        )
