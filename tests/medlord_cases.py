"""The published MedLoRD in small: weights that follow a rule, as its authors' code would save them."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
TRAINED = GOLDEN / "medlord"  # two levels, with weights
RULED = GOLDEN / "medlord_3level"  # three levels, whose weights follow the rule of its case.json
CASE: dict[str, Any] = json.loads((RULED / "case.json").read_text())

Tensors = dict[str, torch.Tensor]


def drawn(text: str, shape: list[int], start: float = 0.0, size: float = 1.0) -> torch.Tensor:
    values = np.random.RandomState(zlib.crc32(text.encode())).standard_normal(shape)
    return torch.from_numpy((start + size * values).astype(np.float32))


def weights(group: str) -> Tensors:
    """The weights of a group of the case, such as "unet_ema"."""
    table = CASE["groups"][group.removesuffix("_ema")]
    return {key: drawn(f"{group}/{key}", *entry) for key, entry in table.items()}


def condition() -> torch.Tensor:
    given = CASE["inputs"]["condition"]
    masks = [np.random.RandomState(zlib.crc32(text.encode())).random_sample(given["shape"]) for text in given["text"]]
    return torch.from_numpy(np.stack([mask < 0.3 for mask in masks], axis=1).astype(np.float32))


def given(name: str) -> torch.Tensor:
    """An input of the case."""
    values = drawn(CASE["inputs"][name]["text"], CASE["inputs"][name]["shape"])
    return (0.5 * values).clamp(-1, 1) if "image" in name else values


def expected(case: Path = RULED) -> Tensors:
    return load_file(case / "expected.safetensors")


def checkpoints(folder: Path) -> dict[str, Path]:
    """Training checkpoints of all three stages in the authors' layout, with their configs, as options of `convert`."""
    entries: dict[str, dict[str, Any]] = {
        "stage1": {"model": weights("vqgan"), "discriminator": weights("discriminator")},
        "diff": {"model": weights("unet"), "ema": {"decay": 0.999, "shadow": weights("unet_ema")}},
        "controlnet": {"model": weights("controlnet"), "ema": {"decay": 0.999, "shadow": weights("controlnet_ema")}},
    }
    files = {"stage1": "vqgan", "diff": "ldm", "controlnet": "controlnet"}
    for stage, content in entries.items():
        torch.save({"epoch": 3, "best_loss": 0.5, **content}, folder / f"{files[stage]}_best_model.pth")
    made = {f"{stage}_ckpt": folder / f"{name}_best_model.pth" for stage, name in files.items()}
    return made | {f"{stage}_cfg": RULED / f"{name}.yaml" for stage, name in files.items()}
