"""The latent file: a tensor with a header that identifies what it was made from, without any path or subject.

Identities are hashes that tell whether latents still belong to their source, VQ model and preprocessing. They leave out
settings at their default values, so that settings added in later versions change no identity.
"""

import hashlib
import inspect
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import check_file
from cardiodit._util.hashing import add_weights
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.imaging import Geometry, Preprocessing, Volume
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.models import VQModel3D, VQModel4D

SCHEMA = 1
TENSOR = "latents"
CHECKSUM = "checksum"
METADATA = "cardiodit_latent"  # a single entry, because safetensors writes several in an arbitrary order


class DamagedLatentError(CardioDiTError):
    """The file is truncated or not a latent file, so that it can safely be replaced."""


@dataclass(frozen=True)
class LatentHeader:
    """Header of a latent file.

    Args:
        vae: identity of the VQ model.
        preprocessing: identity of the preprocessing.
        source: identity of the encoded image.
        precision: precision in which the VQ model computed; the latents themselves are float32.
        geometry: geometry of the preprocessed volume.
        shape: shape of the latents.
        frames: frames of the preprocessed cine, all of them valid; 1 for a static volume.
        steps: the preprocessing (`Preprocessing.to_dict`); None in files of older versions.
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
        return cls(**{n: values[n] for n in names}, geometry=geometry, shape=shape, steps=values.get("steps"))


def write_latent(path: Path, latents: torch.Tensor, header: LatentHeader) -> None:
    """Write quantised, unscaled latents, `(C, D, h, w, t)` of a cine or `(C, h, w, d)` of a volume."""
    if latents.dtype != torch.float32 or tuple(latents.shape) != header.shape:
        raise CardioDiTError(
            f"Expected latents of shape {header.shape} in float32, got {tuple(latents.shape)} in {latents.dtype}."
        )
    latents, values = latents.contiguous(), header.to_dict()
    text = json.dumps({**values, CHECKSUM: _checksum(values, latents)}, sort_keys=True)
    with atomic_file(path) as temporary:
        save_file({TENSOR: latents}, temporary, {METADATA: text})


def read_header(path: Path) -> LatentHeader:
    """Read the header only; a truncated file is noticed nevertheless."""
    return _read(path, with_latents=False)[0]


def read_latent(path: Path) -> tuple[LatentHeader, torch.Tensor]:
    """Read the header and the latents, which are not multiplied by the scaling factor, and verify their checksum."""
    return _read(path, with_latents=True)


def _read(path: Path, with_latents: bool) -> tuple[LatentHeader, torch.Tensor]:
    check_file(path)
    try:
        with safe_open(path, "pt") as file:  # checks that the file has the size that its tensors need
            header, values = _parse_header(path, file.metadata() or {})
            stored = file.get_slice(TENSOR)
            shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
            latents = file.get_tensor(TENSOR) if with_latents else torch.empty(0)
    except CardioDiTError:
        raise
    except Exception as error:
        raise DamagedLatentError(f"{path} is damaged or was cut short ({reason_of(error)}).") from error
    if (shape, dtype) != (header.shape, "F32"):
        raise DamagedLatentError(f"{path} is damaged: it holds {shape} in {dtype}, its header says {header.shape}.")
    if with_latents and values.pop(CHECKSUM, None) not in (None, _checksum(values, latents)):
        raise DamagedLatentError(
            f"{path} is damaged: its checksum differs, so bytes have changed since it was written."
        )
    return header, latents


def _checksum(values: dict[str, Any], latents: torch.Tensor) -> int:
    """Return the CRC-32 of header and latents, which detects damage, not manipulation."""
    text = json.dumps(values, sort_keys=True)
    return zlib.crc32(latents.numpy().tobytes(), zlib.crc32(text.encode()))


def _parse_header(path: Path, metadata: dict[str, str]) -> tuple[LatentHeader, dict[str, Any]]:
    """Return the header and the values that it was made of, in newer files with a checksum."""
    try:
        values = json.loads(metadata[METADATA])
        schema = int(values["schema"])
        if schema <= SCHEMA:
            return LatentHeader.from_dict(values), values
    except Exception as error:  # values of wrong types
        raise DamagedLatentError(f"{path} is not a latent file of cardiodit, or its header is damaged.") from error
    raise CardioDiTError(
        f"{path} was written by a newer version of cardiodit (schema {schema}, this version knows {SCHEMA}). "
        "Update cardiodit, or encode into another folder."
    )


def identity_of_vae(vae: VQModel4D | VQModel3D) -> str:
    """Hash the weights and the config of a VQ model, without its scaling factor, which changes no latent."""
    parameters = inspect.signature(type(vae).__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    config = {key: value for key, value in vae.config.items() if key != "scaling_factor" and not key.startswith("_")}
    digest = hashlib.sha256(f"{type(vae).__name__} {identity_of(_non_defaults(config, defaults))}".encode())
    add_weights(digest, vae.state_dict())
    return digest.hexdigest()


def identity_of_steps(steps: Preprocessing) -> str:
    """Hash the settings that change voxels, without the units that -1 and 1 typically stand for."""
    settings, defaults = steps.to_dict(), Preprocessing().to_dict()
    for values in (settings, defaults):
        del values["intensity"]["typical"]
    return identity_of(_non_defaults(settings, defaults))


def identity_of_source(volume: Volume, order: StorageOrder) -> str:
    """Hash the stored voxels, their geometry and their storage order, but not the file's name or compression."""
    return identity_of(
        {
            "voxels": content_of(volume.voxels),
            "dtype": volume.voxels.dtype.str,
            "geometry": volume.geometry.to_dict(),
            "order": [order.axes, order.flips, order.first_frame],
        }
    )


def identity_of(value: Any) -> str:
    """Hash a value so that equal JSON gives equal hashes: 1 and 1.0, tuples and lists, keys in any order."""
    same_numbers = json.loads(json.dumps(value), parse_int=float)
    return hashlib.sha256(json.dumps(same_numbers, sort_keys=True).encode()).hexdigest()


def _non_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key not in defaults or identity_of(value) != identity_of(defaults[key])
    }
