"""PRDiT as its authors save it: the recorded cases, whose weights follow a rule, and smaller checkpoints."""

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
CASES = ("prdit", "prdit_local_only")
Weights = dict[str, torch.Tensor]
Shapes = dict[str, list[int]]


def by_rule(key: str, shape: list[int], size: float | None = None) -> torch.Tensor:
    """The rule of `case.json`."""
    number = zlib.crc32(key.encode())
    if size is None:
        size = 1 / math.sqrt(shape[1]) if len(shape) > 1 else 0.05
    start = 0.0
    if key.endswith("norm.weight"):
        start, size = 1.0, 0.1
    steps = np.arange(math.prod(shape), dtype=np.float64) * (0.37 + (number % 997) / 1000)
    values = start + size * np.sin(steps + number % 1009)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def case(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "case.json").read_text())


def expected(name: str) -> Weights:
    return load_file(GOLDEN / name / "expected.safetensors")


def case_weights(name: str) -> Weights:
    return {key: by_rule(key, shape) for key, shape in case(name)["keys"].items()}


def shapes(hidden: int, patch: int, depth: int, channels: int = 1) -> Shapes:
    """All weights of the authors' model, by name."""
    width, out = channels * patch**3, channels * 2 * 8**3
    layers = {
        "t_embedder.mlp.0": (hidden, 256),
        "t_embedder.coarse_head": (width, hidden),
        **{f"coarse.mlp_denoise.mlp{i}.{fc}": (width, width) for i in (1, 2) for fc in ("fc1_g", "fc1_x", "fc2")},
        "coarse.mlp_denoise.linear_final": (out, width),
        "coarse.mlp_denoise.adaLN_modulation.1": (6 * width, width),
    }
    norms = {f"coarse.mlp_denoise.mlp{i}.norm": width for i in (1, 2)}
    if depth:
        layers |= {
            "t_embedder.fine_head": (hidden, hidden),
            "fine.patch_embedder.fc1": (4 * hidden, width),
            "fine.patch_embedder.fc2": (hidden, 4 * hidden),
            "fine.final_layer.linear": (out, hidden),
            "fine.final_layer.adaLN_modulation.1": (2 * hidden, hidden),
        }
        norms["fine.patch_embedder.norm"] = hidden
    for block in range(depth):
        inside = {
            "attn.qkv": (3 * hidden, hidden),
            "attn.proj": (hidden, hidden),
            "mlp.fc1": (4 * hidden, hidden),
            "mlp.fc2": (hidden, 4 * hidden),
            "adaLN_modulation.1": (6 * hidden, hidden),
        }
        layers |= {f"fine.blocks.{block}.{name}": shape for name, shape in inside.items()}
    found: Shapes = {f"{name}.weight": list(shape) for name, shape in layers.items()}
    found |= {f"{name}.bias": [shape[0]] for name, shape in layers.items()}
    found |= {f"{name}.{leaf}": [length] for name, length in norms.items() for leaf in ("weight", "bias")}
    if depth:
        found["fine.patch_embedder.skip.weight"] = [hidden, width]
    return found


@cache
def small_weights(hidden: int = 192, patch: int = 8, depth: int = 1, channels: int = 1, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    found = shapes(hidden, patch, depth, channels).items()
    return {name: torch.randn(shape, generator=generator) * 0.03 for name, shape in found}


def config(name: str = "PRDiT-XS/8/1", size: Any = 32) -> dict[str, Any]:
    """As the authors keep it in their checkpoints: the YAML of the training, read."""
    return {
        "data": {"image_size": size, "path": "/data/lidc", "task": "lidc", "augment": False},
        "model": {"name": name, "num_classes": 1, "in_channels": 1, "out_channels": 2, "pretrained_path": ""},
        "training": {"batch_size": 64, "learning_rate": 8e-5, "weight_decay": 0.0},
        "wandb": {"project": "", "name": "a run", "enable": False},
    }


def save(path: Path, weights: Weights, **entries: Any) -> Path:
    """A checkpoint in the authors' layout; the raw weights are far from the EMA's."""
    whole = {"model": {name: value + 1 for name, value in weights.items()}, "ema": weights, "config": config()}
    whole |= {"epoch": 8000, "train_steps": 130_000, **entries}
    torch.save({name: value for name, value in whole.items() if value is not None}, path)
    return path
