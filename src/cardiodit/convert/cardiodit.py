"""Conversion of CardioDiT's published checkpoints into a pipeline folder, with the steps that all converters share."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from cardiodit import __version__
from cardiodit._util.atomic_io import new_folder
from cardiodit._util.hashing import sha256_of
from cardiodit._util.terminal import say
from cardiodit.convert.checkpoint import Checkpoint, Weights, read_checkpoint, some
from cardiodit.convert.dit_config import DiTConfig, DiTParams, read_dit_config
from cardiodit.convert.medlord_config import UNetConfig
from cardiodit.convert.upstream_config import VQGANConfig, read_vqgan_config
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.models import DiT4DTransformerModel, VQModel4D
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.models.loading import bounded_model
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline
from cardiodit.schedulers import cosine_betas, make_scheduler
from cardiodit.schedulers.solvers import zero_terminal_betas

Autoencoder = TypeVar("Autoencoder", bound=VQModel)
Model = TypeVar("Model", bound=torch.nn.Module)
Transformer = TypeVar("Transformer", bound=DiTTransformerModel)

# The authors' names of our modules, which are given as patterns.
QUANTIZER_NAMES = {
    "quantizer.weight": "quantizer.quantizer.embedding.weight",
    "quantizer.ema_sums": "quantizer.quantizer.ema_w",
    "quantizer.ema_counts": "quantizer.quantizer.ema_cluster_size",
    "quantizer.num_updates": None,
}
TRANSFORMER_NAMES = {
    r"patch_embed": r"x_embedder.proj",
    r"time_embed\.linear_1": r"t_embedder.mlp.0",
    r"time_embed\.linear_2": r"t_embedder.mlp.2",
    r"class_embed": r"y_embedder.embedding_table",
    r"transformer_blocks\.(\d+)\.attn\.to_[qkv]": r"blocks.\1.attn.qkv",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"blocks.\1.attn.proj",
    r"transformer_blocks\.(\d+)\.attn\.norm_([qk])": r"blocks.\1.attn.\2_norm",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"blocks.\1.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"blocks.\1.mlp.fc2",
    r"transformer_blocks\.(\d+)\.modulation": r"blocks.\1.adaLN_modulation.1",
    r"modulation_out": r"final_layer.adaLN_modulation.1",
    r"proj_out": r"final_layer.linear",
}
FUSED = ".qkv."
QKV = re.compile(r"\.attn\.to_([qkv])\.")
POSITIONS = "pos_embed"
LABELS = "y_embedder.embedding_table.weight"  # VolDiT has the table even without labels
# Statistics of the latents in a checkpoint, and their names in our VQ model's config.
STATISTICS = {"latent_mean": "latents_mean", "latent_std": "latents_std"}
NO_SPACING = "No voxel spacing was given (mm): volumes sampled from this model will have no scanner coordinates."

Stage2Config = DiTConfig | UNetConfig
# From the models of both stages and stage 2's config: a pipeline, and the checkpoints of its other parts.
Assemble = Callable[[Any, Any, Any, Any], tuple[Any, dict[str, Checkpoint]]]


def convert_cardiodit(
    stage1_ckpt: str | PathLike,
    stage1_cfg: str | PathLike,
    diff_ckpt: str | PathLike,
    diff_cfg: str | PathLike,
    output_dir: str | PathLike,
    scale_factor: float | None = None,
    spacing: tuple[float, float, float] | None = None,
    frame_time: float | None = None,
    ema: bool = True,
) -> Path:
    """Write a `CardioDiTPipeline` folder from the authors' two checkpoints and configs.

    Args:
        stage1_ckpt, stage1_cfg: checkpoint and YAML of the VQ-GAN.
        diff_ckpt, diff_cfg: checkpoint and YAML of the transformer.
        output_dir: new or empty folder, which is written completely or not at all.
        scale_factor: factor by which latents were multiplied in training; default: that in `diff_cfg`.
        spacing: voxel size of the training volumes in mm along H, W, D, if known.
        frame_time: seconds between their frames, if known.
        ema: use the EMA weights of the transformer if the checkpoint contains them.
    """
    return convert_stages(
        stage1=(stage1_ckpt, stage1_cfg, VQModel4D),
        stage2=(diff_ckpt, read_dit_config(diff_cfg), partial(build_transformer, kind=DiT4DTransformerModel, ema=ema)),
        assemble=lambda vae, transformer, scheduler, _: (CardioDiTPipeline(vae, transformer, scheduler), {}),
        output_dir=output_dir,
        scale_factor=scale_factor,
        ema=ema,
        geometry={"spacing": spacing, "frame_time": frame_time},
    )


def convert_stages(
    stage1: tuple[str | PathLike, str | PathLike, type[VQModel]],
    stage2: tuple[str | PathLike, Stage2Config, Callable[[Checkpoint, Any], Any]],
    assemble: Assemble,
    output_dir: str | PathLike,
    scale_factor: float | None,
    ema: bool,
    geometry: dict[str, Any],
    **vae_config: Any,
) -> Path:
    """Write a pipeline folder from a VQ-GAN and a denoiser; `assemble` makes the pipeline from the models.

    Stage 1 is given as checkpoint, YAML and class, stage 2 as checkpoint, config and the function that builds its model
    from both. `geometry` holds the VQ model's `spacing` and `frame_time`, `vae_config` further keys of its config that
    the authors' files do not contain.
    """
    vq_config, config = read_vqgan_config(stage1[1]), stage2[1]
    if vq_config.params.embedding_dim != config.params.in_channels:
        raise CardioDiTError(
            f"The stages do not fit together: {vq_config.file} makes latents of {vq_config.params.embedding_dim} "
            f"channels (embedding_dim), {config.file} takes {config.params.in_channels} (in_channels)."
        )
    check_geometry(**geometry)
    with new_folder(Path(output_dir)) as folder:
        vq_checkpoint, checkpoint = read_checkpoint(stage1[0]), read_checkpoint(stage2[0])
        scaling = scaling_of(scale_factor, config, checkpoint)
        vae = build_vq_model(vq_checkpoint, vq_config, stage1[2], **scaling, **geometry, **vae_config)
        denoiser = stage2[2](checkpoint, config)
        pipeline, other_checkpoints = assemble(vae, denoiser, build_scheduler(config), config)
        pipeline.save_pretrained(folder)
        discriminator = build_discriminator(vq_checkpoint, vq_config)
        if discriminator is not None:
            discriminator.save_pretrained(folder / "discriminator")
        write_record(folder, checkpoint, ema, vq_checkpoint, pipeline.denoiser_name, **other_checkpoints)
    if geometry["spacing"] is None:
        say(NO_SPACING)
    return Path(output_dir)


def load_vq_model(ckpt: str | PathLike, cfg: str | PathLike, kind: type[Autoencoder] = VQModel4D) -> Autoencoder:
    """Load the VQ model of the authors' stage 1 checkpoint; `kind` is `VQModel3D` for VolDiT."""
    return build_vq_model(read_checkpoint(ckpt), read_vqgan_config(cfg), kind)


def load_discriminator(ckpt: str | PathLike, cfg: str | PathLike) -> PatchDiscriminator | None:
    """Load the discriminator of the authors' stage 1 checkpoint; None if it contains none."""
    return build_discriminator(read_checkpoint(ckpt), read_vqgan_config(cfg))


def load_transformer(
    ckpt: str | PathLike,
    cfg: str | PathLike,
    ema: bool = True,
    kind: type[Transformer] = DiT4DTransformerModel,
) -> Transformer:
    """Load the transformer of the authors' stage 2 checkpoint, with its EMA weights if it contains them."""
    return build_transformer(read_checkpoint(ckpt), read_dit_config(cfg), kind, ema)


def build_vq_model(checkpoint: Checkpoint, config: VQGANConfig, kind: type[Autoencoder], **extra: Any) -> Autoencoder:
    """Build a VQ model; `extra` holds config keys that the authors' files lack, such as `scaling_factor`."""
    params = config.params
    model = construct(
        kind,
        config.file,
        in_channels=params.in_channels,
        out_channels=params.out_channels,
        channels=params.num_channels,
        num_res_channels=params.res_channels,
        num_res_layers=params.num_res_layers,
        downsample_parameters=params.downsampling,
        upsample_parameters=params.upsampling,
        num_embeddings=params.num_embeddings,
        embedding_dim=params.embedding_dim,
        commitment_cost=params.commitment_cost,
        decay=params.decay,
        epsilon=params.epsilon,
        dropout=params.dropout,
        codebook_warm_counts=params.dead_code_threshold is not None,
        codebook_data_init=False,
        codebook_restart=False,
        codebook_sync=False,
        quantize_latents=config.quantized,
        dead_code_threshold=params.dead_code_threshold,
        **extra,
    )
    model.quantizer.num_updates.fill_(1)  # trained codes must not be initialised from data again
    return load_weights(
        model, checkpoint.weights(), lambda name: QUANTIZER_NAMES.get(name, name), checkpoint, config.file
    )


def build_discriminator(checkpoint: Checkpoint, config: VQGANConfig) -> PatchDiscriminator | None:
    if not checkpoint.entries.get("discriminator"):
        return None
    if config.discriminator is None:
        raise CardioDiTError(
            f"{checkpoint.file} holds a discriminator, but {config.file} has no section 'discriminator' that "
            "describes it. Use the config that the checkpoint was trained with."
        )
    model = construct(PatchDiscriminator, config.file, **asdict(config.discriminator))
    return load_weights(model, checkpoint.tensors("discriminator"), str, checkpoint, config.file)


def build_transformer(
    checkpoint: Checkpoint, config: DiTConfig, kind: type[Transformer], ema: bool = True
) -> Transformer:
    params = config.params
    axes = len(kind.axis_names)
    if len(params.input_size) != axes:
        raise CardioDiTError(
            f"{config.file}: input_size has {len(params.input_size)} numbers, but a model with {axes} "
            "axes was expected."
        )
    model = construct(
        kind,
        config.file,
        **params.of_model,
        num_classes=params.num_classes,
        prediction_type=config.prediction_type,
    )
    weights = normalised(checkpoint.weights(ema), params)
    if model.config.position_mode == "axial_rope":
        weights.pop(POSITIONS, None)  # stored by older versions, and not used
        return load_weights(model, weights, transformer_name, checkpoint, config.file)
    table = model.positions.stored_table(params.hidden_size)
    positions = {POSITIONS: torch.Size((1, *table.shape))}
    model = load_weights(model, weights, transformer_name, checkpoint, config.file, positions)
    check_positions(weights[POSITIONS], table, checkpoint)
    return model


def construct(kind: type[Model], config: str, **arguments: Any) -> Model:
    """Create a model from a config, and raise readable errors for values that its layers reject."""
    try:
        with bounded_model():
            return kind(**arguments)
    except CardioDiTError:
        raise
    except Exception as error:  # layers reject wrong values each in their own way
        reason = reason_of(error)
        raise CardioDiTError(f"{config}: a {kind.__name__} cannot be built with these params: {reason}.") from error


def build_scheduler(config: Stage2Config) -> Any:
    """Create our default solver with the exact process of the published models."""
    steps = config.scheduler.num_train_timesteps
    if isinstance(config, DiTConfig) and config.is_flow:
        return FlowMatchEulerDiscreteScheduler(steps)
    is_zero = config.scheduler.zero_terminal_snr
    betas = zero_terminal_betas(steps) if is_zero else cosine_betas(steps, is_exact=isinstance(config, UNetConfig))
    return make_scheduler(
        solver="dpm++",
        num_train_timesteps=steps,
        betas=betas,
        prediction_type=config.scheduler.prediction_type,
    )


# --- Names and shapes ---


def load_weights(
    model: Model,
    weights: Weights,
    author_name: Callable[[str], str | None],
    checkpoint: Checkpoint,
    config: str,
    extra: dict[str, torch.Size] | None = None,
) -> Model:
    """Load the authors' weights into a model, and return it in eval mode; none may be missing or unexpected.

    Args:
        model: model to load.
        weights: weights of the checkpoint.
        author_name: the authors' name for each of our weights; None for those that the checkpoint does not contain.
        checkpoint: the checkpoint, for error messages.
        config: file name of the config, for error messages.
        extra: shapes of further weights that the checkpoint contains, by the authors' names.
    """
    ours = model.state_dict()
    names = {name: theirs for name in ours if (theirs := author_name(name)) is not None}
    expected = {theirs: fused_shape(name, theirs, ours[name]) for name, theirs in names.items()}
    check_names({**expected, **(extra or {})}, weights, checkpoint, config)
    model.load_state_dict({**ours, **{name: part_of(name, theirs, weights[theirs]) for name, theirs in names.items()}})
    return model.eval()


def transformer_name(ours: str, names: dict[str, str] = TRANSFORMER_NAMES) -> str:
    """Return the authors' name of one of our weights; their qkv corresponds to three of ours."""
    module, _, leaf = ours.rpartition(".")
    for pattern, theirs in names.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(theirs)}.{leaf}"
    raise KeyError(ours)


def fused_shape(ours: str, theirs: str, value: torch.Tensor) -> torch.Size:
    """Return the shape of the authors' weight that corresponds to one of ours."""
    return torch.Size((3 * value.shape[0], *value.shape[1:])) if _fused_part(ours, theirs) else value.shape


def part_of(ours: str, theirs: str, value: torch.Tensor) -> torch.Tensor:
    """Return the third of the authors' fused qkv that corresponds to our weight; any other weight as a whole."""
    part = _fused_part(ours, theirs)
    return value.chunk(3)["qkv".index(part)] if part else value


def _fused_part(ours: str, theirs: str) -> str | None:
    """Return "q", "k" or "v" if the authors' weight holds all three; MedLoRD's are separate, like ours."""
    match = QKV.search(ours)
    return match[1] if match and FUSED in theirs else None


def normalised(weights: Weights, params: DiTParams) -> Weights:
    """Convert VolDiT's convolutional patch embedding into a linear layer, and drop an unused label table."""
    weights = dict(weights)
    if params.num_classes == 0 and len(weights.get(LABELS, ())) == (params.class_dropout_prob > 0):
        weights.pop(LABELS, None)
    patches = weights.get("x_embedder.proj.weight")
    channels = params.in_channels * (2 if params.self_conditioning else 1)
    if patches is not None and patches.shape[1:] == (channels, *params.patch):
        weights["x_embedder.proj.weight"] = patches.flatten(1)
    return weights


def check_names(expected: dict[str, torch.Size], weights: Weights, checkpoint: Checkpoint, config: str) -> None:
    """Raise if a weight is missing, unexpected or of another shape than the config describes."""
    found = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "wrong shape": [
            f"{name} {list(weights[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    if problems := [f"{label}: {some(names)}" for label, names in found.items() if names]:
        raise CardioDiTError(
            f"The weights in {checkpoint.file} are not those of the model that {config} describes. "
            f"{'; '.join(problems)}. Use the config that the checkpoint was trained with."
        )


def check_positions(stored: torch.Tensor, table: torch.Tensor, checkpoint: Checkpoint) -> None:
    """Raise if the stored positions differ from those that our models compute."""
    difference = (stored[0].float() - table).abs().max()
    if not difference <= 1e-4:
        raise CardioDiTError(
            f"{checkpoint.file}: this checkpoint was trained with other positions (its pos_embed differs by up to "
            f"{difference:.2g} from those that the config describes). Check input_size, patch_size, spacing and "
            "max_input_size in its config."
        )


# --- Settings of the user ---


def scaling_of(given: float | None, config: Stage2Config, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the entries of the VQ model's config that say how latents were scaled in training."""
    entries = checkpoint.entries
    is_normalised = entries.get("normalize_latents", getattr(config.training, "normalize_latents", False))
    if isinstance(is_normalised, bool) and is_normalised != getattr(config.training, "normalize_latents", False):
        raise CardioDiTError(
            f"{checkpoint.file} was trained with normalize_latents {is_normalised}, and {config.file} says the "
            "opposite. Use the config that the checkpoint was trained with."
        )
    scaling: dict[str, Any] = {"scaling_factor": choose_scale_factor(given, config, entries.get("scale_factor"))}
    if not is_normalised:
        return scaling
    if missing := [name for name in STATISTICS if not torch.is_tensor(entries.get(name))]:
        raise CardioDiTError(
            f"{config.file} says that latents were normalised per channel, but {checkpoint.file} lacks the statistics "
            f"{' and '.join(missing)}. Give the training checkpoint that holds them, such as best_model.pth."
        )
    return scaling | {ours: entries[name].flatten().tolist() for name, ours in STATISTICS.items()}


def choose_scale_factor(given: float | None, config: Stage2Config, trained: Any = None) -> float:
    """Return the scale factor that was given, or else the checkpoint's, or else the config's."""
    configured = trained if isinstance(trained, float | int) else config.training.scale_factor
    value = configured if given is None else given
    if value is None:
        raise CardioDiTError(
            f"{config.file} does not hold the scale factor, so it must be given (--scale_factor): the number by which "
            "latents were multiplied when the denoiser was trained, 1 / their standard deviation. It is in the log "
            "or the command of the training; with a wrong factor the samples are noise."
        )
    if not math.isfinite(value) or value <= 0:
        raise CardioDiTError(f"The scale factor must be a finite number above 0, found {value}.")
    if None not in (given, configured) and given != configured:
        say(f"Using the given scale factor {given}, not {configured} from {config.file}.")
    return value


def check_geometry(spacing: tuple[float, float, float] | None, frame_time: float | None = None) -> None:
    """Raise if the spacing is not in positive mm or the frame time is not in plausible seconds."""
    if spacing is not None and (len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing)):
        raise CardioDiTError(f"The spacing must be three positive numbers, mm along H, W and D, found {list(spacing)}.")
    if frame_time is None:
        return
    if not math.isfinite(frame_time) or frame_time <= 0:
        raise CardioDiTError(f"The frame time must be a positive number of seconds, found {frame_time}.")
    if frame_time > 1:
        raise CardioDiTError(
            f"A frame time of {frame_time} s is longer than a heart beat. It must be in seconds: for {frame_time} ms, "
            f"give {frame_time / 1000:g}."
        )


# --- Writing ---


def write_record(
    folder: Path,
    denoiser: Checkpoint,
    ema: bool,
    stage1: Checkpoint | None = None,
    component: str = "transformer",
    **more: Checkpoint,
) -> None:
    """Write `conversion.json` with the origin of the weights; only base names, because paths can identify people."""
    record = {
        "cardiodit_version": __version__,
        **({} if stage1 is None else {"stage1": _origin(stage1)}),
        component: {**_origin(denoiser), "ema": ema and denoiser.has_ema},
        **{part: _origin(checkpoint) for part, checkpoint in more.items()},
    }
    (folder / "conversion.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"file": checkpoint.file, "sha256": sha256_of(checkpoint.path), "epoch": checkpoint.epoch}
