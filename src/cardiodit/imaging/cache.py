"""The prepared volumes of a manifest, read once, for training that visits them many times.

A cache on disk holds two files per volume: an array that can be read in parts, and a description. Neither the files
nor their names reveal whose image it is: a name is the hash of the source and of its preprocessing.
"""

import hashlib
import json
import math
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

import numpy as np

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import available_memory, read_object
from cardiodit._util.hashing import sha256_of
from cardiodit._util.interrupts import ignore_interrupts
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError, Problems, reason_of
from cardiodit.imaging.geometry import Geometry, Triple, common_spacing
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.manifest import Case, prepare_case, reading_columns
from cardiodit.imaging.preprocessing import Preprocessing, without_typical

if TYPE_CHECKING:
    import torch

CACHES = ("memory", "disk", "none")
FORMAT = 2  # raise this when volumes are prepared differently, so that older files are prepared again
CHUNK = 2**24  # bytes
SHARED_MEMORY = Path("/dev/shm")  # files in it are memory, on Linux
LEAST_SHARED = 0.25  # of the available memory that it must offer
OWN_CHECKSUM = "description_checksum"


@dataclass(frozen=True)
class Description:
    """Properties of a prepared volume that training needs without its voxels.

    Args:
        shape: shape of the tensor, `(1, D, H, W, T)` or `(1, H, W, D)`.
        limits: source values that became -1 and 1.
        geometry: geometry of the prepared volume.
        content: SHA-256 of the source file.
        slices: number of slices that come from the file, and of all.
    """

    shape: tuple[int, ...]
    limits: Range
    geometry: Geometry
    content: str
    slices: tuple[int, int]


# Result of reading one volume: its description, its voxels if they are kept in memory, and the problem if there is one.
Outcome = tuple[Description | None, np.ndarray | None, str | None]


class PreparedVolumes:
    """Volumes as a model sees them, `(1, D, H, W, T)` or `(1, H, W, D)` float32 in [-1, 1].

    Every file is read and checked when the object is created, and all problems are reported in one error, before
    training starts. Each item is a copy that may be modified. The object can be sent to a data loader's workers:
    volumes in memory are shared with them, those on disk are opened where they are used.

    Args:
        cases: rows of a manifest.
        steps: preprocessing.
        cache: "memory" holds all volumes; "disk" keeps them in `folder`, where the next start finds them without
            reading the sources; "none" prepares a volume on each access. The values are the same.
        folder: folder of the cache on disk; with "memory", a folder in shared memory, whose files several processes
            map instead of holding copies, and which may be removed when all have.
        workers: number of processes that read; does not change the values.
        verify: compare cached files with their checksums; not needed if another process just did.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        steps: Preprocessing,
        cache: str = "memory",
        folder: Path | None = None,
        workers: int = 1,
        verify: bool = True,
    ) -> None:
        if not cases:
            raise CardioDiTError("There are no volumes to train on: the list of cases is empty.")
        if cache not in CACHES:
            raise CardioDiTError(f"cache={cache!r} is unknown; choose from {', '.join(CACHES)}.")
        if (cache == "disk" and folder is None) or (cache == "none" and folder is not None):
            raise CardioDiTError(f'The cache "disk" needs a folder, "none" takes none; got cache={cache!r}, {folder=}.')
        if workers < 1:
            raise CardioDiTError(f"workers={workers} must be at least 1.")
        self.cases = list(cases)
        self.steps = steps
        self.cache = cache
        self.folder = None if folder is None else Path(folder).resolve()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        descriptions, self._voxels = self._read(workers, verify)
        self.shapes = [item.shape for item in descriptions]
        self.limits: list[Range] = [item.limits for item in descriptions]
        self.geometries: list[Geometry] = [item.geometry for item in descriptions]
        self.slices = {case.image: item.slices for case, item in zip(self.cases, descriptions, strict=True)}
        self.identity = identity_of_files(self.cases, [item.content for item in descriptions], steps)
        self._files = [_cache_file(self.folder, case, steps) for case in self.cases] if self.folder else []

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.array(self._array(index)))

    def slice_of(self, index: int, depth: int) -> "torch.Tensor":
        """Return one slice of a cine over time, `(1, H, W, T)`; from disk, only that slice is read."""
        import torch

        if len(self.shapes[index]) != 5:
            raise CardioDiTError(f"Volume {index} has the shape {self.shapes[index]}; only a cine has 2D+t slices.")
        return torch.from_numpy(np.array(self._array(index)[:, depth]))

    def typical(self) -> Range:
        """Return what -1 and 1 usually stand for in the sources' units: the medians of the volumes' limits."""
        low, high = np.median(np.array(self.limits), axis=0)
        return float(low), float(high)

    def spacing(self) -> Triple | None:
        """Return the cohort's voxel size in mm; None if any is unknown or they differ."""
        return common_spacing(self.geometries)

    def frame_time(self) -> float | None:
        """Return the median of the known frame times in seconds, which differ between hearts; None if none is known."""
        known = [geometry.frame_time for geometry in self.geometries if geometry.frame_time is not None]
        return float(np.median(known)) if known else None

    def _array(self, index: int) -> np.ndarray:
        if self.cache == "memory":
            return self._voxels[index].numpy()
        if self.cache == "disk":
            return _open_cached(self._files[index])
        return prepare_case(self.cases[index], self.steps).tensor().numpy()

    def _read(self, workers: int, verify: bool) -> tuple[list[Description], list["torch.Tensor"]]:
        import torch

        is_shared, keep = self.cache == "memory" and self.folder is not None, self.cache == "memory" and not self.folder
        read = partial(_read_one, steps=self.steps, folder=self.folder, keep=keep, verify=verify)
        problems = Problems("The volumes cannot be used for training")
        descriptions: list[Description] = []
        voxels: list[torch.Tensor] = []
        for description, array, problem in _read_all(read, self.cases, workers):
            if problem is not None:
                problems.add(problem)
            if description is not None:
                if not descriptions and self.cache == "memory" and verify:
                    _check_memory(4 * math.prod(description.shape) * len(self.cases), self.folder)
                descriptions.append(description)
            if array is not None:
                voxels.append(torch.from_numpy(array))
        if not problems.found:
            _compare_shapes(self.cases, descriptions, problems)
        problems.raise_if_any("Nothing was trained. Fix these files, or remove their rows from the manifest.")
        if is_shared:
            files = [_cache_file(self.folder, case, self.steps) for case in self.cases]  # type: ignore[arg-type]
            voxels = [_map(file, item.shape) for file, item in zip(files, descriptions, strict=True)]
        return descriptions, voxels


def shared_memory_folder(name: str) -> Path | None:
    """Return where processes of this machine can share volumes; None if there is little room, as in some containers."""
    if not SHARED_MEMORY.is_dir() or disk_usage(SHARED_MEMORY).free < LEAST_SHARED * available_memory():
        return None
    return SHARED_MEMORY / f"cardiodit-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _map(file: Path, shape: tuple[int, ...]) -> "torch.Tensor":
    """Map an array into memory, which processes share until one changes it; the file does not stay open."""
    import torch

    length, size = 4 * math.prod(shape), file.stat().st_size
    whole = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    return whole[size - length :].view(torch.float32).view(shape)


def _check_memory(needed: int, shared: Path | None) -> None:
    """Raise an error before volumes fill the memory that the processes of this machine share."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    available = available_memory() if shared is None else min(available_memory(), disk_usage(shared).free)
    if needed * processes > available:
        each = f", {processes} times for the processes of this machine" if processes > 1 and shared is None else ""
        raise CardioDiTError(
            f"The prepared volumes take {needed * (processes if shared else 1) / 2**30:.1f} GiB{each}, but "
            f"{available / 2**30:.1f} GiB of memory are "
            "available. Set data.cache to disk: the volumes are then kept in files, which all processes share."
        )


def _read_all(read: "partial[Outcome]", cases: list[Case], workers: int) -> Iterator[Outcome]:
    bar = partial(progress, total=len(cases), description="Reading volumes")
    if workers == 1 or len(cases) == 1:
        yield from bar(map(read, cases))
        return
    with ProcessPoolExecutor(min(workers, len(cases)), get_context("spawn"), ignore_interrupts) as pool:
        yield from bar(pool.map(read, cases))


def _read_one(case: Case, steps: Preprocessing, folder: Path | None, keep: bool, verify: bool) -> Outcome:
    """Read or prepare one volume; a failure is returned, so that all other files are read as well."""
    try:
        file = None if folder is None else _cache_file(folder, case, steps)
        description = None if file is None else _read_description(file, verify)
        if description is not None:
            return description, None, None
        prepared = prepare_case(case, steps)
        voxels = prepared.tensor().numpy()
        limits, geometry = prepared.source.limits, prepared.volume.geometry
        slices = prepared.plans[2].slices
        description = Description(voxels.shape, limits, geometry, sha256_of(case.image), slices)
    except (CardioDiTError, OSError) as error:
        return None, None, str(error)
    if file is not None:
        _write_cached(file, voxels, description)
    return description, voxels if keep else None, None


def _compare_shapes(cases: list[Case], descriptions: list[Description], problems: Problems) -> None:
    """Report every volume whose shape differs from most; cines may differ in their number of slices."""
    shapes = [item.shape for item in descriptions]
    kinds = [(len(shape), *(shape[2:] if len(shape) == 5 else shape[1:])) for shape in shapes]
    usual, _ = Counter(kinds).most_common(1)[0]
    example = shapes[kinds.index(usual)]
    for case, shape, kind in zip(cases, shapes, kinds, strict=True):
        if kind != usual:
            problems.add(
                f"{case.image} is {_sizes(shape)} after preprocessing, most volumes are {_sizes(example)}: give the "
                "preprocessing a `size` and `frames`"
            )


def _sizes(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return f"{shape[1]} × {shape[2]} × {shape[3]} voxels"
    return f"{shape[2]} × {shape[3]} voxels × {shape[4]} frames"


def identity_of_files(cases: Sequence[Case], contents: Sequence[str], steps: Preprocessing) -> str:
    """Return a hash that depends on the files' contents (SHA-256), order, reading and preprocessing, not on paths."""
    sources = [[content, reading_columns(case)] for case, content in zip(cases, contents, strict=True)]
    text = json.dumps([sources, without_typical(steps).to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _cache_file(folder: Path, case: Case, steps: Preprocessing) -> Path:
    """Return where a prepared volume is kept; depends on path, size and time of the source, which is not read."""
    try:
        stat = case.image.stat()
    except OSError as error:
        raise CardioDiTError(f"{case.image} cannot be read: {error.strerror}.") from error
    source = [str(case.image.resolve()), stat.st_size, stat.st_mtime_ns, reading_columns(case)]
    key = json.dumps([FORMAT, source, without_typical(steps).to_dict()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def _write_cached(file: Path, voxels: np.ndarray, description: Description) -> None:
    """Write the array first: a description must not exist without its array."""
    values = {
        "shape": list(description.shape),
        "limits": list(description.limits),
        "geometry": description.geometry.to_dict(),
        "content": description.content,
        "slices": list(description.slices),
    }
    try:
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, voxels)
        with atomic_file(file.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps({**values, "checksum": _checksum(file), OWN_CHECKSUM: _crc(values)}))
    except OSError as error:
        raise CardioDiTError(f"The cache {file.parent} cannot be written: {error.strerror}.") from error


def _read_description(file: Path, verify: bool) -> Description | None:
    """Read the description of a cached volume; None if it is not cached or, with a warning, if it is damaged."""
    description = file.with_suffix(".json")
    if not file.exists() and not description.exists():
        return None
    try:
        values = read_object(description)
        of_text, checksum = values.pop(OWN_CHECKSUM, None), values.pop("checksum")  # older files have no `own`
        if of_text not in (None, _crc(values)) or (verify and checksum != _checksum(file)):
            raise ValueError("its checksum differs")
        if list(_open_cached(file).shape) != values["shape"]:
            raise ValueError("its shape differs")
        low, high = values["limits"]
        geometry = Geometry.from_dict(values["geometry"])
        own, padded = values["slices"]
        return Description(tuple(values["shape"]), (low, high), geometry, values["content"], (own, padded))
    except Exception as error:  # whatever damage leads to
        warnings.warn(f"The cached volume {file} is damaged ({reason_of(error)}). It is prepared again.", stacklevel=2)
        return None


def _open_cached(file: Path) -> np.ndarray:
    """Return the array, memory-mapped and read-only."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CardioDiTError(
            f"The cached volume {file} can no longer be read ({error}). If the cache was emptied, start again."
        ) from error


def _crc(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _checksum(file: Path) -> list[int]:
    """Return size and CRC-32: detects damage, not manipulation, at the speed of the disk."""
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [file.stat().st_size, checksum]
