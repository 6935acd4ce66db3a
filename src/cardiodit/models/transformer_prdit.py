"""PRDiT: a diffusion transformer on voxels, without an autoencoder.

A local denoiser processes patches, which may overlap, independently; a transformer, the refiner, adds information from
the whole volume. Both predict the central tile of each patch: its noise and its clean voxels, or its velocity (flow
matching). Their predictions are added up. With super-resolution, a local denoiser corrects the prediction of a whole
model at a lower resolution.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from cardiodit._compat import context_parallel_plan
from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import DenoiserMixin
from cardiodit.models.positions import expand_axis, kept_positions
from cardiodit.models.transformer_dit import (
    TIME_FEATURES,
    CostPart,
    DiTBlock,
    block_cost,
    modulate,
    unpatchify,
)

TILE = 8  # voxels along each axis that a token predicts, by default
NOISE_AND_IMAGE = "noise_and_image"
PREDICTION_TYPES = (NOISE_AND_IMAGE, "flow_to_data", "flow")
PROCESS = ("num_train_timesteps", "noise_scale")  # config keys that the model shares with its scheduler
CHUNK = 4096  # tokens whose patches are in memory at once
PROBE_TOKENS = 512  # tokens whose patches are timed for an estimate
REFINER = ("refiner_time", "patch_embed", "transformer_blocks", "modulation_out", "proj_out")
NORM_EPS = 1e-5


def fourier_positions(
    grid: Sequence[int],
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return PRDiT's positions of all tokens of `grid`, (tokens, dim): waves over the whole volume, whatever its grid.

    The features are sines and cosines of 2π·f·(i + 0.5)/g, of the last axis first; f rises geometrically from 1 to
    0.95·g/2. Features beyond `dim` are cut off.
    """
    count = math.ceil(dim / (2 * len(grid)))  # frequencies per axis
    features = []
    for axis, length in reversed(list(enumerate(grid))):
        highest = 0.95 * length / 2
        frequencies = highest ** torch.linspace(0, 1, count, dtype=torch.float64)
        centres = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        angles = 2 * math.pi * torch.outer(centres, frequencies)
        features.append(expand_axis(torch.cat([angles.sin(), angles.cos()], dim=-1), axis, grid))
    return torch.cat(features, dim=-1).flatten(0, -2)[:, :dim].to(device, dtype)


class GatedMLP(nn.Module):
    """Gated MLP of constant width with a LayerNorm before its last layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.out = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(F.silu(self.gate(hidden_states)) * self.value(hidden_states)))


class LocalDenoiser(nn.Module):
    """Denoise the central tile of each patch from the patch alone."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.mlp_1 = GatedMLP(width)
        self.mlp_2 = GatedMLP(width)
        self.proj_out = nn.Linear(width, out_features)

    def forward(self, patches: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Patches (B, n, width), conditioning (B, width) → (B, n, out_features)."""
        shift_1, scale_1, shift_2, scale_2, shift_3, scale_3 = self.modulation(F.silu(conditioning)).chunk(6, dim=-1)
        hidden = self.mlp_1(modulate(patches, shift_1, scale_1))
        hidden = self.mlp_2(modulate(hidden, shift_2, scale_2)) + patches
        return self.proj_out(torch.addcmul(shift_3.unsqueeze(1), hidden, 1 + scale_3.unsqueeze(1)))


class PatchEmbedding(nn.Module):
    """Embed patches as the refiner's tokens."""

    def __init__(self, width: int, hidden_size: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, hidden_size)
        self.skip = nn.Linear(width, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, n, width) → (B, n, hidden)."""
        return self.norm(self.fc2(F.gelu(self.fc1(patches), approximate="tanh")) + self.skip(patches))


class OverlappingPatches:
    """The patches around all tiles of a volume, read a few at a time.

    All patches together hold patch³/tile³ times the voxels of the volume.

    Args:
        volume: `(B, C, H, W, D)`; it is reflected at its borders.
        patch: voxels of a patch along each axis.
        tile: voxels between neighbouring patches, which is what each predicts.
    """

    def __init__(self, volume: torch.Tensor, patch: int, tile: int = TILE) -> None:
        margin = (patch - tile) // 2
        windows = F.pad(volume, (margin,) * 6, mode="reflect") if margin else volume
        for axis in (2, 3, 4):
            windows = windows.unfold(axis, patch, tile)
        self.windows = windows  # (B, C, *grid, patch, patch, patch), a view
        self.grid = tuple(windows.shape[2:5])

    def __getitem__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the patches of tokens given by their numbers, last axis fastest: (B, n, C·patch³)."""
        _, width, depth = self.grid
        rest = tokens % (width * depth)  # `unravel_index` would copy numbers from the CPU
        rows, columns, slices = tokens // (width * depth), rest // depth, rest % depth
        return self.windows[:, :, rows, columns, slices].transpose(1, 2).flatten(2)


class PRDiTTransformerModel(DenoiserMixin):
    """Predict noise and clean volume, `(B, 2·C, H, W, D)`, or a velocity, from a noisy volume `(B, C, H, W, D)`.

    With `num_layers=0` the model is the local denoiser alone, which is trained first (stage 1); the refiner then learns
    the residual (stage 2). All sides of a volume must be multiples of the tile and may differ.

    Args:
        sample_size: size of the training volumes in voxels along height, width and depth; other sizes may be used at
            any call.
        patch_size: edge length of a patch in voxels, of which the central `tile_size` are predicted. Patches overlap if
            it is larger; an even number.
        in_channels: channels of the volume.
        num_layers: number of transformer blocks of the refiner; 0 for the local denoiser alone (stage 1).
        num_attention_heads: number of attention heads of the refiner, whose hidden size is `num_attention_heads *
            attention_head_dim`.
        attention_head_dim: size of an attention head.
        mlp_ratio: size of the hidden layer of the refiner's MLPs relative to its hidden size.
        spacing: voxel size of the training volumes in mm along height, width and depth; None if unknown.
        preprocessing: preprocessing of the training volumes, as returned by `Preprocessing.to_dict()`; None if unknown.
        prediction_type: training target of the model: "noise_and_image", or "flow_to_data" or "flow" (flow matching).
        num_train_timesteps: timesteps of the diffusion process (`NoiseAndImageScheduler`).
        noise_scale: standard deviation of the noise of the diffusion process, not of flow matching.
        training_precision: precision of the training, "float32", "bfloat16" or "float16"; None if unknown.
        tile_size: voxels along each axis that a patch predicts.
        super_resolution: by which number the volume is larger than that of the model whose prediction is corrected
            (stage 3); 1 for a model that is not one of super-resolution.
        base_config: config of that model, which is a part of this one; its size is that of the smaller volume.
    """

    axis_names = ("height", "width", "depth")
    null_label = None  # the model has no class labels

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock", "LocalDenoiser"]
    _repeated_blocks = ["DiTBlock", "LocalDenoiser"]
    _skip_layerwise_casting_patterns = ["time_embed", "local_time", "refiner_time", "norm", "modulation", "proj_out"]
    _keep_in_fp32_modules = ["time_embed"]
    # Each process computes a share of the tokens, from their patches to their predictions.
    _cp_plan = context_parallel_plan({"tokens_in": {"input": 2}}, "tokens_out")

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, ...] = (128, 128, 128),
        patch_size: int = 12,
        in_channels: int = 1,
        num_layers: int = 4,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        spacing: tuple[float, ...] | None = None,
        preprocessing: dict[str, Any] | None = None,
        prediction_type: str = NOISE_AND_IMAGE,
        num_train_timesteps: int = 1000,
        noise_scale: float = 0.5,
        training_precision: str | None = None,
        tile_size: int = TILE,
        super_resolution: int = 1,
        base_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise CardioDiTError(
                f"prediction_type={prediction_type!r}: this model predicts {' or '.join(map(repr, PREDICTION_TYPES))}."
            )
        if tile_size % 2 or patch_size < tile_size or patch_size % 2:
            raise CardioDiTError(
                f"patch_size={patch_size} must be an even number of at least {tile_size}, and so must tile_size."
            )
        if (super_resolution > 1) != (base_config is not None):
            raise CardioDiTError(
                "super_resolution above 1 needs a model of the lower resolution (base_config), and no other has one."
            )
        if base_config is not None and (num_layers or prediction_type != NOISE_AND_IMAGE):
            raise CardioDiTError(
                "A super-resolution model is a local denoiser on top of its base (num_layers 0), and both predict "
                "noise and image; flow matching has no such stage."
            )
        self.base = None if base_config is None else PRDiTTransformerModel(**base_config)
        self.grid_of(sample_size)  # fails early if a side is not a multiple of the tile
        self.register_to_config(sample_size=tuple(sample_size))
        hidden_size = num_attention_heads * attention_head_dim
        width, heads = in_channels * patch_size**3, 2 if prediction_type == NOISE_AND_IMAGE else 1
        out_features = heads * in_channels * tile_size**3

        self.time_proj = Timesteps(TIME_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = nn.Linear(TIME_FEATURES, hidden_size)
        self.local_time = nn.Linear(hidden_size, width)
        self.local = LocalDenoiser(width, out_features)
        self.tokens_in, self.tokens_out = nn.Identity(), nn.Identity()
        if num_layers:
            self.refiner_time = nn.Linear(hidden_size, hidden_size)
            self.patch_embed = PatchEmbedding(width, hidden_size, mlp_ratio)
            self.transformer_blocks = nn.ModuleList(
                DiTBlock(hidden_size, num_attention_heads, mlp_ratio, activation="gelu-approximate")
                for _ in range(num_layers)
            )
            self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
            self.proj_out = nn.Linear(hidden_size, out_features)
        self.gradient_checkpointing = False
        self.chunk_size: int | None = CHUNK
        self._initialise()

    def _initialise(self) -> None:
        """Initialise as in DiT: the prediction starts at zero, and a new refiner does not change a trained stage 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.time_embed.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if "modulation" in name or "proj_out" in name:
                nn.init.zeros_(parameter)

    @property
    def token_size(self) -> tuple[int, ...]:
        """Voxels per token along each axis."""
        return (self.config.tile_size,) * len(self.axis_names)

    @property
    def margin(self) -> int:
        """Voxels of a patch on either side of its central tile."""
        return (self.config.patch_size - self.config.tile_size) // 2

    @property
    def has_refiner(self) -> bool:
        return self.config.num_layers > 0

    def refiner_parts(self) -> Iterator[nn.Module]:
        """Return the modules that stage 2 trains; all others belong to stage 1."""
        return (getattr(self, name) for name in REFINER if self.has_refiner)

    def enable_forward_chunking(self, chunk_size: int | None = CHUNK) -> None:
        """Process the patches of `chunk_size` tokens at a time, to save memory; None processes all at once."""
        if chunk_size is not None and chunk_size < 1:
            raise CardioDiTError(f"chunk_size={chunk_size} must be at least 1, or None for all tokens at once.")
        self.chunk_size = chunk_size

    def disable_forward_chunking(self) -> None:
        self.enable_forward_chunking(None)

    def grid_of(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the token grid for volumes of this size, or raise if the size is not supported."""
        if len(size) != len(self.axis_names):
            raise CardioDiTError(f"Expected a size along {', '.join(self.axis_names)}, got {tuple(size)}.")
        tile, factor = self.config.tile_size, self.config.super_resolution
        if self.base is not None:
            if any(length % factor for length in size):
                raise CardioDiTError(
                    f"The volume has {tuple(size)} voxels, which super_resolution={factor} must divide."
                )
            self.base.grid_of([length // factor for length in size])
        for name, length in zip(self.axis_names, size, strict=True):
            if length % tile or length < tile:
                raise CardioDiTError(
                    f"The volume has {length} voxels along {name}, which must be a multiple of {tile}."
                )
            if length <= self.margin:
                raise CardioDiTError(
                    f"The volume has {length} voxels along {name}, too few for patches of {self.config.patch_size}, "
                    f"which extend {self.margin} voxels beyond either side of their central {tile}."
                )
        return tuple(length // tile for length in size)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the training target from a noisy volume.

        Args:
            hidden_states: noisy volumes `(B, C, H, W, D)`; the size may differ from that in training.
            timestep: one number, or one for each sample `(B,)`.
            return_dict: return a `Transformer2DModelOutput` (default) or a tuple.

        Returns:
            `sample`: the noise, followed by the clean volume, `(B, 2·C, H, W, D)`; or the velocity `(B, C, H, W, D)`.
        """
        if hidden_states.ndim != 5 or hidden_states.shape[1] != self.config.in_channels:
            raise CardioDiTError(
                f"PRDiTTransformerModel takes volumes of {self.config.in_channels} channels as (batch, channel, "
                f"{', '.join(self.axis_names)}), got {tuple(hidden_states.shape)}."
            )
        grid = self.grid_of(hidden_states.shape[2:])
        time = self.embed_time(hidden_states, timestep)
        patches = OverlappingPatches(hidden_states, self.config.patch_size, self.config.tile_size)
        numbers = self.tokens_in(torch.arange(math.prod(grid), device=hidden_states.device)[None])[0]

        predicted, tokens = self.by_patch(patches, numbers, time)  # (B, L, values), (B, L, hidden)
        if self.has_refiner:
            positions = kept_positions(fourier_positions, grid, tokens.shape[-1], tokens)[numbers]
            predicted = predicted + self._refine(tokens + positions, self.refiner_time(time))
        sample = unpatchify(self.tokens_out(predicted), grid, self.token_size)
        if self.base is not None:
            sample = sample + self._upsampled(hidden_states, timestep)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _upsampled(self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """Return the prediction of the base for the volume at its resolution, enlarged."""
        size, factor = hidden_states.shape[2:], self.config.super_resolution
        small = F.interpolate(hidden_states, [length // factor for length in size], mode="nearest")
        noise, image = self.base(small, timestep).sample.chunk(2, dim=1)  # type: ignore[misc]
        noise = F.interpolate(noise, size, mode="nearest")
        return torch.cat([noise, F.interpolate(image, size, mode="trilinear", align_corners=False)], dim=1)

    def embed_time(self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """Return the time embedding of each sample, (B, hidden)."""
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        features = self.time_proj(timestep).to(self.time_embed.weight.dtype)
        return F.silu(self.time_embed(features)).to(hidden_states.dtype)

    def by_patch(
        self, patches: OverlappingPatches, numbers: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the local prediction and the refiner's token of each patch."""
        conditioning = self.local_time(time)
        predicted, tokens = [], []
        for chunk in numbers.split(self.chunk_size or len(numbers)):
            chunk_patches = patches[chunk]
            predicted.append(self._run(self.local, chunk_patches, conditioning))
            if self.has_refiner:
                tokens.append(self._run(self.patch_embed, chunk_patches))
        return torch.cat(predicted, dim=1), torch.cat(tokens or predicted[:1], dim=1)

    def _refine(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L, hidden) → (B, L, predicted values)."""
        for block in self.transformer_blocks:
            tokens = self._run(block, tokens, conditioning)
        shift, scale = self.modulation_out(F.silu(conditioning)).chunk(2, dim=-1)
        return self.proj_out(modulate(tokens, shift, scale))

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Apply a module, with gradient checkpointing if it is enabled."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)

    def cost_parts(self, latents: torch.Tensor) -> list[CostPart]:
        """Return the pieces of a forward pass over volumes `latents` that can be timed, each with how often it runs.

        The patches of a few tokens stand for those of all, and one block of the refiner for all its blocks.
        """
        length = math.prod(self.grid_of(latents.shape[2:]))
        width = self.config.num_attention_heads * self.config.attention_head_dim
        numbers = torch.arange(min(length, PROBE_TOKENS), device=latents.device)
        patches = OverlappingPatches(torch.zeros_like(latents), self.config.patch_size, self.config.tile_size)
        time = self.embed_time(latents, 0)
        parts: list[CostPart] = [(lambda: self.by_patch(patches, numbers, time), length / len(numbers))]
        if self.has_refiner:
            tokens = torch.zeros(len(latents), length, width, device=latents.device, dtype=self.dtype)
            parts.append(block_cost(self.transformer_blocks, tokens))
        if self.base is not None:
            parts.append((lambda: self._upsampled(latents, 0), 1.0))
        return parts


def plain_config(model: PRDiTTransformerModel) -> dict[str, Any]:
    """Return a model's config as the base of a super-resolution model holds it."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}
