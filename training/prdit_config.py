"""Translate the YAML files of PRDiT's authors to our configs, so that `train_prdit --config` accepts either.

Paths and what only their code needs are ignored, with a note where an option of ours takes their place.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.typed_yaml import Count, Reader
from cardiodit.convert.prdit import NAME, SIZES
from cardiodit.convert.upstream_config import Ignored
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.models.transformer_prdit import TILE

Plain = dict[str, Any]
PRESET_OF_TASK = {"lidc": "prdit-lidc", "radchest": "prdit-radchest", "rad-chestct": "prdit-radchest"}


@dataclass(frozen=True, kw_only=True)
class _Data:
    image_size: Count
    base_image_size: Count | None = None
    task: str | None = None
    path: str | None = None
    train_list: str | None = None
    val_list: str | None = None
    num_workers: int | None = None
    val_frac: float | None = None
    augment: bool = False
    normalize: bool = True


@dataclass(frozen=True, kw_only=True)
class _Model:
    name: str
    num_classes: int = 1
    in_channels: Count = 1
    out_channels: Count = 2
    num_sampling_steps: Count | None = None
    pretrained_path: str | None = None
    checkpoint: str | None = None
    flash_attn: bool | None = None
    grad_checkpoint: bool | None = None
    from_scratch: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _BaseModel:
    name: str | None = None
    in_channels: Count | None = None
    out_channels: Count | None = None
    checkpoint: str | None = None
    finetune: bool = False


@dataclass(frozen=True, kw_only=True)
class _SRModel:
    hidden_size: Count = 768
    patch_size: Count = 12
    stride: Count = 8
    padding: int = 2
    resume_checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Training:
    batch_size: Count | None = None
    grad_accum_steps: Count | None = None
    amp: bool | None = None
    learning_rate: float | None = None
    fine_tune_lr: float | None = None
    total_steps: Count | None = None
    seed: int | None = None
    weight_decay: float | None = None
    gradient_clip: float | None = None


@dataclass(frozen=True, kw_only=True)
class _PRDiTFile:
    data: _Data
    model: _Model
    training: _Training = _Training()
    base_model: _BaseModel | None = None
    sr_model: _SRModel | None = None
    wandb: Ignored = None


def translate_prdit(path: Path, raw: Plain) -> Plain | None:
    """Return our config for their file; None for a file in our layout."""
    model = raw.get("model")
    if not (isinstance(model, dict) and str(model.get("name", "")).startswith("PRDiT-")):
        return None
    file = Reader(path.name).section(_PRDiTFile, raw, "")
    match = NAME.fullmatch(file.model.name)
    if match is None:
        raise CardioDiTError(
            f"{path.name}: model.name is {file.model.name!r}; expected PRDiT-{{size}}/{{patch}}/{{depth}} with a size "
            f"of {', '.join(SIZES)}."
        )
    if file.data.augment:
        raise CardioDiTError(
            f"{path.name}: data.augment would change training, and how is not published. Set it to false, and choose "
            "data.augmentation in a config of our own."
        )
    is_flow = file.model.out_channels == file.model.in_channels
    section = _super_resolution(path, file) if file.sr_model is not None else _denoiser(match)
    training = file.training
    run = {
        "seed": training.seed,
        "train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.grad_accum_steps,
        "mixed_precision": None if training.amp is None else "bf16" if training.amp else "no",
        "learning_rate": training.learning_rate,
        "max_train_steps": training.total_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.gradient_clip,
        "gradient_checkpointing": file.model.grad_checkpoint,
        "dataloader_num_workers": file.data.num_workers,
        "ema_decay": 0.9999,
        "ema_warmup": False,
    }
    if file.base_model is not None and file.base_model.finetune:
        run |= {"train_base": True, "learning_rate": training.fine_tune_lr or training.learning_rate}
    plain: Plain = {
        "model": section,
        "process": {"objective": "flow_matching" if is_flow else "noise_and_image"},
        "data": {"preprocessing": {"preset": _preset(file)}, "cache": "disk"},
        "training": {key: value for key, value in run.items() if value is not None},
    }
    _say_what_is_missing(path, file, section)
    return plain


def _denoiser(match: Any) -> Plain:
    hidden, heads = SIZES[match[1]]
    patch, depth = int(match[2]), int(match[3])
    tile = int(match[4]) if match[4] else 4 if patch == 4 else TILE
    return {
        "patch_size": patch,
        "tile_size": tile,
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
    }


def _super_resolution(path: Path, file: _PRDiTFile) -> Plain:
    sr, data = file.sr_model, file.data
    assert sr is not None
    factor = 0 if data.base_image_size is None else data.image_size // data.base_image_size
    if data.base_image_size is None or factor < 2 or data.base_image_size * factor != data.image_size:
        raise CardioDiTError(
            f"{path.name}: data.image_size {data.image_size} must be a multiple of data.base_image_size "
            f"{data.base_image_size}, the size of the volumes that are enlarged."
        )
    if sr.stride != TILE or sr.padding * 2 != sr.patch_size - TILE:
        raise CardioDiTError(
            f"{path.name}: sr_model has the stride {sr.stride} and the padding {sr.padding}; patches of "
            f"{sr.patch_size} voxels have the stride {TILE} and the padding {(sr.patch_size - TILE) / 2:g} here."
        )
    return {
        "patch_size": sr.patch_size,
        "num_layers": 0,
        "num_attention_heads": 1,
        "attention_head_dim": sr.hidden_size,
        "super_resolution": factor,
    }


def _preset(file: _PRDiTFile) -> str | None:
    """Return the preset whose volumes have the size of the file; None if there is none."""
    name = PRESET_OF_TASK.get((file.data.task or "").lower())
    for candidate in (name, f"{name}-128", f"{name}-64"):
        steps = PRESETS.get(candidate or "")
        if steps is not None and steps.size[0] == file.data.image_size * steps.pool:
            return candidate
    return None


def _say_what_is_missing(path: Path, file: _PRDiTFile, section: Plain) -> None:
    notes = []
    if _preset(file) is None:
        notes.append(
            f"no preset makes volumes of {file.data.image_size}³ voxels for the task {file.data.task}: set "
            "data.preprocessing, or --data.preprocessing.size"
        )
    if file.sr_model is not None:
        notes.append("the model that is enlarged is given as --base, and the run to fine-tune as --init_from")
    elif section["num_layers"]:
        notes.append("the local denoiser (model.pretrained_path there) is given as --stage1")
    for note in notes:
        print(f"{path.name}: {note}.", file=sys.stderr)
