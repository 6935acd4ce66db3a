"""The latent file: a tensor, and in the file's header what it was made of. It names no path and no subject."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry

SCHEMA = 1
TENSOR = "latents"
METADATA = "cardiodit_latent"  # one entry only: safetensors writes several in an order that changes from run to run


class DamagedLatentError(CardioDiTError):
    """A file that was cut short or is no latent file, so that nothing is lost when it is made anew."""


@dataclass(frozen=True)
class LatentHeader:
    """What a latent file says of itself.

    Args:
        vae, preprocessing, source: identities of what the latents were made with and of.
        precision: of the VQ model's arithmetic; the latents are float32.
        geometry: of the prepared volume that was encoded.
        shape: of the latents.
        frames: of the prepared cine, in voxels' time, all of them valid; 1 for a volume that does not beat.
        steps: the preprocessing itself (`Preprocessing.to_dict`); None in files of older versions.
    """

    vae: str
    preprocessing: str
    source: str
    precision: str
    geometry: Geometry
    shape: tuple[int, ...]
    frames: int
    steps: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "geometry": self.geometry.to_dict(), "shape": list(self.shape), "schema": SCHEMA}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        names = ("vae", "preprocessing", "source", "precision", "frames")
        geometry, shape = Geometry.from_dict(values["geometry"]), tuple(values["shape"])
        told = {name: values[name] for name in names}
        return cls(**told, geometry=geometry, shape=shape, steps=values.get("steps"))


def write_latent(path: Path, latents: torch.Tensor, header: LatentHeader) -> None:
    """Writes latents `(C, D, h, w, t)` of a cine or `(C, h, w, d)`, quantised, not multiplied by the scaling factor."""
    if latents.dtype != torch.float32 or tuple(latents.shape) != header.shape:
        raise CardioDiTError(
            f"Latents of shape {header.shape} in float32 were expected, got {tuple(latents.shape)} in {latents.dtype}."
        )
    with atomic_file(path) as temporary:
        save_file({TENSOR: latents.contiguous()}, temporary, {METADATA: json.dumps(header.to_dict(), sort_keys=True)})


def read_header(path: Path) -> LatentHeader:
    """Reads no latents, and yet notices a file that was cut short."""
    return _read(path, wants_latents=False)[0]


def read_latent(path: Path) -> tuple[LatentHeader, torch.Tensor]:
    """The header, and the latents as they were written: not multiplied by the scaling factor."""
    return _read(path, wants_latents=True)


def _read(path: Path, wants_latents: bool) -> tuple[LatentHeader, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:  # compares the file's size with that of its tensors
            header = _header(path, file.metadata() or {})
            stored = file.get_slice(TENSOR)
            shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
            latents = file.get_tensor(TENSOR) if wants_latents else torch.empty(0)
    except SafetensorError as error:
        raise DamagedLatentError(f"{path} is damaged or was cut short ({error}).") from error
    if (shape, dtype) != (header.shape, "F32"):
        raise DamagedLatentError(f"{path} is damaged: it holds {shape} in {dtype}, its header says {header.shape}.")
    return header, latents


def _header(path: Path, metadata: dict[str, str]) -> LatentHeader:
    try:
        values = json.loads(metadata[METADATA])
        schema = int(values["schema"])
        if schema <= SCHEMA:
            return LatentHeader.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedLatentError(f"{path} is no latent file of ours, or its header is damaged.") from error
    raise CardioDiTError(
        f"{path} was written by a newer version of cardiodit (schema {schema}, this version knows {SCHEMA}). "
        "Update cardiodit, or encode into another folder."
    )
