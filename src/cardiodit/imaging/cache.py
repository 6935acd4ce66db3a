"""The prepared volumes of a manifest, read once, for training that visits them many times."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.cache_files import (
    Known,
    cache_file,
    content_hash,
    open_cached,
    read_known,
    reading_columns,
    without_typical,
    write_cached,
)
from cardiodit.imaging.cases import prepare_case
from cardiodit.imaging.geometry import Geometry, Triple, common_spacing
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

CACHES = ("memory", "disk", "none")

# What a process hands back of one volume: what is known of it, its voxels where they are to be kept in memory, and
# the problem where there is one.
Read = tuple[Known | None, np.ndarray | None, str | None]


class PreparedVolumes:
    """Volumes as a model sees them, `(1, D, H, W, T)` or `(1, H, W, D)` float32 in [-1, 1].

    Every file is read and checked when the object is made, and every problem comes in one error, before training
    starts. What is handed out is a copy that may be changed. The object can be sent to a data loader's workers:
    volumes in memory are shared with them, those on disk are opened where they are used.

    Args:
        cases: rows of a manifest.
        steps: the preprocessing.
        cache: "memory" holds all volumes; "disk" keeps them in `folder`, where the next start finds them without
            reading the sources; "none" prepares a volume each time it is asked for. The values are the same.
        folder: of the cache on disk.
        workers: processes that read; the result is the same.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        steps: Preprocessing,
        cache: str = "memory",
        folder: Path | None = None,
        workers: int = 1,
    ) -> None:
        _check_arguments(cases, cache, folder, workers)
        self.cases = list(cases)
        self.steps = steps
        self.cache = cache
        self.folder = None if folder is None else Path(folder).resolve()
        if cache == "disk" and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        known, self._voxels = self._read(workers)
        self.shapes = [item.shape for item in known]
        self.limits: list[Range] = [item.limits for item in known]
        self.geometries: list[Geometry] = [item.geometry for item in known]
        self.identity = _identity(self.cases, known, steps)
        self._files = [cache_file(self.folder, case, steps) for case in self.cases] if self.folder else []

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.array(self._array(index)))

    def slice_of(self, index: int, depth: int) -> "torch.Tensor":
        """One slice of a cine over time, `(1, H, W, T)`; from disk, nothing else is read."""
        import torch

        if len(self.shapes[index]) != 5:
            raise CardioDiTError(f"Volume {index} has the shape {self.shapes[index]}; only a cine has 2D+t slices.")
        return torch.from_numpy(np.array(self._array(index)[:, depth]))

    def typical(self) -> Range:
        """What -1 and 1 usually stand for in the sources' units: the medians of the volumes' limits."""
        low, high = np.median(np.array(self.limits), axis=0)
        return float(low), float(high)

    def spacing(self) -> Triple | None:
        """The cohort's voxel size in mm; None where one is unknown or they are not all the same."""
        return common_spacing(self.geometries)

    def frame_time(self) -> float | None:
        """The median of the known seconds between frames, which differ from heart to heart; None where none is."""
        known = [geometry.frame_time for geometry in self.geometries if geometry.frame_time is not None]
        return float(np.median(known)) if known else None

    def _array(self, index: int) -> np.ndarray:
        if self.cache == "memory":
            return self._voxels[index].numpy()
        if self.cache == "disk":
            return open_cached(self._files[index])
        return prepare_case(self.cases[index], self.steps).tensor().numpy()

    def _read(self, workers: int) -> tuple[list[Known], list["torch.Tensor"]]:
        import torch

        read = partial(_read_one, steps=self.steps, folder=self.folder, keep=self.cache == "memory")
        problems = Problems("The volumes cannot be used for training")
        known, voxels = [], []
        for item, array, problem in _run(read, self.cases, workers):
            if problem is not None:
                problems.add(problem)
            if item is not None:
                known.append(item)
            if array is not None:
                voxels.append(torch.from_numpy(array))
        if not problems.found:
            _compare_shapes(self.cases, known, problems)
        problems.raise_if_any("Nothing was trained. Mend them, or take their rows out of the manifest.")
        return known, voxels


def _check_arguments(cases: Sequence[Case], cache: str, folder: Path | None, workers: int) -> None:
    if not cases:
        raise CardioDiTError("There are no volumes to train on: the list of cases is empty.")
    if cache not in CACHES:
        raise CardioDiTError(f"There is no cache {cache!r}; choose from {', '.join(CACHES)}.")
    if (cache == "disk") != (folder is not None):
        raise CardioDiTError(f'A folder is for the cache "disk", which needs one; got cache={cache!r}, {folder=}.')
    if workers < 1:
        raise CardioDiTError(f"workers={workers} must be at least 1.")


def _run(read: "partial[Read]", cases: list[Case], workers: int) -> Iterator[Read]:
    from tqdm import tqdm

    bar = partial(tqdm, total=len(cases), desc="Reading volumes", unit="volume", disable=None)  # silent in a log
    if workers == 1 or len(cases) == 1:
        yield from bar(map(read, cases))
        return
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=get_context("spawn")) as pool:
        yield from bar(pool.map(read, cases))


def _read_one(case: Case, steps: Preprocessing, folder: Path | None, keep: bool) -> Read:
    """What cannot be read is a problem of its file, so that all files are looked at."""
    try:
        file = None if folder is None else cache_file(folder, case, steps)
        known = None if file is None else read_known(file)
        if known is not None:
            return known, None, None
        prepared = prepare_case(case, steps)
        voxels = prepared.tensor().numpy()
        known = Known(voxels.shape, prepared.source.limits, prepared.volume.geometry, content_hash(case.image))
    except (CardioDiTError, OSError) as error:
        return None, None, str(error)
    if file is not None:
        write_cached(file, voxels, known)
    return known, voxels if keep else None, None


def _compare_shapes(cases: list[Case], known: list[Known], problems: Problems) -> None:
    """Names every volume that is unlike most; the slices of a cine may be more or fewer."""
    kinds = [(len(item.shape), *(item.shape[2:] if len(item.shape) == 5 else item.shape[1:])) for item in known]
    usual, _ = Counter(kinds).most_common(1)[0]
    example = known[kinds.index(usual)]
    for case, item, kind in zip(cases, known, kinds, strict=True):
        if kind != usual:
            problems.add(
                f"{case.image} is {_sizes(item.shape)} after its preprocessing, most volumes are "
                f"{_sizes(example.shape)}: give the preprocessing a `size` and `frames`"
            )


def _sizes(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return f"{shape[1]} × {shape[2]} × {shape[3]} voxels"
    return f"{shape[2]} × {shape[3]} voxels × {shape[4]} frames"


def _identity(cases: list[Case], known: list[Known], steps: Preprocessing) -> str:
    """The same for the same files in the same order, read and prepared alike, wherever they lie."""
    sources = [[item.content, reading_columns(case)] for case, item in zip(cases, known, strict=True)]
    text = json.dumps([sources, without_typical(steps).to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
