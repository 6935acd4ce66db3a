"""PRDiT: a diffusion transformer on voxels, without an autoencoder.

A local denoiser looks at overlapping patches one by one; a transformer adds what only the whole volume tells. Both
predict the noise and the clean volume of the central tile of each patch, and their predictions are summed.
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
from cardiodit.models.positions import fourier_positions
from cardiodit.models.transformer_dit import TIME_FEATURES, DiTBlock, modulate, unpatchify
from cardiodit.models.transformer_mixin import TransformerMixin

TILE = 8  # voxels along each axis that a token predicts
PREDICTION_TYPE = "noise_and_image"
PROCESS = ("num_train_timesteps", "noise_scale")  # of the model's config and of its scheduler's
CHUNK = 4096  # tokens whose patches are held at once
REFINER = ("refiner_time", "patch_embed", "transformer_blocks", "modulation_out", "proj_out")
NORM_EPS = 1e-5


class GatedMLP(nn.Module):
    """A gated MLP of one width, normalised inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.out = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(F.silu(self.gate(hidden_states)) * self.value(hidden_states)))


class LocalDenoiser(nn.Module):
    """Denoises the middle of each patch by what the patch shows."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.mlp_1 = GatedMLP(width)
        self.mlp_2 = GatedMLP(width)
        self.proj_out = nn.Linear(width, out_features)

    def forward(self, patches: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """patches (B, n, width), conditioning (B, width) → (B, n, out_features)."""
        shift_1, scale_1, shift_2, scale_2, shift_3, scale_3 = self.modulation(F.silu(conditioning)).chunk(6, dim=-1)
        hidden = self.mlp_1(modulate(patches, shift_1, scale_1))
        hidden = self.mlp_2(modulate(hidden, shift_2, scale_2)) + patches
        return self.proj_out(torch.addcmul(shift_3.unsqueeze(1), hidden, 1 + scale_3.unsqueeze(1)))


class PatchEmbedding(nn.Module):
    """Patches become the refiner's tokens."""

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
    """The patches around all tiles of a volume, a few at a time: all together they hold ∏patch/8³ times its voxels.

    Args:
        volume: `(B, C, H, W, D)`; what a patch shows beyond it is its mirror image.
        patch: voxels of a patch along each axis.
    """

    def __init__(self, volume: torch.Tensor, patch: int) -> None:
        margin = (patch - TILE) // 2
        windows = F.pad(volume, (margin,) * 6, mode="reflect") if margin else volume
        for axis in (2, 3, 4):
            windows = windows.unfold(axis, patch, TILE)
        self.windows = windows  # (B, C, *grid, patch, patch, patch), a view
        self.grid = tuple(windows.shape[2:5])

    def __getitem__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of tokens by their numbers, last axis fastest: (B, n, C·patch³)."""
        rows, columns, slices = torch.unravel_index(tokens, self.grid)
        return self.windows[:, :, rows, columns, slices].transpose(1, 2).flatten(2)


class PRDiTTransformerModel(TransformerMixin):
    """Predicts from a noisy volume `(B, C, H, W, D)` its noise and the clean volume, `(B, 2·C, H, W, D)`.

    With `num_layers=0` it is the local denoiser alone, which is trained first (stage 1); the refiner learns what is
    left (stage 2). All sides of a volume must be multiples of 8; they need not be equal.

    Args:
        sample_size: voxels along height, width and depth of the training volumes; others may be given at any call.
        patch_size: voxels along each side of a patch, of which the middle 8 are predicted; even, 8 for no overlap.
        in_channels: of the volume.
        num_layers: blocks of the refiner, 0 for none.
        num_attention_heads, attention_head_dim: of the refiner; its width is their product.
        mlp_ratio: width of the refiner's MLPs over its own.
        spacing: mm along height, width and depth of the training volumes, where known.
        preprocessing: how training volumes were prepared (`cardiodit.imaging.Preprocessing`), where known.
        prediction_type: there is only "noise_and_image".
        num_train_timesteps, noise_scale: of the process that it learned to undo (`NoiseAndImageScheduler`).
    """

    axis_names = ("height", "width", "depth")
    null_label = None  # it knows no labels

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock", "LocalDenoiser"]
    _repeated_blocks = ["DiTBlock", "LocalDenoiser"]
    _skip_layerwise_casting_patterns = ["time_embed", "local_time", "refiner_time", "norm", "modulation", "proj_out"]
    _keep_in_fp32_modules = ["time_embed"]
    # Each process works on its share of the tokens, from their patches to their predictions.
    _cp_plan = context_parallel_plan({"tokens_in": {"input": 2}}, "tokens_out")

    @register_to_config
    def __init__(
        self,
        sample_size: Sequence[int] = (128, 128, 128),
        patch_size: int = 12,
        in_channels: int = 1,
        num_layers: int = 4,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        spacing: Sequence[float] | None = None,
        preprocessing: dict[str, Any] | None = None,
        prediction_type: str = PREDICTION_TYPE,
        num_train_timesteps: int = 1000,
        noise_scale: float = 0.5,
    ) -> None:
        super().__init__()
        if prediction_type != PREDICTION_TYPE:
            raise CardioDiTError(f"prediction_type={prediction_type!r}: this model predicts {PREDICTION_TYPE!r}.")
        if patch_size < TILE or patch_size % 2:
            raise CardioDiTError(f"patch_size={patch_size} must be an even number of at least {TILE}.")
        self.grid_of(sample_size)  # fails early when a side is no multiple of 8
        self.register_to_config(sample_size=tuple(sample_size))
        hidden_size = num_attention_heads * attention_head_dim
        width, out_features = in_channels * patch_size**3, 2 * in_channels * TILE**3

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
        """As DiT: the first prediction is zero, and a refiner beside a trained local denoiser changes nothing yet."""
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
        """Voxels along each axis that a token predicts."""
        return (TILE,) * len(self.axis_names)

    @property
    def margin(self) -> int:
        """Voxels of a patch on either side of what it predicts."""
        return (self.config.patch_size - TILE) // 2

    @property
    def has_refiner(self) -> bool:
        return self.config.num_layers > 0

    def refiner_parts(self) -> Iterator[nn.Module]:
        """What stage 2 trains; all else is of stage 1."""
        return (getattr(self, name) for name in REFINER if self.has_refiner)

    def enable_forward_chunking(self, chunk_size: int | None = CHUNK) -> None:
        """So many tokens' patches at a time, with the same result; fewer need less memory. None: all at once."""
        if chunk_size is not None and chunk_size < 1:
            raise CardioDiTError(f"chunk_size={chunk_size} must be at least 1, or None for all tokens at once.")
        self.chunk_size = chunk_size

    def disable_forward_chunking(self) -> None:
        self.enable_forward_chunking(None)

    def grid_of(self, size: Sequence[int]) -> tuple[int, ...]:
        """The token grid of a volume of this size."""
        if len(size) != len(self.axis_names):
            raise CardioDiTError(f"A size is given as {', '.join(self.axis_names)}; got {tuple(size)}.")
        for name, length in zip(self.axis_names, size, strict=True):
            if length % TILE or length < TILE:
                raise CardioDiTError(
                    f"The volume has {length} voxels along {name}, which must be a multiple of {TILE}."
                )
            if length <= self.margin:
                raise CardioDiTError(
                    f"The volume has {length} voxels along {name}, too few for patches of {self.config.patch_size}, "
                    f"which show {self.margin} on either side of {TILE}."
                )
        return tuple(length // TILE for length in size)

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predicts from a noisy volume.

        Args:
            hidden_states: `(B, C, H, W, D)`; the size may differ from the trained one.
            timestep: one number, or one for each sample `(B,)`.
            return_dict: a `Transformer2DModelOutput` (default) or a tuple.

        Returns:
            `sample` `(B, 2·C, H, W, D)`: the noise, then the clean volume.
        """
        if hidden_states.ndim != 5 or hidden_states.shape[1] != self.config.in_channels:
            raise CardioDiTError(
                f"PRDiTTransformerModel takes volumes of {self.config.in_channels} channels as (batch, channel, "
                f"{', '.join(self.axis_names)}), got {tuple(hidden_states.shape)}."
            )
        grid = self.grid_of(hidden_states.shape[2:])
        time = self.embed_time(hidden_states, timestep)
        patches = OverlappingPatches(hidden_states, self.config.patch_size)
        numbers = self.tokens_in(torch.arange(math.prod(grid), device=hidden_states.device)[None])[0]

        predicted, tokens = self.by_patch(patches, numbers, time)  # (B, L, 2·C·8³), (B, L, hidden)
        if self.has_refiner:
            positions = fourier_positions(grid, tokens.shape[-1], tokens.device, tokens.dtype)[numbers]
            predicted = predicted + self._refine(tokens + positions, self.refiner_time(time))
        sample = unpatchify(self.tokens_out(predicted), grid, self.token_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def embed_time(self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """(B, hidden)."""
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        features = self.time_proj(timestep).to(self.time_embed.weight.dtype)
        return F.silu(self.time_embed(features)).to(hidden_states.dtype)

    def by_patch(
        self, patches: OverlappingPatches, numbers: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is made of each patch by itself: the local prediction, and the refiner's token."""
        conditioning = self.local_time(time)
        predicted, tokens = [], []
        for chunk in numbers.split(self.chunk_size or len(numbers)):
            some = patches[chunk]
            predicted.append(self._run(self.local, some, conditioning))
            if self.has_refiner:
                tokens.append(self._run(self.patch_embed, some))
        return torch.cat(predicted, dim=1), torch.cat(tokens or predicted[:1], dim=1)

    def _refine(self, tokens: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """tokens (B, L, hidden) → (B, L, 2·C·8³)."""
        for block in self.transformer_blocks:
            tokens = self._run(block, tokens, conditioning)
        shift, scale = self.modulation_out(F.silu(conditioning)).chunk(2, dim=-1)
        return self.proj_out(modulate(tokens, shift, scale))

    def _run(self, module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """A part of the model; where gradients are checkpointed, it keeps nothing but its input."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(module, *inputs)
        return module(*inputs)
