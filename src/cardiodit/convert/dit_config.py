"""Typed reading of the authors' configs of transformers (stage 2) and of VolDiT's adapter."""

from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit._util.typed_yaml import Count, Reader, restricted
from cardiodit.convert.upstream_config import CodeOnly, Run, model_section, read_their_yaml, repeat, values_of
from cardiodit.errors import CardioDiTError, Problems

# Our position mode for each of theirs, and our phase schema; theirs are synonyms in part.
POSITIONS = {
    "absolute": "absolute",
    "center_select": "absolute",
    "interpolated": "interpolated",
    "interpolated_rescaled": "interpolated_rescaled",
    "phase": "phase",
    "time_rope": "time_rope",
    "rope": "time_rope",
    "rope4d": "axial_rope",
}
PHASES = {"legacy_v1": "frames", "cyclic_v2": "cycle"}
LOSS_NAMES = {
    **dict.fromkeys(("huber", "huber_legacy", "smooth_l1", "smooth_l1_loss"), "smooth_l1"),
    **dict.fromkeys(("mse", "mse_loss", "l2"), "mse"),
    **dict.fromkeys(("l1", "mae"), "l1"),
}
FLOW_TYPE = "flow_matching"
DIFFUSION_TYPES = ("ddpm", "ddim", "diffusion")


@dataclass(frozen=True, kw_only=True)
class DiTParams:
    """Parameters of the transformer."""

    input_size: tuple[Count, ...]
    patch_size: Count | tuple[Count, ...]
    in_channels: Count
    hidden_size: Count
    depth: Count
    num_heads: Count
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.0
    num_classes: int = 0
    learn_sigma: bool = False
    flash_attention: bool = False
    attn_drop: float | None = None
    proj_drop: float | None = None
    mlp_drop: float | None = None
    spacing: tuple[float, ...] | None = None  # CardioDiT's, relative to the smallest step
    voxel_spacing: tuple[float, ...] | None = None  # VolDiT's, as it is
    self_conditioning: bool = False
    pos_embed_mode: str | None = restricted(None, *POSITIONS, because="there are no other positions")
    temporal_pe: str | None = restricted(None, *POSITIONS, because="there are no other positions")
    qk_norm: bool = False
    variable_shape: bool = False
    max_input_size: tuple[Count, ...] | None = None
    rope_temporal_scale: float = 1.0
    phase_schema: str = restricted(*PHASES, because="there are no other schemas")

    @property
    def patch(self) -> tuple[int, ...]:
        """Patch size along each axis."""
        return repeat(self.patch_size, len(self.input_size))

    @property
    def of_model(self) -> dict[str, Any]:
        """The arguments of our transformer, without the number of labels and what it predicts."""
        mode = POSITIONS[self.pos_embed_mode or self.temporal_pe or "absolute"]
        return {
            "sample_size": self.input_size,
            "patch_size": self.patch,
            "in_channels": self.in_channels,
            "num_layers": self.depth,
            "num_attention_heads": self.num_heads,
            "attention_head_dim": self.hidden_size // self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "class_dropout_prob": self.class_dropout_prob,
            "learn_sigma": self.learn_sigma,
            **self._dropouts,
            "position_mode": mode,
            "position_steps": self._steps,
            "max_sample_size": (self.max_input_size or self.input_size) if self.variable_shape else None,
            "position_time_scale": self.rope_temporal_scale,
            "phase_schema": PHASES[self.phase_schema],
            "qk_norm": self.qk_norm,
            "self_conditioning": self.self_conditioning,
        }

    @property
    def _steps(self) -> tuple[float, ...] | None:
        """Distance between neighbouring tokens along each axis."""
        if self.spacing is None:
            return self.voxel_spacing
        lengths = [spacing * patch for spacing, patch in zip(self.spacing, self.patch, strict=True)]
        return tuple(length / min(lengths) for length in lengths)

    @property
    def _dropouts(self) -> dict[str, float]:
        """Dropout of the MLPs, and of attention where it differs; VolDiT's projection has that of attention."""
        if self.attn_drop is None and self.mlp_drop is None and self.proj_drop is None:
            return {}
        attention, mlp = self.attn_drop or 0.0, self.mlp_drop or 0.0
        projection = self.proj_drop or 0.0 if len(self.input_size) == 4 else attention
        others = {"attention_dropout": attention, "projection_dropout": projection}
        return {"dropout": mlp, **{name: value for name, value in others.items() if value != mlp}}


@dataclass(frozen=True, kw_only=True)
class SchedulerParams:
    schedule: str = restricted("cosine", because="only the published squared-cosine schedule is supported")
    num_train_timesteps: Count = 300
    prediction_type: str = restricted("v_prediction", "epsilon", "sample", because="no other prediction is supported")
    zero_terminal_snr: bool = restricted(False, because="the published schedule does not end at zero signal")


@dataclass(frozen=True, kw_only=True)
class DiTSchedulerParams(SchedulerParams):
    """Parameters of the noise schedule or, with `scheduler_type: flow_matching`, of the flow."""

    zero_terminal_snr: bool = False
    sample_method: str = restricted("logit_normal", "uniform", because="times have no other distribution")
    logit_mean: float = 0.0
    logit_std: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DiTTraining(Run):
    """All training keys of a stage 2 file, in either schema."""

    betas: tuple[float, ...] | None = None
    min_snr_gamma: float | None = None
    offset_noise_strength: float | None = None
    objective_loss: str | None = restricted(None, *LOSS_NAMES, because="there is no other loss")
    loss_type: str | None = restricted(None, *LOSS_NAMES, because="there is no other loss")
    huber_beta: float | None = None
    target_optimizer_updates: Count | None = None
    checkpoint_optimizer_updates: Count | None = None
    total_updates: Count | None = None
    warmup_updates: int | None = None
    rate_schedule: str | None = None
    preload_latents: bool | None = None
    use_precomputed_latents: bool | None = None
    augment_latents: bool = False
    use_bucket_sampler: bool | None = None
    batch_strategy: str | None = None
    latent_time_pad_multiple: Count | None = None
    latent_stats_path: str | None = None
    phase_dir: str | None = None
    alpha_pool: str | None = None
    self_conditioning: bool | None = None
    normalize_latents: bool = False
    preserve_scale_factor: bool | None = None
    allow_legacy_latents: bool | None = None
    validation_primary_metric: str | None = restricted(
        None, "unconditioned", "self_conditioned", because="no other loss chooses the best weights"
    )
    validation_seed: int | None = None
    sample_seed: int | None = None
    keep_last_n_checkpoints: int | None = None
    log_best_artifact: bool | None = None
    sample_log: dict[str, Any] | None = None

    @property
    def loss(self) -> str | None:
        """Our name of the loss; None if the file does not set it."""
        named = self.objective_loss or self.loss_type
        return None if named is None else LOSS_NAMES[named]


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: int | None = None
    min_lr_ratio: float | None = None
    betas: tuple[float, ...] | None = None
    warmup_updates: int | None = None
    total_updates: Count | None = None
    scheduler: str | None = restricted(None, "cosine_warmup", "exponential", because="the rate has no other schedule")
    lr_gamma: float | None = None


@dataclass(frozen=True)
class DiTConfig:
    """Config of stage 2."""

    file: str
    params: DiTParams
    scheduler: DiTSchedulerParams
    training: DiTTraining
    is_flow: bool = False

    @property
    def prediction_type(self) -> str:
        return "flow" if self.is_flow else self.scheduler.prediction_type


# --- VolDiT's adapter ---


@dataclass(frozen=True, kw_only=True)
class TGCAParams:
    """Parameters of the adapter, by default as published."""

    condition_channels: Count = 1
    inject_layers: int | tuple[int, ...] | None = None
    finetune_last_n_blocks: int = 0


@dataclass(frozen=True)
class TGCAConfig:
    """Config of the adapter."""

    file: str
    keys: tuple[str, ...]
    params: TGCAParams


# --- Layouts of the files ---


@dataclass(frozen=True, kw_only=True)
class _DiT(DiTTraining):
    params: DiTParams
    scheduler: DiTSchedulerParams = DiTSchedulerParams()


@dataclass(frozen=True, kw_only=True)
class _CompactDiT(CodeOnly):
    dit: _DiT
    scheduler_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class _DiTModel:
    params: DiTParams


@dataclass(frozen=True, kw_only=True)
class _ExpandedDiT(CodeOnly):
    model: _DiTModel
    scheduler: DiTSchedulerParams = DiTSchedulerParams()
    training: DiTTraining = DiTTraining()
    optim: Optim = Optim()
    scheduler_type: str | None = None


# --- Reading ---


def read_dit_config(path: str | PathLike) -> DiTConfig:
    """Read a stage 2 file in either schema."""
    raw, file = read_their_yaml(path), Path(path).name
    section = model_section(raw, file, expected="dit")
    if section == "dit":
        compact = Reader(file).section(_CompactDiT, raw, "")
        dit, flow = compact.dit, compact.scheduler_type
        params, scheduler, training = dit.params, dit.scheduler, DiTTraining(**values_of(dit, DiTTraining))
        given = raw["dit"].get("scheduler")
    else:
        expanded = Reader(file).section(_ExpandedDiT, raw, "")
        params, scheduler, flow = expanded.model.params, expanded.scheduler, expanded.scheduler_type
        # `optim` overrides `training`; two of its keys have other names there.
        optim = {key: value for key, value in values_of(expanded.optim, Optim).items() if value is not None}
        renamed = {"lr": "base_lr", "scheduler": "rate_schedule"}
        optim = {renamed.get(key, key): value for key, value in optim.items()}
        training = DiTTraining(**{**values_of(expanded.training, DiTTraining), **optim})
        given = raw.get("scheduler")
    if flow not in (None, FLOW_TYPE, *DIFFUSION_TYPES):
        raise CardioDiTError(
            f"{file}: scheduler_type {flow!r} is not one of {FLOW_TYPE}, {', '.join(DIFFUSION_TYPES)}."
        )
    is_flow = flow == FLOW_TYPE
    if is_flow and "num_train_timesteps" not in (given or {}):
        scheduler = replace(scheduler, num_train_timesteps=1000)
    config = DiTConfig(file, params, scheduler, training, is_flow)
    _check_shape(params, f"{file}: {section}.params")
    _check_process(config)
    return config


def read_tgca_config(path: str | PathLike) -> TGCAConfig:
    """Read the parameters of an adapter's file; its training keys are ignored."""
    raw, file = read_their_yaml(path), Path(path).name
    section = raw.get("tgca")
    if not isinstance(section, dict):
        raise CardioDiTError(
            f"{file} has the sections {', '.join(map(str, raw)) or '(none)'}; an adapter's config has a section 'tgca'."
        )
    given = section.get("params") or {}
    if not isinstance(given, dict):
        raise CardioDiTError(f"{file}: tgca.params must be a section.")
    known = {f.name for f in fields(TGCAParams)}
    params = Reader(file).section(
        TGCAParams, {key: value for key, value in given.items() if key in known}, "tgca.params"
    )
    keys = section.get("condition_keys") or [f"mask{i}" for i in range(params.condition_channels)]
    if not isinstance(keys, list) or len(keys) != params.condition_channels:
        raise CardioDiTError(
            f"{file}: tgca.condition_keys {keys} must name as many masks as condition_channels, "
            f"{params.condition_channels}."
        )
    return TGCAConfig(file, tuple(map(str, keys)), params)


def _check_shape(params: DiTParams, where: str) -> None:
    if len(params.patch) != len(params.input_size):
        raise CardioDiTError(
            f"{where}.patch_size has {len(params.patch)} numbers, input_size has {len(params.input_size)}; "
            "expected one for each axis."
        )
    if any(size % patch for size, patch in zip(params.input_size, params.patch, strict=True)):
        raise CardioDiTError(
            f"{where}.patch_size {list(params.patch)} does not divide input_size {list(params.input_size)}; "
            "each axis must be a multiple of its patch."
        )
    if params.hidden_size % params.num_heads:
        raise CardioDiTError(
            f"{where}.hidden_size {params.hidden_size} is not a multiple of num_heads {params.num_heads}."
        )


def _check_process(config: DiTConfig) -> None:
    """Raise an error for keys that contradict each other, as the authors' code does."""
    training, params = config.training, config.params
    problems = Problems(f"{config.file} contradicts itself")
    if training.objective_loss and training.loss_type and training.loss != LOSS_NAMES[training.loss_type]:
        problems.add(f"objective_loss {training.objective_loss} and loss_type {training.loss_type} differ")
    if training.self_conditioning not in (None, params.self_conditioning):
        problems.add(
            f"self_conditioning is {training.self_conditioning} in training and {params.self_conditioning} in the model"
        )
    if training.batch_strategy == "mask":
        problems.add("batch_strategy mask is refused by the authors' code too; padded frames are masked in any case")
    updates = (training.target_optimizer_updates, training.total_updates)
    if None not in updates and updates[0] != updates[1]:
        problems.add(f"target_optimizer_updates {updates[0]} and total_updates {updates[1]} differ")
    if config.is_flow and (config.scheduler.zero_terminal_snr or training.offset_noise_strength):
        problems.add("zero_terminal_snr and offset_noise_strength belong to a noise schedule, not to flow matching")
    if config.is_flow and params.learn_sigma:
        problems.add("learn_sigma needs a process with a variance to learn, which flow matching has not")
    problems.raise_if_any()
