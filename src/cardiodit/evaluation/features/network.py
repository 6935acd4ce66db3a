"""A feature network: one volume in, one vector out, and every word and hash the report needs of it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import InputRules
from cardiodit.evaluation.features.rows import KINDS, spatial_row, spatiotemporal_row
from cardiodit.imaging.geometry import Triple

FORMAT = 1  # to be raised when the same settings would give other numbers, so that older rows are computed anew
SLACK = 0.01  # beyond [-1, 1]


class FeatureNetwork(Protocol):
    """What the metrics ask of a network."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """SHA-256 over the weights and all that changes numbers."""

    def describe(self) -> dict[str, Any]:
        """For the report's protocol."""

    def features(self, voxels: np.ndarray, spacing: Triple | None = None) -> np.ndarray:
        """One row `(f,)` float64 of a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1]."""


@dataclass(frozen=True)
class TorchNetwork:
    """A torch module over single volumes, with the rules of its input.

    Args:
        name: as asked for and as reported.
        module: `(1, 1, A, B, C)` → `(1, width)`. Volumes pass one by one: a row never depends on its neighbours.
        width: of what the module says.
        weights: for the report: where they come from, and their `sha256`.
        rules: of the input.
        kind: of rows, "spatial" or "spatiotemporal".
        frames: of a cine, evenly spread, for spatial rows; None for all.
        slices: of a cine, evenly spread, for spatiotemporal rows; None for all.
        settings: what else changes numbers, or must be said.
        device: where the module runs; the same numbers to rounding.
    """

    name: str
    module: nn.Module
    width: int
    weights: dict[str, Any]
    rules: InputRules = InputRules()  # noqa: RUF009 (frozen)
    kind: str = "spatial"
    frames: int | None = 4
    slices: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CardioDiTError(f"There are no {self.kind!r} rows; choose from {', '.join(KINDS)}.")
        for name, value in (("frames", self.frames), ("slices", self.slices)):
            if value is not None and value < 1:
                raise CardioDiTError(f"{name}={value} must be at least 1, or None for all.")
        self.module.eval().to(self.device)

    @property
    def dimension(self) -> int:
        """Of a row."""
        return self.width if self.kind == "spatial" else 2 * self.width

    @cached_property
    def identity(self) -> str:
        told = {key: value for key, value in self.describe().items() if key != "weights"}
        text = json.dumps([FORMAT, self.weights["sha256"], told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        # Only what a kind of row looks at is told: the other number changes nothing.
        spread = {"frames": self.frames} if self.kind == "spatial" else {"slices": self.slices}
        return {
            "name": self.name,
            "weights": self.weights,
            "rows": self.kind,
            "dimension": self.dimension,
            "input": self.rules.describe(),
            **{name: "all" if value is None else value for name, value in spread.items()},
            **self.settings,
        }

    def features(self, voxels: np.ndarray, spacing: Triple | None = None) -> np.ndarray:
        _check(voxels)
        with torch.inference_mode(), _exact_arithmetic():
            if self.kind == "spatial":
                return spatial_row(self._encode, self.rules, voxels, spacing, self.frames)
            return spatiotemporal_row(self._encode, self.rules, voxels, spacing, self.slices)

    def _encode(self, volume: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
        row = self.module(image[None, None].to(self.device))  # (1, 1, A, B, C) → (1, width)
        if not isinstance(row, torch.Tensor) or row.shape != (1, self.width):
            said = tuple(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__
            raise CardioDiTError(f"The network {self.name} gave {said} for one volume; (1, {self.width}) was expected.")
        return row[0].double().cpu().numpy()


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """On a GPU, convolutions in whole float32 (not TF32) and in an order that does not change."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _check(voxels: np.ndarray) -> None:
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise CardioDiTError(f"A volume has axes (H, W, D) or (H, W, D, T), got the shape {voxels.shape}.")
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CardioDiTError("The volume holds values that are not numbers (NaN or infinite).")
    if low < -1 - SLACK or high > 1 + SLACK:
        raise CardioDiTError(
            f"The volume's values go from {low:g} to {high:g}; they must lie in [-1, 1]. Prepare real volumes with the "
            "steps the model was trained with."
        )
