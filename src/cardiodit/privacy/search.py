"""The search for the nearest training volumes: rows by content in a cache, and distances block by block."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.hashing import sha256_of
from cardiodit._util.nearest import nearest_distances
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import VolumeStats, summarize, without_folders
from cardiodit.evaluation.measure import content_of
from cardiodit.evaluation.volume_sets import SYNTHETIC, Item, Problem, load
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.manifest import reading_columns
from cardiodit.imaging.preprocessing import Preprocessing, without_typical
from cardiodit.privacy.detectors import DetectorConfig, open_detector

FORMAT = 1  # of the cache
BLOCK = 32_000_000  # numbers in a block of distances between rows
ROWS, REFERENCES = 4608, 512  # rows of queries and reference volumes in a block, at most
SCALE_FROM = 200  # training volumes whose nearest other ones set the scale of a distance
ALONE = 1e-12


@dataclass(frozen=True)
class Embedded:
    """A volume described by a detector; its rows stay on disk until they are used.

    Args:
        content: SHA-256 over its voxels.
        file: rows `(variants, slices, f)`.
    """

    content: str
    stats: VolumeStats
    file: Path
    was_cached: bool = False

    def rows(self) -> np.ndarray:
        return np.load(self.file, allow_pickle=False).astype(np.float32)


def embed_all(
    items: Sequence[Item],
    steps: Preprocessing,
    config: DetectorConfig,
    cache: Path,
    workers: Workers,
    is_query: bool,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Embedded | Problem]:
    """Describe volumes, in the order of the items; what an earlier call or another process has described is read.

    Args:
        is_query: whether they are samples or held-out patients, which are described in several variants.
        share: number of this process and of all processes, to describe only every n-th volume.
    """
    cache.mkdir(parents=True, exist_ok=True)
    own = [item for place, item in enumerate(items) if place % share[1] == share[0]]
    function = partial(_embed_one, steps=steps, config=config, cache=cache, is_query=is_query)
    yield from progress(workers.map(function, own), f"Describing ({config.name})", total=len(own))


def _embed_one(
    item: Item, steps: Preprocessing, config: DetectorConfig, cache: Path, is_query: bool
) -> Embedded | Problem:
    detector, is_generated = open_detector(config), item.set == SYNTHETIC
    try:
        parts: list[Any] = [FORMAT, __version__, sha256_of(item.image), item.units, detector.identity, is_query]
        parts += [is_generated]
        parts += [without_typical(steps).to_dict(), steps.intensity.units]
        parts += [reading_columns(item.case)] if item.case is not None else []
        file = cache / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}.npy"
        if (known := _read_cached(file)) is not None:
            return known
        loaded = load(item, steps)
        rows = detector.rows(loaded.volume.voxels, loaded.volume.geometry.spacing, is_query, is_generated)
        if not np.isfinite(rows).all():
            raise CardioDiTError(f"The detector {detector.name} computed values that are not numbers.")
    except (CardioDiTError, OSError) as error:
        return Problem(item.set, item.image.name, without_folders(str(error), [item.image]))
    embedded = Embedded(content_of(loaded.volume), summarize(loaded), file)
    with atomic_file(file) as temporary:
        np.save(temporary, rows.astype(np.float16))
    with atomic_file(file.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"content": embedded.content, "stats": vars(embedded.stats)}))
    return embedded


def _read_cached(file: Path) -> Embedded | None:
    """Return an earlier description; None if there is none, or if it is damaged, with a warning."""
    if not (file.exists() and file.with_suffix(".json").exists()):
        return None
    try:
        np.load(file, mmap_mode="r", allow_pickle=False)
        facts = json.loads(file.with_suffix(".json").read_text())
        stats: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["stats"].items()}
        return Embedded(facts["content"], VolumeStats(**stats), file, was_cached=True)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        warnings.warn(f"The cached rows {file.name} are damaged ({error}). Describing the volume again.", stacklevel=2)
        return None


@dataclass
class References:
    """The training volumes of a search, from which also the mean row and the scale of distances come.

    Two volumes are compared slice by slice (the nearest pair of slices counts) and, if they have equally many slices,
    as wholes; the smaller distance counts, each in units of the usual distance between training volumes. A distance is
    1 − correlation of rows, after the cohort's mean row was subtracted, so that what all patients share does not count.

    If the patients are known, distances to a patient who is unlike all others are smaller: they are divided by the
    distance to the nearest other patient, relative to the median of all, but never enlarged, so that copies of patients
    who occur twice are not missed. An altered copy of an unusual patient is farther away than one of a usual patient.

    Args:
        rows: `(n, slices, f)`.
        patients: patient of each volume.
    """

    rows: np.ndarray
    patients: Sequence[str] | None = None
    mean: np.ndarray = field(init=False)
    scales: tuple[float, float] = field(init=False, default=(1.0, 1.0))
    own: np.ndarray = field(init=False)  # distance of each volume to its nearest one of another patient
    spread: np.ndarray = field(init=False)  # by which distances to each volume are divided

    def __post_init__(self) -> None:
        self.mean = self.rows.mean(axis=0)
        self.spread = np.ones(len(self.rows), np.float32)
        if len(self.rows) > 2:
            self.scales = self._usual_distances()
        if self.patients is not None:
            nearest = self._nearest_other(self.patients)
            self._usual = float(np.median(nearest))
            self.spread = self._spread_of(nearest)
            self.own = nearest / self.spread

    @classmethod
    def of(cls, volumes: Sequence[Embedded], patients: Sequence[str] | None = None) -> "References":
        return cls(cls.rows_of(volumes), patients)

    @staticmethod
    def rows_of(volumes: Sequence[Embedded]) -> np.ndarray:
        return np.concatenate([volume.rows() for volume in volumes])

    def with_rows(self, rows: np.ndarray) -> "References":
        """Return other patients' volumes whose distances have the mean row and the scales of these."""
        other = copy(self)
        other.rows = rows
        if self.patients is not None:
            nearest = self._undivided(lambda place: rows[place][None], len(rows)).min(axis=1)
            other.spread = self._spread_of(nearest)
        return other

    def _spread_of(self, nearest: np.ndarray) -> np.ndarray:
        if not (math.isfinite(self._usual) and self._usual > ALONE):
            return np.ones(len(nearest), np.float32)
        return np.maximum(nearest / self._usual, 1).astype(np.float32)

    def _nearest_other(self, patients: Sequence[str]) -> np.ndarray:
        names = np.unique(np.array(patients), return_inverse=True)[1]

        def compare(part: slice) -> np.ndarray:
            distances = self._undivided(partial(self._own_row, part), part.stop - part.start)
            distances[names[part][:, None] == names] = np.inf
            return distances

        return nearest_distances(compare, len(self.rows))

    def _own_row(self, part: slice, place: int) -> np.ndarray:
        return self.rows[part][place][None]

    def rarity(self) -> np.ndarray:
        """Return the distance of each volume's rows to the mean of all."""
        return np.linalg.norm((self.rows - self.mean).reshape(len(self.rows), -1), axis=1)

    def distances(self, query_rows: Callable[[int], np.ndarray], count: int) -> np.ndarray:
        """Return the distance of each query to each reference, `(count, n)` float32.

        Args:
            query_rows: returns the rows `(variants, slices, f)` of a query.
        """
        return self._undivided(query_rows, count) / self.spread

    def _undivided(self, query_rows: Callable[[int], np.ndarray], count: int) -> np.ndarray:
        found = np.empty((count, len(self.rows)), np.float32)
        start = 0
        while start < count:
            first = query_rows(start)
            end = min(count, start + _queries_at_once(first))
            queries = np.stack([first, *map(query_rows, range(start + 1, end))])
            slices, wholes = self._distances(queries)
            found[start:end] = np.minimum(slices / self.scales[0], wholes / self.scales[1])
            start = end
        return found

    def _distances(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both distances `(q, n)` of queries `(q, variants, slices, f)`."""
        q, v, k, f = queries.shape
        n, own_k = self.rows.shape[:2]
        is_whole = k == own_k
        mean = self.mean if is_whole else self.mean.mean(axis=0)
        slices, wholes = np.empty((q, n), np.float32), np.full((q, n), np.inf, np.float32)
        by_slice = unit(queries - mean).reshape(-1, f)
        by_whole = unit((queries - mean).reshape(q * v, -1)) if is_whole else None
        block = max(1, min(REFERENCES, BLOCK // (q * v * k * own_k)))
        for start in range(0, n, block):
            part = self.rows[start : start + block] - (self.mean if is_whole else mean)
            pairs = by_slice @ unit(part).reshape(-1, f).T
            best = pairs.reshape(q, v * k, -1).max(axis=1)  # both axes at once take much longer
            slices[:, start : start + block] = 1 - best.reshape(q, -1, own_k).max(axis=2)
            if by_whole is not None:
                whole = by_whole @ unit(part.reshape(len(part), -1)).T
                wholes[:, start : start + block] = 1 - whole.reshape(q, v, -1).max(axis=1)
        return slices, wholes

    def _usual_distances(self) -> tuple[float, float]:
        """Return the medians over training volumes of both distances to the nearest other one."""
        count = min(SCALE_FROM, len(self.rows))
        chosen = np.linspace(0, len(self.rows) - 1, count).round().astype(int)
        nearest: list[np.ndarray] = []
        at_once = _queries_at_once(self.rows[:1])
        for start in range(0, count, at_once):
            part = chosen[start : start + at_once]
            both = self._distances(self.rows[part][:, None])
            for each in both:
                each[np.arange(len(part)), part] = np.inf
            nearest.append(np.stack([each.min(axis=1) for each in both]))
        medians = np.median(np.concatenate(nearest, axis=1), axis=1)
        return tuple(float(m) if math.isfinite(m) and m > ALONE else 1.0 for m in medians)  # type: ignore[return-value]


def _queries_at_once(rows: np.ndarray) -> int:
    """Return how many queries of this shape `(variants, slices, f)` are compared at once."""
    return max(1, ROWS // (rows.shape[0] * rows.shape[1]))


def unit(rows: np.ndarray) -> np.ndarray:
    """Subtract each row's mean and divide by its length, so that products of rows are Pearson correlations."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), ALONE)
