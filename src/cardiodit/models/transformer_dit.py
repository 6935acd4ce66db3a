"""Diffusion transformers for 3D volumes and 4D cine, with one implementation for any number of axes.

Peebles and Xie, "Scalable Diffusion Models with Transformers" (arXiv:2212.09748), with the patches, positions
and heads of VolDiT (three axes) and CardioDiT (four axes). Only the two classes at the end of this file depend on the
number of axes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from cardiodit._compat import context_parallel_plan, register_block
from cardiodit.errors import CardioDiTError
from cardiodit.models.clinical_conditions import ClinicalConditions, ConditionEmbedding
from cardiodit.models.loading import DenoiserMixin
from cardiodit.models.positions import Rotation, TokenPositions, rotate

TIME_FEATURES = 256
QK_NORM_EPS = 1e-5
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample", "flow", "flow_to_data")

CostPart = tuple[Callable[[], object], float]  # a piece of a forward pass, and how often it runs in one


def patchify(volume: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """(B, C, *size) → (B, tokens, C·∏patch), with tokens in grid order and a patch's features ordered (c, *patch)."""
    n = len(patch)
    split = [part for size, p in zip(volume.shape[2:], patch, strict=True) for part in (size // p, p)]
    volume = volume.reshape(*volume.shape[:2], *split)
    grid_axes = range(2, 2 + 2 * n, 2)
    patch_axes = range(3, 3 + 2 * n, 2)
    return volume.permute(0, *grid_axes, 1, *patch_axes).flatten(n + 1).flatten(1, n)


def unpatchify(tokens: torch.Tensor, grid: Sequence[int], patch: Sequence[int]) -> torch.Tensor:
    """(B, tokens, ∏patch·C) → (B, C, *size), with the features of a predicted patch ordered (*patch, c)."""
    n = len(patch)
    volume = tokens.reshape(tokens.shape[0], *grid, *patch, -1)
    interleaved = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    volume = volume.permute(0, 2 * n + 1, *interleaved)
    return volume.reshape(*volume.shape[:2], *(g * p for g, p in zip(grid, patch, strict=True)))


def modulate(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive LayerNorm (DiT, section 3.2): tokens (B, L, C), shift and scale (B, C)."""
    normalised = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return torch.addcmul(shift.unsqueeze(1), normalised, 1 + scale.unsqueeze(1))


def by_head(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, L, C) → (B, L, H, D); on the CPU each head's tokens are contiguous, which makes attention 8% faster."""
    tokens = tokens.unflatten(-1, (heads, -1))
    return tokens.transpose(1, 2).contiguous().transpose(1, 2) if tokens.device.type == "cpu" else tokens


class DiTAttnProcessor:
    """Self-attention over all tokens through the attention backends of diffusers."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "DiTAttention",
        hidden_states: torch.Tensor,
        rotation: Rotation | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (by_head(x, attn.heads) for x in (query, key, value))  # (B, L, H, D)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=attn.dropout if attn.training else 0.0,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)  # (B, L, C)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states


class DiTAttention(nn.Module, AttentionModuleMixin):
    _default_processor_cls = DiTAttnProcessor
    _available_processors = [DiTAttnProcessor]
    is_cross_attention = False
    processor: DiTAttnProcessor
    to_qkv: nn.Linear  # replaces to_q, to_k and to_v while they are fused

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        qkv_bias: bool = True,
        attention_dropout: float | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout if attention_dropout is None else attention_dropout
        self.use_bias = qkv_bias
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_k = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.norm_q, self.norm_k = (
            nn.LayerNorm(dim // heads, eps=QK_NORM_EPS) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(dropout)])
        self.processor = DiTAttnProcessor()

    def forward(
        self, hidden_states: torch.Tensor, rotation: Rotation | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        # A processor of another author need not know of rotations and masks.
        more = (rotation, mask) if mask is not None else () if rotation is None else (rotation,)
        return self.processor(self, hidden_states, *more)


class DiTBlock(nn.Module):
    """adaLN-Zero block: attention and MLP, each shifted, scaled and gated by the conditioning."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        dropout: float = 0.0,
        activation: str = "gelu",
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        inner = int(dim * mlp_ratio)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.attn = DiTAttention(dim, heads, projection_dropout, attention_dropout=attention_dropout, qk_norm=qk_norm)
        self.ff = FeedForward(dim, inner_dim=inner, dropout=dropout, activation_fn=activation, final_dropout=True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        conditioning: torch.Tensor,
        control: torch.Tensor | None = None,
        rotation: Rotation | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Transform tokens (B, L, C).

        Args:
            hidden_states: tokens (B, L, C).
            conditioning: embedding of time and label (B, C).
            control: adapter output that is added before attention (B, L, C).
            rotation: cosine and sine by which queries and keys turn.
            mask: tokens that take part in attention (B, 1, 1, L); default: all.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(conditioning)).chunk(6, dim=-1)
        modulated = modulate(hidden_states, shift_a, scale_a)
        attended = self.attn(modulated if control is None else modulated + control, rotation, mask)
        hidden_states = torch.addcmul(hidden_states, gate_a.unsqueeze(1), attended)
        transformed = self.ff(modulate(hidden_states, shift_m, scale_m))
        return torch.addcmul(hidden_states, gate_m.unsqueeze(1), transformed)


# FirstBlockCache and similar hooks look up here what a block takes and returns.
register_block(DiTBlock)


def block_cost(blocks: nn.ModuleList, tokens: torch.Tensor) -> CostPart:
    """Return one block on tokens (B, L, C), with the number of blocks."""
    return lambda: blocks[0](tokens, tokens[:, 0]), len(blocks)


class DiTTransformerModel(DenoiserMixin):
    """Base class for any number of axes; use `DiT3DTransformerModel` or `DiT4DTransformerModel`.

    Args:
        sample_size: size of the training latents along depth, height, width and frames, or height, width and depth in
            3D (`axis_names`); other sizes may be used at any call. Default: the published size; in training,
            that of the latents.
        patch_size: size of a patch along the same axes. Default: the published size.
        in_channels: number of latent channels; in training, that of the latents by default.
        num_layers: number of transformer blocks.
        num_attention_heads: number of attention heads; the hidden size is `num_attention_heads * attention_head_dim`.
        attention_head_dim: size of an attention head.
        mlp_ratio: size of the MLP's hidden layer relative to the hidden size.
        num_classes: number of class labels, 0 for none.
        class_dropout_prob: probability of dropping a class label in training, for classifier-free guidance; above 0,
            the model has a null label.
        class_names: names of the class labels, which may be used instead of numbers.
        learn_sigma: also predict the log variance, in a second half of the output channels.
        dropout: dropout probability in attention layers and MLPs.
        prediction_type: training target of the model: "v_prediction", "epsilon", "sample" or "flow".
        attention_dropout: dropout probability of attention weights; default: `dropout`, as published. Only with 0 does
            torch use cuDNN's attention, the fastest on recent GPUs.
        training_precision: precision of the training, "float32", "bfloat16" or "float16"; None if unknown.
        position_mode: how tokens are told where they are. absolute: a sine-cosine table is added to them; axial_rope:
            queries and keys turn by the position along every axis (rope4d in CardioDiT); time_rope: they turn by the
            time of their frame, and a table places them in space; interpolated, interpolated_rescaled: the table's
            last quarter is the time; phase: the phase of the heart beat is added to the table.
        position_steps: distance between neighbouring tokens along each axis, such as voxel spacing times patch size
            divided by the smallest of these products; default: 1 along each axis.
        max_sample_size: largest size of latents; smaller ones then get the central positions, and larger ones are
            refused. Default: positions start at 0, and any size is accepted.
        position_time_scale: factor of the times of frames in positions that depend on time.
        phase_schema: meaning of a phase: frames (counted from 0, where 1 is the last frame) or cycle (periodic).
        qk_norm: normalise queries and keys of each head (layer normalisation).
        self_conditioning: also give the model its own estimate of the clean latents from the step before (Chen et al.,
            arXiv:2208.04202); in training, half of the steps first compute such an estimate.
        projection_dropout: dropout probability of the output of attention; default: `dropout`.
        mlp_dropout: dropout probability in both layers of the MLPs; default: `dropout`.
        conditions: clinical conditions by name, each with its categories, or its unit and the training cohort's range
            (`ClinicalConditions`); None for none.
        condition_dropout_prob: probability of dropping each clinical condition of a sample in training, independently
            of the others.
        unconditional_prob: probability of dropping all clinical conditions of a sample together, and its class label
            if the model has a null label, for classifier-free guidance and sampling without conditions.
    """

    axis_names: tuple[str, ...] = ()
    published_sample_size: tuple[int, ...] = ()
    published_patch_size: tuple[int, ...] = ()

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]
    _repeated_blocks = ["DiTBlock"]
    _skip_layerwise_casting_patterns = [
        *("patch_embed", "time_embed", "class_embed", "condition_embed", "modulation", "proj_out")
    ]
    _keep_in_fp32_modules = ["time_embed", "condition_embed"]
    # Tokens are split over processes before the first block and gathered after the head.
    _cp_plan = context_parallel_plan(
        {"transformer_blocks.0": {"hidden_states": 3}, "rotation_in": {"input": 3}, "control_in": {"input": 3}},
        "proj_out",
    )

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, ...] | None = None,
        patch_size: tuple[int, ...] | None = None,
        in_channels: int = 8,
        num_layers: int = 12,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        class_dropout_prob: float = 0.0,
        class_names: tuple[str, ...] | None = None,
        learn_sigma: bool = False,
        dropout: float = 0.0,
        prediction_type: str = "v_prediction",
        attention_dropout: float | None = None,
        training_precision: str | None = None,
        position_mode: str = "absolute",
        position_steps: tuple[float, ...] | None = None,
        max_sample_size: tuple[int, ...] | None = None,
        position_time_scale: float = 1.0,
        phase_schema: str = "frames",
        qk_norm: bool = False,
        self_conditioning: bool = False,
        projection_dropout: float | None = None,
        mlp_dropout: float | None = None,
        conditions: dict[str, Any] | None = None,
        condition_dropout_prob: float = 0.0,
        unconditional_prob: float = 0.0,
    ) -> None:
        super().__init__()
        sample_size = self._per_axis("sample_size", sample_size, self.published_sample_size)
        self.patch_size = self._per_axis("patch_size", patch_size, self.published_patch_size)
        if class_names is not None and len(class_names) != num_classes:
            raise CardioDiTError(f"class_names has {len(class_names)} names for num_classes={num_classes} labels.")
        if prediction_type not in PREDICTION_TYPES:
            raise CardioDiTError(f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}.")
        if learn_sigma and prediction_type.startswith("flow"):
            raise CardioDiTError("learn_sigma needs a process with a variance to learn, which flow matching has not.")
        self.register_to_config(sample_size=sample_size, patch_size=self.patch_size)
        hidden_size = num_attention_heads * attention_head_dim
        if max_sample_size is not None:
            max_sample_size = self._per_axis("max_sample_size", max_sample_size, ())
        self.positions = TokenPositions(
            mode=position_mode,
            trained_grid=self.grid_of(sample_size),  # fails early if the patch does not divide the size
            steps=tuple(position_steps or (1.0,) * len(self.axis_names)),
            largest_grid=None if max_sample_size is None else self.grid_of(max_sample_size),
            time_scale=position_time_scale,
            phase_schema=phase_schema,
        )
        self.positions.check(hidden_size, attention_head_dim, has_frames="frames" in self.axis_names)
        self._check_size(sample_size)
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        voxels = math.prod(self.patch_size)

        self.patch_embed = nn.Linear(in_channels * voxels * (2 if self_conditioning else 1), hidden_size)
        # Where the tokens' angles, and what an adapter adds to them, are split over processes
        self.rotation_in, self.control_in = nn.Identity(), nn.Identity()
        self.time_proj = Timesteps(TIME_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(TIME_FEATURES, hidden_size)
        self.class_embed = None
        if num_classes > 0:
            null_rows = 1 if class_dropout_prob > 0 else 0
            self.class_embed = nn.Embedding(num_classes + null_rows, hidden_size)
        self.conditions = ClinicalConditions.of_config(conditions)
        self.condition_embed = None if self.conditions is None else ConditionEmbedding(self.conditions, hidden_size)
        given = {
            "dropout": mlp_dropout,
            "attention_dropout": attention_dropout,
            "projection_dropout": projection_dropout,
        }
        dropouts: dict[str, Any] = {name: dropout if value is None else value for name, value in given.items()}
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_attention_heads, mlp_ratio, qk_norm=qk_norm, **dropouts)
            for _ in range(num_layers)
        )
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj_out = nn.Linear(hidden_size, voxels * self.out_channels)
        self.gradient_checkpointing = False
        self._initialise()

    def _per_axis(self, name: str, given: Sequence[int] | None, published: tuple[int, ...]) -> tuple[int, ...]:
        values = published if given is None else tuple(given)
        if len(values) != len(self.axis_names):
            raise CardioDiTError(
                f"{name}={values} has {len(values)} numbers, but {type(self).__name__} has the "
                f"{len(self.axis_names)} axes {', '.join(self.axis_names)}."
            )
        return values

    def _initialise(self) -> None:
        """Initialise as in DiT: every block starts as the identity, and the prediction starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.linear_1, self.time_embed.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)
        if self.condition_embed is not None:
            self.condition_embed.initialise()
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.startswith("proj_out"):
                nn.init.zeros_(parameter)

    @property
    def token_size(self) -> tuple[int, ...]:
        """Latents per token along each axis."""
        return self.patch_size

    @property
    def null_label(self) -> int | None:
        """The label that means "no label", if the model was trained with label dropout."""
        if self.class_embed is None or self.config.class_dropout_prob <= 0:
            return None
        return self.config.num_classes

    def grid_of(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the token grid for latents of this size, or raise if the patch does not divide an axis."""
        for name, length, patch in zip(self.axis_names, size, self.patch_size, strict=True):
            if length % patch or length < patch:
                raise CardioDiTError(
                    f"The latent's {name} axis has size {length}, which the patch size {patch} does not divide: "
                    f"{name} must be a multiple of {patch}."
                )
        return tuple(length // patch for length, patch in zip(size, self.patch_size, strict=True))

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        block_controls: Sequence[torch.Tensor | None] | None = None,
        self_condition: torch.Tensor | None = None,
        phase: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        conditions: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the training target (`prediction_type`) from noisy latents.

        Args:
            hidden_states: noisy latents `(B, C, *size)`; the size may differ from that in training.
            timestep: one number, or one for each sample `(B,)`.
            class_labels: integers `(B,)`, where `null_label` means none; without them no label is added.
            return_dict: return a `Transformer2DModelOutput` (default) or a tuple.
            block_controls: output of an adapter (`TGCAAdapterModel`): `(B, L, hidden)` or None for each block.
            self_condition: estimate of the clean latents, like `hidden_states`, for models with `self_conditioning`;
                zeros by default.
            phase: phase of the heart beat at each frame, `(L)` or `(B, L)`, see `times_of_phase`; default: evenly
                spaced frames.
            frame_mask: frames that take part in attention `(B, T)`; a token does if any of its frames does.
            conditions: clinical conditions `(B, columns)` in the order of `self.conditions`, NaN where one is not
                given; default: none is given.

        Returns:
            `sample`, with the shape of `hidden_states`; with `learn_sigma` twice the channels, the prediction first.
        """
        if hidden_states.ndim != 2 + len(self.axis_names):
            raise CardioDiTError(
                f"{type(self).__name__} expects (batch, channel, {', '.join(self.axis_names)}), "
                f"got {hidden_states.ndim} axes: {tuple(hidden_states.shape)}."
            )
        if hidden_states.shape[1] != self.config.in_channels:
            raise CardioDiTError(
                f"This model takes latents of {self.config.in_channels} channels, got {hidden_states.shape[1]}: "
                f"{tuple(hidden_states.shape)}."
            )
        grid = self.grid_of(hidden_states.shape[2:])
        self._check_size(hidden_states.shape[2:])
        conditioning = self._condition(hidden_states, timestep, class_labels, conditions)

        tokens = self.patch_embed(patchify(self._with_estimate(hidden_states, self_condition), self.patch_size))
        added = self.positions.added(grid, tokens, phase)  # tokens are (B, L, hidden)
        tokens = tokens if added is None else tokens + added
        angles = self.positions.angles(grid, self.config.attention_head_dim, tokens, phase)
        rotation: tuple[Rotation, ...] = ()
        if angles is not None:
            angles = self.rotation_in(angles)[:, :, None]
            rotation = ((angles.cos(), angles.sin()),)
        mask = None if frame_mask is None else self._token_mask(frame_mask, grid)
        inputs: tuple[Any, ...]
        for number, block in enumerate(self.transformer_blocks):
            control = None if block_controls is None else block_controls[number]
            control = None if control is None else self.control_in(control)
            inputs = (tokens, conditioning, control, *rotation)
            if mask is not None:
                inputs = (tokens, conditioning, control, *(rotation or (None,)), mask)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, *inputs)
            else:
                tokens = block(*inputs)
        shift, scale = self.modulation_out(F.silu(conditioning)).chunk(2, dim=-1)
        tokens = self.proj_out(modulate(tokens, shift, scale))  # (B, L, ∏patch·C_out)

        sample = unpatchify(tokens, grid, self.patch_size)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _token_mask(self, frame_mask: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """Return the tokens that hold any frame of a mask `(B, T)`, as attention takes them: (B, 1, 1, L)."""
        by_token = frame_mask.bool().unflatten(-1, (grid[-1], self.patch_size[-1])).any(dim=-1)
        return by_token.repeat(1, math.prod(grid[:-1]))[:, None, None]

    def _with_estimate(self, hidden_states: torch.Tensor, estimate: torch.Tensor | None) -> torch.Tensor:
        """Append the estimate of the clean latents as further channels, if the model takes one."""
        if not self.config.self_conditioning:
            if estimate is not None:
                raise CardioDiTError(
                    "self_condition was given, but this model was trained without it (self_conditioning is false)."
                )
            return hidden_states
        estimate = torch.zeros_like(hidden_states) if estimate is None else estimate.to(hidden_states.dtype)
        return torch.cat([hidden_states, estimate], dim=1)

    def _check_size(self, size: Sequence[int]) -> None:
        """Raise an error for latents above the largest size, for which there are no positions."""
        largest = self.config.max_sample_size
        if largest is not None and any(n > most for n, most in zip(size, largest, strict=True)):
            raise CardioDiTError(
                f"Latents of {tuple(size)} exceed the largest size of this model, max_sample_size {tuple(largest)} "
                f"along {', '.join(self.axis_names)}."
            )

    @apply_forward_hook
    def embed_time(self, hidden_states: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """Return the time embedding of each sample, (B, hidden), which an adapter's gate uses too."""
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(hidden_states.shape[0])
        time_features = self.time_proj(timestep).to(self.time_embed.linear_1.weight.dtype)  # float32
        return self.time_embed(time_features).to(hidden_states.dtype)

    def _condition(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None,
        conditions: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the embedding of time, label and clinical conditions of each sample, (B, hidden)."""
        conditioning = self.embed_time(hidden_states, timestep)
        if self.condition_embed is not None:
            conditioning = conditioning + self.condition_embed(conditions, conditioning)
        elif conditions is not None:
            raise CardioDiTError("conditions were given, but this model was trained without clinical conditions.")
        if class_labels is None:
            return conditioning
        if self.class_embed is None:
            raise CardioDiTError("class_labels were given, but this model was trained without labels (num_classes=0).")
        return conditioning + self.class_embed(class_labels).to(conditioning.dtype)

    def cost_parts(self, latents: torch.Tensor) -> list[CostPart]:
        """Return the pieces of a forward pass over `latents` that can be timed, each with how often it runs.

        Everything but the blocks takes about one percent of the time and is left out.
        """
        length = math.prod(self.grid_of(latents.shape[2:]))
        width = self.config.num_attention_heads * self.config.attention_head_dim
        tokens = torch.zeros(len(latents), length, width, device=latents.device, dtype=self.dtype)
        return [block_cost(self.transformer_blocks, tokens)]


class DiT4DTransformerModel(DiTTransformerModel):
    """CardioDiT's transformer over cine latents `(B, C, D, H, W, T)`: slices, rows, columns, frames.

    The arguments are documented in `DiTTransformerModel`.
    """

    axis_names = ("depth", "height", "width", "frames")
    published_sample_size = (6, 64, 64, 8)
    published_patch_size = (1, 4, 4, 2)


class DiT3DTransformerModel(DiTTransformerModel):
    """VolDiT's transformer over volume latents `(B, C, H, W, D)`, in NIfTI order with the slice axis last.

    The arguments are documented in `DiTTransformerModel`.
    """

    axis_names = ("height", "width", "depth")
    published_sample_size = (64, 64, 32)
    published_patch_size = (4, 4, 4)
