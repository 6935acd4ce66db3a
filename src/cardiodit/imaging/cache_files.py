"""Prepared volumes on disk: for each an array that can be read in parts, and beside it what is known of it.

Neither the files nor their names tell whose image it is: a name is the hash of the source and of its preprocessing.
"""

import hashlib
import json
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.preprocessing import Preprocessing

FORMAT = 1  # to be raised when a volume would be prepared otherwise, so that older files are made anew
READING_COLUMNS = ("frame_time", "ed_frame", "slices")  # columns of a manifest that change how an image is read
CHUNK = 2**24  # bytes


@dataclass(frozen=True)
class Known:
    """What training must know of a prepared volume without holding it.

    Args:
        shape: of the tensor, `(1, D, H, W, T)` or `(1, H, W, D)`.
        limits: the source's values that became -1 and 1.
        geometry: of the prepared volume.
        content: SHA-256 of the source file.
    """

    shape: tuple[int, ...]
    limits: Range
    geometry: Geometry
    content: str


def without_typical(steps: Preprocessing) -> Preprocessing:
    """What decides a volume's values: what is typical of a cohort is found afterwards, and changes nothing."""
    return replace(steps, intensity=replace(steps.intensity, typical=None))


def reading_columns(case: Case) -> dict[str, str]:
    return {column: case.row.get(column, "") for column in READING_COLUMNS}


def cache_file(folder: Path, case: Case, steps: Preprocessing) -> Path:
    """Where a volume is kept; the source is looked at, not read."""
    try:
        stat = case.image.stat()
    except OSError as error:
        raise CardioDiTError(f"{case.image} cannot be read: {error.strerror}.") from error
    source = [str(case.image.resolve()), stat.st_size, stat.st_mtime_ns, reading_columns(case)]
    key = json.dumps([FORMAT, source, without_typical(steps).to_dict()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def write_cached(file: Path, voxels: np.ndarray, known: Known) -> None:
    """The array first: a description without its array would promise too much."""
    facts = {
        "shape": list(known.shape),
        "limits": list(known.limits),
        "geometry": known.geometry.to_dict(),
        "content": known.content,
    }
    try:
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, voxels)
        with atomic_file(_description(file)) as temporary:
            temporary.write_text(json.dumps({**facts, "checksum": _checksum(file)}))
    except OSError as error:
        raise CardioDiTError(f"The cache {file.parent} cannot be written: {error.strerror}.") from error


def read_known(file: Path) -> Known | None:
    """What is kept of a volume, or None where nothing is or where it is damaged, which is said."""
    if not file.exists() and not _description(file).exists():
        return None
    try:
        facts = json.loads(_description(file).read_text())
        if facts["checksum"] != _checksum(file) or list(open_cached(file).shape) != facts["shape"]:
            raise ValueError("its checksum differs")
        return _known(facts)
    except (OSError, ValueError, KeyError, TypeError, CardioDiTError) as error:
        warnings.warn(f"The cached volume {file} is damaged ({error}). It is made anew.", stacklevel=2)
        return None


def open_cached(file: Path) -> np.ndarray:
    """The array, read from disk where it is touched; not to be written to."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CardioDiTError(
            f"The cached volume {file} cannot be read any more ({error}). Was the cache emptied? Start again."
        ) from error


def content_hash(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise CardioDiTError(f"{file} cannot be read: {error.strerror}.") from error


def _description(file: Path) -> Path:
    return file.with_suffix(".json")


def _known(facts: dict[str, Any]) -> Known:
    low, high = facts["limits"]
    return Known(tuple(facts["shape"]), (low, high), Geometry.from_dict(facts["geometry"]), facts["content"])


def _checksum(file: Path) -> list[int]:
    """Size and CRC-32: against damage, not against an attacker; as fast as the disk."""
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [file.stat().st_size, checksum]
