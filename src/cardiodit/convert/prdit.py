"""Conversion of PRDiT's published checkpoints into a pipeline folder.

Configs are read from the checkpoints or from YAML, in whatever layout the authors used.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from cardiodit._util.atomic_io import new_folder
from cardiodit._util.terminal import say
from cardiodit._util.typed_yaml import read_yaml
from cardiodit.convert.cardiodit import (
    NO_SPACING,
    TRANSFORMER_NAMES,
    check_geometry,
    construct,
    load_weights,
    transformer_name,
    write_record,
)
from cardiodit.convert.checkpoint import Checkpoint, Weights, is_table_of_tensors, read_checkpoint, some
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.models.transformer_prdit import NOISE_AND_IMAGE, TILE, PRDiTTransformerModel, plain_config
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.schedulers.flow_scheduler import FLOW_TO_DATA
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler

Size = tuple[int, int, int]
KeyPath = tuple[str, ...]

# Hidden width and heads by the size in a model's name, PRDiT-{size}/{patch}/{depth}.
SIZES = {"XS": (192, 6), "S": (384, 6), "B": (768, 12), "L": (1024, 16), "XL": (1152, 16)}
NAME = re.compile(rf"PRDiT-(?:SR-)?({'|'.join(SIZES)})/(\d+)/(\d+)(?:-s(\d+))?")
MODEL_KEYS = ("model", "model_name", "arch", "architecture")
VOLUME_KEYS = ("image_size", "img_size", "input_size", "sample_size", "volume_size", "resolution")
SIZE_OF_BASE = "base_image_size"  # of a super-resolution model
BASE = "base."  # of the weights of the model that it corrects
# Prefixes of its own weights, and of those of a local denoiser, which it is.
OWN = {"t_embedder_sr.": "t_embedder.", "sr.": "coarse."}
TILES = (8, 4, 16)  # 4 and 16 only in models whose patches do not overlap

# The authors' names of our modules, which are given as patterns.
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
    **{
        pattern: f"fine.{name}"
        for pattern, name in TRANSFORMER_NAMES.items()
        if pattern.startswith("transformer_blocks") or pattern in ("modulation_out", "proj_out")
    },
}
TIME, HEAD, EMBED = (
    "t_embedder.mlp.0.weight",
    "coarse.mlp_denoise.linear_final.weight",
    "fine.patch_embedder.fc1.weight",
)
BLOCK = re.compile(r"fine\.blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class PRDiTConfig:
    """The values that a config contains; None for those that it does not.

    Args:
        source: name of the config in error messages.
        name: name of the model, PRDiT-{size}/{patch}/{depth}.
        size: voxels along the axes of the training volumes.
        num_heads, in_channels, out_channels: attention heads and channels of the network.
        base_size: of a super-resolution model, voxels along the axes of the smaller volumes.
    """

    source: str
    name: str | None = None
    size: Size | None = None
    num_heads: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    base_size: Size | None = None

    def merged(self, other: "PRDiTConfig") -> "PRDiTConfig":
        """Return the values of both configs, or raise if they contradict each other."""
        values: dict[str, Any] = {"source": f"{self.source} and {other.source}"}
        for field in fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if field.name != "source" and None not in (own, others) and own != others:
                raise CardioDiTError(
                    f"{self.source} says {field.name} {own}, but {other.source} says {others}. "
                    "Give the YAML of this training, or none (no --cfg)."
                )
            values.setdefault(field.name, others if own is None else own)
        return PRDiTConfig(**values)


@dataclass(frozen=True)
class Widths:
    """Settings of a model that follow from the shapes of its weights."""

    hidden_size: int
    patch_size: int
    in_channels: int
    num_layers: int
    mlp_ratio: float
    tile_size: int
    heads: int


def convert_prdit(
    ckpt: str | PathLike,
    output_dir: str | PathLike,
    cfg: str | PathLike | None = None,
    size: Size | None = None,
    preset: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    ema: bool = True,
) -> Path:
    """Write a `PRDiTPipeline` folder from the authors' checkpoint, of either stage.

    Args:
        ckpt: checkpoint; the config inside it is read if it is plain data.
        output_dir: new or empty folder, which is written completely or not at all.
        cfg: YAML of the training, if the checkpoint does not contain it.
        size: voxels along the axes of the training volumes; default: those in the config.
        preset: preprocessing of the training volumes, by its name in `cardiodit.imaging.PRESETS`, if known.
        spacing: voxel size of the training volumes in mm, if known; default: that of the preset.
        ema: use the EMA weights if the checkpoint contains them.
    """
    given = None if cfg is None else find_settings(read_yaml(cfg), Path(cfg).name)
    if preset is not None and preset not in PRESETS:
        raise CardioDiTError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    steps = None if preset is None else PRESETS[preset]
    check_geometry(spacing)
    with new_folder(Path(output_dir)) as folder:
        checkpoint = with_model_entry(read_checkpoint(ckpt, stand_ins=True), ema)
        config = find_settings(checkpoint.entries.get("config"), checkpoint.file)
        config = config if given is None else config.merged(given)
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
        PRDiTPipeline(transformer, scheduler_for(transformer)).save_pretrained(folder)
        write_record(folder, checkpoint, ema)
    if checkpoint.replaced:
        say(
            f"{checkpoint.file} also contains objects of {', '.join(checkpoint.replaced)}: their code was not run, and "
            "only plain values of the config were read from them."
        )
    if config.name is None:
        say("No config names the model: its width, patch and depth were derived from the weights.")
    if spacing is None:
        say(NO_SPACING)
    if steps is None:
        say("No preset was given: the preprocessing and the units of the training volumes are unknown.")
    return Path(output_dir)


def build_prdit(checkpoint: Checkpoint, config: PRDiTConfig, ema: bool = True, **extra: Any) -> PRDiTTransformerModel:
    """Build the model; `extra` holds config keys that do not follow from the weights, such as `sample_size`."""
    weights = checkpoint.weights(ema)
    if any(name.startswith(BASE) for name in weights):
        return build_super_resolution(weights, checkpoint, config, **extra)
    return build_denoiser(weights, checkpoint, config, **extra)


def build_denoiser(
    weights: Weights, checkpoint: Checkpoint, config: PRDiTConfig, **extra: Any
) -> PRDiTTransformerModel:
    """Build a model of stage 1 or 2."""
    widths = widths_of(weights, checkpoint, config.in_channels)
    heads = choose_heads(widths, config, checkpoint)
    model = construct(
        PRDiTTransformerModel,
        config.source,
        patch_size=widths.patch_size,
        in_channels=widths.in_channels,
        num_layers=widths.num_layers,
        num_attention_heads=heads,
        attention_head_dim=widths.hidden_size // heads,
        mlp_ratio=widths.mlp_ratio,
        tile_size=widths.tile_size,
        prediction_type=NOISE_AND_IMAGE if widths.heads == 2 else FLOW_TO_DATA,
        **extra,
    )
    return load_weights(model, weights, lambda name: transformer_name(name, NAMES), checkpoint, config.source)


def build_super_resolution(
    weights: Weights, checkpoint: Checkpoint, config: PRDiTConfig, sample_size: Size, **extra: Any
) -> PRDiTTransformerModel:
    """Build a model of stage 3: a whole model of smaller volumes, and a local denoiser that corrects it."""
    factor = 0 if config.base_size is None else sample_size[0] // config.base_size[0]
    if config.base_size is None or tuple(length * factor for length in config.base_size) != tuple(sample_size):
        raise CardioDiTError(
            f"{checkpoint.file} is a super-resolution model for volumes of {_by(sample_size)} voxels, and its config "
            f"says that its base is for {config.base_size and _by(config.base_size)}: expected data.{SIZE_OF_BASE}, of "
            "which the size is a multiple. Give the YAML of its training (--cfg)."
        )
    of_base = {name.removeprefix(BASE): value for name, value in weights.items() if name.startswith(BASE)}
    base = build_denoiser(of_base, checkpoint, config, sample_size=config.base_size)
    own = {_own_name(name): value for name, value in weights.items() if not name.startswith(BASE)}
    widths = widths_of(own, checkpoint, config.in_channels)
    model = construct(
        PRDiTTransformerModel,
        config.source,
        sample_size=sample_size,
        patch_size=widths.patch_size,
        in_channels=widths.in_channels,
        num_layers=0,
        num_attention_heads=1,
        attention_head_dim=widths.hidden_size,
        tile_size=widths.tile_size,
        super_resolution=factor,
        base_config=plain_config(base),
        **extra,
    )
    everything = {**own, **{BASE + name: value for name, value in of_base.items()}}

    def author_name(name: str) -> str:
        prefix = BASE if name.startswith(BASE) else ""
        return prefix + transformer_name(name.removeprefix(prefix), NAMES)

    return load_weights(model, everything, author_name, checkpoint, config.source)


def _own_name(name: str) -> str:
    """Return the name in a local denoiser of one of the own weights of a super-resolution model."""
    for prefix, local in OWN.items():
        if name.startswith(prefix):
            return local + name.removeprefix(prefix)
    return name


def scheduler_for(model: PRDiTTransformerModel) -> Any:
    """Create the default solver of a model's process."""
    if model.config.prediction_type == NOISE_AND_IMAGE:
        return NoiseAndImageScheduler()
    return FlowMatchEulerDiscreteScheduler(model.config.num_train_timesteps, invert_sigmas=True)


# --- Content of the checkpoint ---


def with_model_entry(checkpoint: Checkpoint, ema: bool) -> Checkpoint:
    """Add an entry `model` to a checkpoint of bare weights or of EMA weights alone, as the authors' script accepts."""
    entries = checkpoint.entries
    if is_table_of_tensors(entries):
        entries = {"model": entries}
    elif "model" not in entries and ema and is_table_of_tensors(entries.get("ema")):
        entries = {**entries, "model": entries["ema"]}
    return Checkpoint(checkpoint.path, entries, checkpoint.replaced)


def widths_of(weights: Weights, checkpoint: Checkpoint, in_channels: int | None = None) -> Widths:
    """Derive the settings of the model from the shapes of its weights."""
    if missing := [name for name in (TIME, HEAD) if name not in weights or weights[name].ndim != 2]:
        hint = f" Objects of {some(list(checkpoint.replaced))} in it were not opened." if checkpoint.replaced else ""
        raise CardioDiTError(
            f"{checkpoint.file} holds no PRDiT: {some(missing)} missing among its {len(weights)} weights.{hint}"
        )
    hidden_size, (features, width) = len(weights[TIME]), weights[HEAD].shape
    found = [
        (features // (heads * tile**3), tile, heads, patch)
        for tile in TILES
        for heads in (2, 1)
        if features % (heads * tile**3) == 0
        for patch in [round((width * heads * tile**3 / features) ** (1 / 3))]
        if features * patch**3 == width * heads * tile**3 and (patch == tile or patch >= tile == TILE)
    ]
    if not found:
        raise CardioDiTError(
            f"{checkpoint.file} holds another variant of PRDiT: it predicts {features} values for each patch of "
            f"{width} voxels. Expected {TILE}³ per channel (flow matching), or twice as many: the noise and the image; "
            "or 4³ or 16³ with patches of that size."
        )
    fitting = [option for option in found if option[0] == in_channels] or found
    channels, tile, heads, patch = min(fitting)  # the fewest channels
    blocks = {match[1] for name in weights if (match := BLOCK.match(name))}
    inner = len(weights[EMBED]) if EMBED in weights else 4 * hidden_size
    return Widths(hidden_size, patch, channels, len(blocks), inner / hidden_size, tile, heads)


def choose_heads(widths: Widths, config: PRDiTConfig, checkpoint: Checkpoint) -> int:
    """Check the config against the weights, and return the number of heads, which does not follow from them."""
    published = dict(SIZES.values())
    heads = published.get(widths.hidden_size, config.num_heads)
    if heads is None:
        raise CardioDiTError(
            f"{checkpoint.file}: no published PRDiT is {widths.hidden_size} wide, so its number of heads is unknown. "
            "Give the YAML of its training (--cfg), with model.num_heads."
        )
    if widths.hidden_size % heads:
        raise CardioDiTError(f"{config.source}: num_heads {heads} does not divide the width {widths.hidden_size}.")
    name = config.name and NAME.fullmatch(config.name)
    settings = [
        ("width", SIZES[name[1]][0] if name else None, widths.hidden_size),
        ("patch", int(name[2]) if name else None, widths.patch_size),
        ("depth", int(name[3]) if name else None, widths.num_layers),
        ("in_channels", config.in_channels, widths.in_channels),
        ("stride", int(name[4]) if name and name[4] else None, widths.tile_size),
        ("out_channels", config.out_channels, widths.heads * widths.in_channels),
        ("num_heads", config.num_heads, heads),
    ]
    problems = Problems(f"The weights in {checkpoint.file} are not those of the model that {config.source} describes")
    for label, configured, actual in settings:
        if configured is not None and configured != actual:
            problems.add(f"{label}: {configured} by the config, {actual} by the weights.")
    problems.raise_if_any("Use the config that the checkpoint was trained with, or none (no --cfg).")
    return heads


# --- Settings of the user ---


def choose_size(given: Size | None, config: PRDiTConfig, checkpoint: Checkpoint) -> Size:
    """Return the given size, or else the config's; the weights fit volumes of any size."""
    if given is not None:
        if config.size not in (None, given):
            say(f"Using the given size {_by(given)}, not {_by(config.size)} from {config.source}.")
        return given
    if config.size is not None:
        return config.size
    hint = f" Its config ({', '.join(checkpoint.replaced)}) is not plain data." if checkpoint.replaced else ""
    raise CardioDiTError(
        f"The size of the training volumes is not in {config.source}.{hint} Give the YAML of its training (--cfg) if "
        "that has data.image_size, or the size in voxels (--size, such as 128 128 128)."
    )


def choose_spacing(
    given: tuple[float, float, float] | None, size: Size, steps: Preprocessing | None, preset: str | None
) -> tuple[float, float, float] | None:
    """Return the given spacing, or else the preset's; the preset must fit the model's size and the given spacing."""
    if steps is None:
        return given
    preset_size = [None if length is None else length // steps.pool for length in steps.size]
    if any(length not in (None, expected) for length, expected in zip(preset_size, size, strict=True)):
        raise CardioDiTError(
            f"The preset {preset} makes volumes of {_by(preset_size)} voxels, but the model was trained on {_by(size)}."
            " Choose the preset of its training, or another --size."
        )
    height, width, depth = steps.spacing
    if height is None or width is None or depth is None:
        return given
    known = (height * steps.pool, width * steps.pool, depth * steps.pool)
    if given is not None and given != known:
        raise CardioDiTError(f"The preset {preset} makes voxels of {_by(known)} mm, but --spacing says {_by(given)}.")
    return known


def _by(lengths: Any) -> str:
    return " × ".join(str(length) for length in lengths)


# --- Configs ---


def find_settings(config: Any, source: str) -> PRDiTConfig:
    """Search a config, made of dictionaries or of objects with attributes, for the settings of the model."""
    leaves = [(path, value) for path, value in _leaves(config) if value is not None]

    def search(matches: Callable[[KeyPath], bool], parse: Callable[[Any, str], Any]) -> Any:
        """Return the value that all matching keys share; None without a match."""
        keys = [(".".join(path), value) for path, value in leaves if matches(path)]
        found = [(key, parse(value, f"{source}: {key}")) for key, value in keys]
        for key, value in found[1:]:
            if value != found[0][1]:
                raise CardioDiTError(f"{source} contradicts itself: {found[0][0]} is {found[0][1]}, {key} is {value}.")
        return found[0][1] if found else None

    return PRDiTConfig(
        source=source,
        name=search(_is_model_name, _parse_name),
        size=search(lambda path: path[-1] in VOLUME_KEYS, _parse_size),
        num_heads=search(lambda path: path[-1] == "num_heads", _parse_count),
        in_channels=search(lambda path: path[-1] == "in_channels", _parse_count),
        out_channels=search(lambda path: path[-1] == "out_channels", _parse_count),
        base_size=search(lambda path: path[-1] == SIZE_OF_BASE, _parse_size),
    )


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values of a config with the keys that lead to them."""
    if isinstance(value, dict):
        for key, item in {**getattr(value, "__dict__", {}), **value}.items():
            yield from _leaves(item, (*path, str(key)))
    elif path:
        yield path, value


def _is_model_name(path: KeyPath) -> bool:
    return path[-1] in MODEL_KEYS or (path[-1] == "name" and len(path) > 1 and path[-2] in MODEL_KEYS)


def _parse_name(value: Any, key: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise CardioDiTError(
            f"{key} is {value!r}, which is not a model that can be converted; expected "
            f"PRDiT-{{size}}/{{patch}}/{{depth}} with a size of {', '.join(SIZES)}."
        )
    return value


def _parse_size(value: Any, key: str) -> Size:
    values = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(values) != 3:
        raise CardioDiTError(f"{key} is {value!r}; expected a number of voxels or a list of three.")
    height, width, depth = (_parse_count(length, key) for length in values)
    return height, width, depth


def _parse_count(value: Any, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CardioDiTError(f"{key} is {value!r}; expected a positive integer.")
    return value
