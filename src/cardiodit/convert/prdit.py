"""PRDiT's published checkpoints → a pipeline folder."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import new_folder
from cardiodit.convert.cardiodit import (
    check_geometry,
    check_names,
    construct,
    fused_shape,
    part_of,
    transformer_name,
    write_record,
)
from cardiodit.convert.checkpoint import Checkpoint, Weights, is_table_of_tensors, read_checkpoint, some
from cardiodit.convert.prdit_config import NAME, SIZES, PRDiTConfig, Size, read_prdit_config, understand
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.models.transformer_prdit import TILE, PRDiTTransformerModel
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler

# Our modules, as patterns, and what the authors call them.
NAMES = {
    r"time_embed": r"t_embedder.mlp.0",
    r"local_time": r"t_embedder.coarse_head",
    r"refiner_time": r"t_embedder.fine_head",
    r"local\.modulation": r"coarse.mlp_denoise.adaLN_modulation.1",
    r"local\.mlp_(\d)\.gate": r"coarse.mlp_denoise.mlp\1.fc1_g",
    r"local\.mlp_(\d)\.value": r"coarse.mlp_denoise.mlp\1.fc1_x",
    r"local\.mlp_(\d)\.norm": r"coarse.mlp_denoise.mlp\1.norm",
    r"local\.mlp_(\d)\.out": r"coarse.mlp_denoise.mlp\1.fc2",
    r"local\.proj_out": r"coarse.mlp_denoise.linear_final",
    r"patch_embed\.(\w+)": r"fine.patch_embedder.\1",
    r"transformer_blocks\.(\d+)\.attn\.to_[qkv]": r"fine.blocks.\1.attn.qkv",
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"fine.blocks.\1.attn.proj",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"fine.blocks.\1.mlp.fc1",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"fine.blocks.\1.mlp.fc2",
    r"transformer_blocks\.(\d+)\.modulation": r"fine.blocks.\1.adaLN_modulation.1",
    r"modulation_out": r"fine.final_layer.adaLN_modulation.1",
    r"proj_out": r"fine.final_layer.linear",
}
TIME, HEAD, EMBED = (
    "t_embedder.mlp.0.weight",
    "coarse.mlp_denoise.linear_final.weight",
    "fine.patch_embedder.fc1.weight",
)
BLOCK = re.compile(r"fine\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Widths:
    """What the shapes of weights tell of their model."""

    hidden_size: int
    patch_size: int
    in_channels: int
    num_layers: int
    mlp_ratio: float


def convert_prdit(
    ckpt: str | PathLike,
    output_dir: str | PathLike,
    cfg: str | PathLike | None = None,
    size: Size | None = None,
    preset: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    ema: bool = True,
) -> Path:
    """Writes a `PRDiTPipeline` folder from the authors' checkpoint, of either stage.

    Args:
        ckpt: the checkpoint; a config inside it is read where it is plain data.
        output_dir: a new or empty folder; written as a whole or not at all.
        cfg: the YAML of the training, where the checkpoint does not hold it.
        size: voxels along the axes of the training volumes; read from the config where it is not given.
        preset: how they were prepared, by its name in `cardiodit.imaging.PRESETS`, if known.
        spacing: their voxel size in mm, if known; the preset's where it is not given.
        ema: take the EMA weights where the checkpoint holds them.
    """
    given = None if cfg is None else read_prdit_config(cfg)
    steps = None if preset is None else preset_named(preset)
    check_geometry(spacing, None)
    with new_folder(Path(output_dir)) as folder:
        checkpoint = as_entries(read_checkpoint(ckpt, stand_ins=True), ema)
        config = config_of(checkpoint, given)
        size = choose_size(size, config, checkpoint)
        spacing = choose_spacing(spacing, size, steps, preset)
        transformer = build_prdit(
            checkpoint,
            config,
            ema,
            sample_size=size,
            spacing=spacing,
            preprocessing=None if steps is None else steps.to_dict(),
        )
        PRDiTPipeline(transformer, NoiseAndImageScheduler()).save_pretrained(folder)
        write_record(folder, checkpoint, ema)
    tell_what_is_missing(checkpoint, config, spacing, steps)
    return Path(output_dir)


def build_prdit(checkpoint: Checkpoint, config: PRDiTConfig, ema: bool = True, **extra: Any) -> PRDiTTransformerModel:
    """`extra`: what the weights do not tell, such as `sample_size` and `spacing`."""
    weights = checkpoint.weights(ema)
    widths = widths_of(weights, checkpoint)
    heads = check_said(widths, config, checkpoint)
    model = construct(
        PRDiTTransformerModel,
        config.source,
        patch_size=widths.patch_size,
        in_channels=widths.in_channels,
        num_layers=widths.num_layers,
        num_attention_heads=heads,
        attention_head_dim=widths.hidden_size // heads,
        mlp_ratio=widths.mlp_ratio,
        **extra,
    )
    ours = model.state_dict()
    names = {name: transformer_name(name, NAMES) for name in ours}
    expected = {names[name]: fused_shape(name, value) for name, value in ours.items()}
    check_names(expected, weights, checkpoint, config.source)
    model.load_state_dict({name: part_of(name, weights[theirs]) for name, theirs in names.items()})
    return model.eval()


# --- What the checkpoint holds ---


def as_entries(checkpoint: Checkpoint, ema: bool) -> Checkpoint:
    """A checkpoint with an entry `model`: the authors also sample from bare weights, and from the EMA alone."""
    entries = checkpoint.entries
    if is_table_of_tensors(entries):
        entries = {"model": entries}
    elif "model" not in entries and ema and is_table_of_tensors(entries.get("ema")):
        entries = {**entries, "model": entries["ema"]}
    return Checkpoint(checkpoint.path, entries, checkpoint.strangers)


def config_of(checkpoint: Checkpoint, given: PRDiTConfig | None) -> PRDiTConfig:
    """What the config inside the checkpoint and the one that was given say."""
    inside = understand(checkpoint.entries.get("config"), checkpoint.file)
    return inside if given is None else inside.beside(given)


def widths_of(weights: Weights, checkpoint: Checkpoint) -> Widths:
    if missing := [name for name in (TIME, HEAD) if name not in weights or weights[name].ndim != 2]:
        hint = f" Objects of {some(list(checkpoint.strangers))} in it were not opened." if checkpoint.strangers else ""
        raise CardioDiTError(
            f"{checkpoint.file} holds no PRDiT: {some(missing)} missing among its {len(weights)} weights.{hint}"
        )
    hidden_size, (features, width) = len(weights[TIME]), weights[HEAD].shape
    channels = features // (2 * TILE**3)
    patch = round((width / max(channels, 1)) ** (1 / 3))
    if channels * 2 * TILE**3 != features or channels * patch**3 != width:
        raise CardioDiTError(
            f"{checkpoint.file} holds another variant of PRDiT: it predicts {features} values for each patch of "
            f"{width} voxels. Expected were {2 * TILE**3} for each channel, the noise and the image of {TILE}³ voxels."
        )
    blocks = {match[1] for name in weights if (match := BLOCK.match(name))}
    inner = len(weights[EMBED]) if EMBED in weights else 4 * hidden_size
    return Widths(hidden_size, patch, channels, len(blocks), inner / hidden_size)


def check_said(widths: Widths, config: PRDiTConfig, checkpoint: Checkpoint) -> int:
    """Compares what is said with what the weights tell; returns the heads, which they do not tell."""
    published = dict(SIZES.values())
    heads = published.get(widths.hidden_size, config.num_heads)
    if heads is None:
        raise CardioDiTError(
            f"{checkpoint.file}: no published PRDiT is {widths.hidden_size} wide, so that its heads are not known. "
            "Give the YAML of its training (--cfg), with model.num_heads."
        )
    if widths.hidden_size % heads:
        raise CardioDiTError(f"{config.source}: num_heads {heads} does not divide the width {widths.hidden_size}.")
    name = config.name and NAME.fullmatch(config.name)
    facts = [
        ("width", SIZES[name[1]][0] if name else None, widths.hidden_size),
        ("patch", int(name[2]) if name else None, widths.patch_size),
        ("depth", int(name[3]) if name else None, widths.num_layers),
        ("in_channels", config.in_channels, widths.in_channels),
        ("out_channels", config.out_channels, 2 * widths.in_channels),
        ("num_heads", config.num_heads, heads),
    ]
    problems = Problems(f"The weights in {checkpoint.file} are not those of the model that {config.source} describes")
    for what, said, found in facts:
        if said is not None and said != found:
            problems.add(f"{what}: {said} by the config, {found} by the weights.")
    problems.raise_if_any("Use the config that the checkpoint was trained with, or none (no --cfg).")
    return heads


# --- What the user says ---


def preset_named(preset: str) -> Preprocessing:
    if preset not in PRESETS:
        raise CardioDiTError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]


def choose_size(given: Size | None, config: PRDiTConfig, checkpoint: Checkpoint) -> Size:
    """What was given, else the config's. The weights fit volumes of any size, so they do not tell."""
    if given is not None:
        if config.size not in (None, given):
            print(f"Using the size {_by(given)} that was given, not {_by(config.size)} from {config.source}.")
        return given
    if config.size is not None:
        return config.size
    hint = f" Its config ({', '.join(checkpoint.strangers)}) is no plain data." if checkpoint.strangers else ""
    raise CardioDiTError(
        f"{config.source} does not say how large the volumes were that it was trained on.{hint} Give the YAML of its "
        "training (--cfg), where that has data.image_size, or their size in voxels (--size, such as 128 128 128)."
    )


def choose_spacing(
    given: tuple[float, float, float] | None, size: Size, steps: Preprocessing | None, preset: str | None
) -> tuple[float, float, float] | None:
    """What was given, else the preset's, which must make volumes of the model's size and spacing."""
    if steps is None:
        return given
    made = [None if length is None else length // steps.pool for length in steps.size]
    if any(length is not None and length != wanted for length, wanted in zip(made, size, strict=True)):
        raise CardioDiTError(
            f"The preset {preset} makes volumes of {_by(made)} voxels, but the model was trained on {_by(size)}. "
            "Choose the preset of its training, or another --size."
        )
    height, width, depth = steps.spacing
    if height is None or width is None or depth is None:
        return given
    known = (height * steps.pool, width * steps.pool, depth * steps.pool)
    if given is not None and given != known:
        raise CardioDiTError(f"The preset {preset} makes voxels of {_by(known)} mm, but --spacing says {_by(given)}.")
    return known


def tell_what_is_missing(
    checkpoint: Checkpoint,
    config: PRDiTConfig,
    spacing: tuple[float, float, float] | None,
    steps: Preprocessing | None,
) -> None:
    if checkpoint.strangers:
        print(
            f"{checkpoint.file} also holds objects of {', '.join(checkpoint.strangers)}: their code was not run, and "
            "of their content only plain values of the config were read."
        )
    if config.name is None:
        print("No config names the model: its width, patch and depth are those of the weights.")
    if spacing is None:
        print("No voxel spacing was given (mm): the volumes of this model carry no scanner space.")
    if steps is None:
        print("No preset was given: the model does not say how its training volumes were prepared, nor in which units.")


def _by(lengths: Any) -> str:
    return " × ".join(str(length) for length in lengths)
