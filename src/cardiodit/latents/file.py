"""The latent file: a tensor with a header that identifies what it was made from, without any path or subject.

A shard is one file with the latents of many images, for large cohorts on file systems that many small files slow down.
Where a path is expected, a latent in a shard has the path of the shard, followed by its name: `shard.safetensors/name`.

Identities are hashes that tell whether latents still belong to their source, VQ model and preprocessing. They leave out
settings at their default values, so that settings added in later versions change no identity.
"""

import hashlib
import inspect
import json
import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import check_file
from cardiodit._util.hashing import add_weights
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.imaging import Geometry, Preprocessing, Volume
from cardiodit.imaging.alignment import Beat
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.models import VQModel3D, VQModel4D

SCHEMA = 1
# Keys of a VQ model that change no latent, and the beginning of such weights
OF_DENOISING = ("scaling_factor", "latents_mean", "latents_std", "mask_labels", "mask_channels")
OF_MASKS = "mask_head."
TENSOR = "latents"
CHECKSUM = "checksum"
GAP = "?"
SUFFIX = ".safetensors"
SHARD_METADATA = "cardiodit_latents"
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
        frames: frames of the preprocessed cine; 1 for a static volume.
        steps: the preprocessing (`Preprocessing.to_dict`); None in files of older versions.
        valid_frames: frames before the first that repeats the beat (`frame_multiple`); None if none does.
    """

    vae: str
    preprocessing: str
    source: str
    precision: str
    geometry: Geometry
    shape: tuple[int, ...]
    frames: int
    steps: dict[str, Any] | None = None
    valid_frames: int | None = None

    @property
    def valid_latents(self) -> int:
        """Latent frames that no repeated frame of the cine takes part in; all for a volume."""
        length = self.shape[-1]
        return length if self.valid_frames is None else self.valid_frames * length // self.frames

    def to_dict(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "valid_frames" or value is not None}
        return {**values, "geometry": self.geometry.to_dict(), "shape": list(self.shape), "schema": SCHEMA}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return a header, whose parts that a cohort has in common are held in memory once."""
        vae, preprocessing, precision = (sys.intern(values[name]) for name in ("vae", "preprocessing", "precision"))
        geometry, shape, steps = Geometry.from_dict(values["geometry"]), tuple(values["shape"]), values.get("steps")
        steps = None if steps is None else _held_once(json.dumps(steps))
        own = (values["frames"], steps, values.get("valid_frames"))
        return cls(vae, preprocessing, values["source"], precision, geometry, shape, *own)


@lru_cache(maxsize=64)
def _held_once(text: str) -> Any:
    return json.loads(text)


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


def write_shard(path: Path, places: Sequence[Path]) -> None:
    """Copy latents into one file, each with its header and checksum; its name in the file is that of its own file.

    What the headers of all have in common is stored once. One latent is in memory at a time.
    """
    entries = {key_of(place): _entries(file_of(place))[name_in_file(place)] for place in places}
    values = [entry.values for entry in entries.values()]
    shared = {name: value for name, value in values[0].items() if all(value == other.get(name) for other in values)}
    own = {key: {n: v for n, v in e.values.items() if n not in shared} for key, e in entries.items()}
    tensors, end = {}, 0
    for key, entry in entries.items():
        begin, end = end, end + entry.length
        tensors[key] = {"dtype": "F32", "shape": entry.values["shape"], "data_offsets": [begin, end]}
    text = json.dumps({"schema": SCHEMA, "shared": shared, "latents": own}, sort_keys=True)
    header = json.dumps({"__metadata__": {SHARD_METADATA: text}, **tensors}).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the values
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for place in places:
            file.write(read_latent(place)[1].numpy().tobytes())


def read_header(path: Path) -> LatentHeader:
    """Read the header only; a truncated file is noticed nevertheless."""
    return _header(path, _find(path)[0])


def read_headers(file: Path) -> dict[str, LatentHeader]:
    """Read the headers of all latents in a file, by their names in a shard, or by `TENSOR`."""
    return {name: _header(file, entry) for name, entry in _entries(file).items()}


def read_latent(path: Path) -> tuple[LatentHeader, torch.Tensor]:
    """Read the header and the latents, which are not multiplied by the scaling factor, and verify their checksum.

    Args:
        path: a file of one latent, or a shard's path followed by the latent's name in it.
    """
    entry, stored = _find(path)
    header = _header(path, entry)
    try:
        stored = np.fromfile(path, np.uint8) if stored is None else stored
        values = stored[entry.begin : entry.begin + entry.length].copy()
        latents = torch.from_numpy(values).view(torch.float32).view(header.shape)
    except Exception as error:
        raise DamagedLatentError(f"{path} is damaged or was cut short ({reason_of(error)}).") from error
    values_of_header = {name: value for name, value in entry.values.items() if name != CHECKSUM}
    if entry.values.get(CHECKSUM) not in (None, _checksum(values_of_header, latents)):
        raise DamagedLatentError(
            f"{path} is damaged: its checksum differs, so bytes have changed since it was written."
        )
    return header, latents


# --- Places: a file of its own, or a name in a shard ---


def is_in_shard(path: Path) -> bool:
    return path.parent.suffix == SUFFIX


def file_of(path: Path) -> Path:
    """Return the file that holds a latent."""
    return path.parent if is_in_shard(path) else path


def key_of(path: Path) -> str:
    """Return the name of a latent without that of its shard and without an ending."""
    return path.name.removesuffix(SUFFIX)


def name_in_file(path: Path) -> str:
    """Return the name of a latent's tensor in its file."""
    return path.name if is_in_shard(path) else TENSOR


# --- The format: a safetensors file, whose header names the tensors and where they lie ---


@dataclass(frozen=True)
class _Entry:
    """A latent in a file: the values of its header with its checksum, and where its bytes lie."""

    values: dict[str, Any]
    begin: int
    length: int


def _find(path: Path) -> tuple[_Entry, np.ndarray | None]:
    """Return a latent's entry and, in a shard, the bytes of the file, mapped into memory."""
    if not is_in_shard(path):
        return _entries(path)[TENSOR], None
    check_file(path.parent)
    status = path.parent.stat()
    entries, stored = _open_shard(path.parent, status.st_ino, status.st_mtime_ns, status.st_size)
    if path.name not in entries:
        raise DamagedLatentError(f"{path.parent} does not hold the latents {path.name}.")
    return entries[path.name], stored


@lru_cache(maxsize=256)
def _open_shard(file: Path, *_: int) -> tuple[dict[str, _Entry], np.ndarray]:
    """Open a shard once, until its number, time or size shows that it was replaced."""
    return _entries(file), np.memmap(file, np.uint8, "r")


def _entries(file: Path) -> dict[str, _Entry]:
    """Read the header of a file, and check that the file has the length that its tensors need."""
    length = check_file(file)
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 0 < size <= length - 8:
                raise ValueError("its header is longer than the file")
            tensors = json.loads(stream.read(size))
        metadata = tensors.pop("__metadata__", {})
        begins = {name: 8 + size + tensor["data_offsets"][0] for name, tensor in tensors.items()}
        lengths = {name: tensor["data_offsets"][1] - tensor["data_offsets"][0] for name, tensor in tensors.items()}
        if 8 + size + sum(lengths.values()) != length:
            raise ValueError(f"it has {length} bytes, its tensors need another number")
    except Exception as error:  # values of wrong types
        raise DamagedLatentError(f"{file} is damaged or was cut short ({reason_of(error)}).") from error
    values = _values(file, metadata)
    if values.keys() != tensors.keys():
        raise DamagedLatentError(f"{file} is damaged: its header and its tensors differ.")
    entries = {}
    for name, tensor in tensors.items():
        own, shape = values[name], tensor.get("shape")
        if (shape, tensor.get("dtype")) != (own["shape"], "F32") or lengths[name] != 4 * math.prod(own["shape"]):
            raise DamagedLatentError(
                f"{file} is damaged: it holds {shape} in {tensor.get('dtype')}, its header says {own['shape']}."
            )
        entries[name] = _Entry(own, begins[name], lengths[name])
    return entries


def _values(file: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return what the headers of all latents in a file say, with a checksum in all but the oldest."""
    try:
        if SHARD_METADATA in metadata:
            whole = json.loads(metadata[SHARD_METADATA])
            schema = int(whole["schema"])
            if schema <= SCHEMA:
                return {key: {**whole["shared"], **own} for key, own in whole["latents"].items()}
        else:
            values = json.loads(metadata[METADATA])
            schema = int(values["schema"])
            if schema <= SCHEMA:
                values["shape"] = [int(n) for n in values["shape"]]
                return {TENSOR: values}
    except Exception as error:  # values of wrong types
        raise _no_latent_file(file) from error
    raise CardioDiTError(
        f"{file} was written by a newer version of cardiodit (schema {schema}, this version knows {SCHEMA}). "
        "Update cardiodit, or encode into another folder."
    )


def _header(path: Path, entry: _Entry) -> LatentHeader:
    try:
        return LatentHeader.from_dict(entry.values)
    except Exception as error:  # values of wrong types
        raise _no_latent_file(path) from error


def _no_latent_file(path: Path) -> DamagedLatentError:
    return DamagedLatentError(f"{path} is not a latent file of cardiodit, or its header is damaged.")


def _checksum(values: dict[str, Any], latents: torch.Tensor) -> int:
    """Return the CRC-32 of header and latents, which detects damage, not manipulation."""
    text = json.dumps(values, sort_keys=True)
    return zlib.crc32(latents.numpy().tobytes(), zlib.crc32(text.encode()))


def identity_of_vae(vae: VQModel4D | VQModel3D) -> str:
    """Hash the weights and the config of a VQ model, without the scaling of its latents and its decoder of masks."""
    parameters = inspect.signature(type(vae).__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    config = {key: value for key, value in vae.config.items() if key not in OF_DENOISING and not key.startswith("_")}
    digest = hashlib.sha256(f"{type(vae).__name__} {identity_of(_non_defaults(config, defaults))}".encode())
    add_weights(digest, {name: value for name, value in vae.state_dict().items() if not name.startswith(OF_MASKS)})
    return digest.hexdigest()


def identity_of_steps(steps: Preprocessing) -> str:
    """Hash the settings that change voxels, without the units that -1 and 1 typically stand for."""
    settings, defaults = steps.to_dict(), Preprocessing().to_dict()
    for values in (settings, defaults):
        del values["intensity"]["typical"]
    return identity_of(_non_defaults(settings, defaults))


def identity_of_source(volume: Volume, order: StorageOrder, beat: Beat | None = None) -> str:
    """Hash the stored voxels, their geometry and their storage order, but not the file's name or compression.

    With `beat` also the frames and numbers by which the beat is aligned.
    """
    return identity_of(
        {
            "voxels": content_of(volume.voxels),
            "dtype": volume.voxels.dtype.str,
            "geometry": volume.geometry.to_dict(),
            "order": [order.axes, order.flips, order.first_frame],
            **({} if beat is None else {"beat": asdict(beat)}),
        }
    )


def identity_of(value: Any) -> str:
    """Hash a value so that equal JSON gives equal hashes: 1 and 1.0, tuples and lists, keys in any order."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def identity_of_headers(headers: Sequence[LatentHeader]) -> str:
    """Return `identity_of` the list of all headers without their steps, which a cohort of 100,000 makes slow."""
    digest = hashlib.sha256(b"[")
    for number, header in enumerate(headers):
        rest = (header.frames, header.precision, header.preprocessing, header.shape, header.vae)
        before, between, after = _canonical_parts(*rest)
        text = f"{before}{_canonical_geometry(header.geometry)}{between}{json.dumps(header.source)}{after}"
        digest.update(f"{', ' if number else ''}{text}".encode())
    digest.update(b"]")
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _canonical_parts(frames: int, precision: str, preprocessing: str, shape: tuple[int, ...], vae: str) -> list[str]:
    """Return the text of a header before, between and after its geometry and its source."""
    header = LatentHeader(vae, preprocessing, GAP, precision, Geometry(), shape, frames).to_dict()
    del header["steps"]
    return _canonical({**header, "geometry": GAP}).split(json.dumps(GAP))


@lru_cache(maxsize=1024)
def _canonical_geometry(geometry: Geometry) -> str:
    return _canonical(geometry.to_dict())


def _canonical(value: Any) -> str:
    same_numbers = json.loads(json.dumps(value), parse_int=float)
    return json.dumps(same_numbers, sort_keys=True)


def _non_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key not in defaults or identity_of(value) != identity_of(defaults[key])
    }
