"""A feature network: one volume in, one feature vector (row) out, with its description and identity for the report.

A cine has two kinds of rows. `spatial` describes the appearance of its frames: the network sees `(H, W, D)`.
`spatiotemporal` describes the motion of its slices: the same network sees `(H, W, T)`, and then the differences between
consecutive frames, of the last one to the first too, since a heartbeat is a cycle. The latter replaces a Fréchet video
distance, for which no maintained network of volumes exists.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import InputRules, evenly_spaced
from cardiodit.imaging.geometry import Triple

KINDS = ("spatial", "spatiotemporal")
FORMAT = 1  # to be increased when the same settings would give other numbers, so that cached rows are recomputed
TOLERANCE = 0.01  # how far values may exceed [-1, 1]


class FeatureNetwork(Protocol):
    """The interface that metrics use."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """SHA-256 over the weights and every setting that affects the numbers."""

    def describe(self) -> dict[str, Any]:
        """Describe the network for the report's protocol."""

    def features(self, voxels: np.ndarray, spacing: Triple | None = None) -> np.ndarray:
        """Return one row `(f,)` float64 for a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1]."""


@dataclass(frozen=True)
class TorchNetwork:
    """A torch module applied to single volumes, with the rules of its input.

    Args:
        name: as requested and as reported.
        module: `(1, 1, A, B, C)` → `(1, width)`. Volumes pass one by one: a row never depends on its neighbours.
        width: features per output of the module.
        weights: source of the weights and their `sha256`, for the report.
        rules: preprocessing of the input.
        kind: kind of rows, "spatial" or "spatiotemporal".
        frames: evenly spaced frames of a cine, for spatial rows; None for all.
        slices: evenly spaced slices of a cine, for spatiotemporal rows; None for all.
        settings: everything else that affects the numbers or must be reported.
        device: where the module runs; it affects the numbers only by rounding.
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
            raise CardioDiTError(f"kind={self.kind!r} is unknown; choose from {', '.join(KINDS)}.")
        for name, value in (("frames", self.frames), ("slices", self.slices)):
            if value is not None and value < 1:
                raise CardioDiTError(f"{name}={value} must be at least 1, or None for all.")
        self.module.eval().to(self.device)

    @property
    def dimension(self) -> int:
        """Length of a row."""
        return self.width if self.kind == "spatial" else 2 * self.width

    @cached_property
    def identity(self) -> str:
        settings = {key: value for key, value in self.describe().items() if key != "weights"}
        text = json.dumps([FORMAT, self.weights["sha256"], settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        # Only the number that this kind of rows uses: the other one changes nothing.
        chosen = {"frames": self.frames} if self.kind == "spatial" else {"slices": self.slices}
        return {
            "name": self.name,
            "weights": self.weights,
            "rows": self.kind,
            "dimension": self.dimension,
            "input": self.rules.describe(),
            **{name: "all" if value is None else value for name, value in chosen.items()},
            **self.settings,
        }

    def features(self, voxels: np.ndarray, spacing: Triple | None = None) -> np.ndarray:
        _check(voxels)
        with torch.inference_mode(), _exact_arithmetic():
            if self.kind == "spatial":
                return self._spatial_row(voxels, spacing)
            return self._spatiotemporal_row(voxels, spacing)

    def _spatial_row(self, voxels: np.ndarray, spacing: Triple | None) -> np.ndarray:
        """Return the row of a volume `(H, W, D)`, or the mean over frames of a cine."""
        values = self.rules.normalise(voxels)
        if values.ndim == 3:
            return self._encode(values if self.rules.still_as_it_is else self.rules.on_grid(values, spacing))
        frames = evenly_spaced(values.shape[3], self.frames, cycle=True)
        return order_free_mean([self._encode(self.rules.on_grid(values[..., t], spacing)) for t in frames])

    def _spatiotemporal_row(self, voxels: np.ndarray, spacing: Triple | None) -> np.ndarray:
        """Return the mean over slices of a cine: features of the slice over time and of its frame differences."""
        if voxels.ndim != 4 or voxels.shape[3] < 2:
            raise CardioDiTError(
                f"Spatiotemporal features need a cine (H, W, D, T) of at least two frames, got the shape "
                f"{voxels.shape}. Choose spatial features."
            )
        values = self.rules.normalise(voxels)
        rows = []
        for d in evenly_spaced(values.shape[2], self.slices):
            clip = self.rules.on_grid(values[:, :, d], spacing, time=True)  # (H, W, T)
            differences = np.roll(clip, -1, axis=2) - clip
            rows.append(np.concatenate([self._encode(clip), self._encode(differences)]))
        return order_free_mean(rows)

    def _encode(self, volume: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
        row = self.module(image[None, None].to(self.device))  # (1, 1, A, B, C) → (1, width)
        if not isinstance(row, torch.Tensor) or row.shape != (1, self.width):
            raise CardioDiTError(
                f"The network {self.name} returned {shape_or_type(row)} for one volume; expected (1, {self.width})."
            )
        return row[0].double().cpu().numpy()


def order_free_mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of rows, identical to the last bit in any order: each column is summed in sorted order."""
    return np.sort(np.stack(rows).astype(np.float64), axis=0).mean(axis=0)


def shape_or_type(output: object) -> str:
    """Describe a network's output for a message."""
    return str(tuple(output.shape)) if isinstance(output, torch.Tensor) else type(output).__name__


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """Run convolutions on a GPU in full float32 (not TF32) and deterministically."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _check(voxels: np.ndarray) -> None:
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise CardioDiTError(f"A volume has axes (H, W, D) or (H, W, D, T), got the shape {voxels.shape}.")
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CardioDiTError("The volume contains values that are not finite numbers (NaN or infinite).")
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        raise CardioDiTError(
            f"The volume's values range from {low:g} to {high:g}; they must lie in [-1, 1]. Prepare real volumes with "
            "the preprocessing that the model was trained with."
        )
