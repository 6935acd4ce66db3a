"""Measuring all volumes of both sets, in one or several processes, with a cache of what earlier runs measured.

A problem of one volume does not stop the others, and an interrupted evaluation resumes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from cardiodit import __version__
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.hashing import sha256_of
from cardiodit._util.interrupts import ignore_interrupts
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.evaluation.compatibility import VolumeStats, without_folders
from cardiodit.evaluation.evaluators import MASKS, EvaluatorConfig, Evaluators, open_evaluators
from cardiodit.evaluation.measure import Measured, measure
from cardiodit.evaluation.metrics.body_size import COLUMNS as BODY_COLUMNS
from cardiodit.evaluation.volume_sets import Item, Problem, mask_paths
from cardiodit.imaging.manifest import reading_columns
from cardiodit.imaging.preprocessing import Preprocessing, without_typical

FORMAT = 6  # of the cache; to be raised when the same volume would be measured differently
FACTS = "facts"  # entry of a cache file with all that is not an array

Input = TypeVar("Input")
Output = TypeVar("Output")


class Workers:
    """Maps a function over many inputs, in this process or in several, which are started when first needed.

    The result does not depend on their number. In this process, too, arithmetic is single-threaded: with more threads,
    sums differ in their last bits.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Input], Output], inputs: Sequence[Input]) -> Iterator[Output]:
        """Yield the results in the order of the inputs."""
        if self.processes == 1 or len(inputs) < 2:
            with one_thread():
                yield from map(function, inputs)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, get_context("spawn"), initializer=_start_process)
        try:
            yield from self._pool.map(function, inputs)
        except BrokenProcessPool as error:
            raise CardioDiTError(
                "A process was killed, perhaps because memory ran out. Finished measurements are kept: start again "
                "with fewer processes."
            ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread: these matrices are too small for more, and on a busy machine threads wait."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure_all(
    items: Sequence[Item], steps: Preprocessing, config: EvaluatorConfig, cache: Path, workers: Workers
) -> Iterator[Measured | Problem]:
    """Measure all volumes, and yield the results in the order of the items."""
    function = partial(_measure_one, steps=steps, config=config, cache=cache)
    yield from progress(workers.map(function, items), "Measuring", total=len(items))


def _measure_one(item: Item, steps: Preprocessing, config: EvaluatorConfig, cache: Path) -> Measured | Problem:
    evaluators, labels_from = open_evaluators(config), config.labels_of(item.set)
    try:
        key = key_of(item, steps, evaluators, labels_from)
        measured = read_cached(cache, key)
        if measured is not None:
            return measured
        measured = measure(item, steps, evaluators, labels_from)
    except (CardioDiTError, OSError) as error:
        paths = [item.image] if item.case is None else [item.image, item.case.path("mask") or item.image]
        return Problem(item.set, item.image.name, without_folders(str(error), paths))
    write_cached(cache, key, measured)
    return measured


def key_of(item: Item, steps: Preprocessing, evaluators: Evaluators, labels_from: str | None) -> str:
    """Return the SHA-256 over everything that affects a measurement: file contents, preprocessing and evaluators."""
    parts: list[Any] = [FORMAT, __version__, sha256_of(item.image), item.set, item.units, labels_from]
    parts += [without_typical(steps).to_dict(), steps.intensity.units, evaluators.identity]
    if item.case is not None:
        parts += [item.case.row.get(column) for column in BODY_COLUMNS]
        masks = mask_paths(item.case) if labels_from == MASKS else None
        labelling = [item.case.row.get(column) for column in ("mask_order", "es_frame")]
        share = item.case.row.get("beat_share")
        reading = reading_columns(item.case) | ({"beat_share": share} if share else {})
        parts += [reading, labelling, masks and [sha256_of(mask) for mask in masks]]
    if item.requested is not None:
        parts += [sha256_of(item.requested.folder / item.requested.row[key]) for key in item.requested_keys]
        parts += [item.requested_keys, reading_columns(item.requested)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_cached(cache: Path, key: str) -> Measured | None:
    """Return an earlier measurement; None if there is none, or if its file is damaged, with a warning."""
    file = cache / f"{key}.npz"
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            facts = json.loads(stored[FACTS].tobytes())
            features = {name: stored[name] for name in stored.files if name != FACTS}
        stored_stats = facts.pop(FACTS)
        stats: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored_stats.items()
        }
        return Measured(**facts, stats=VolumeStats(**stats), features=features, was_cached=True)
    except Exception as error:  # whatever damage leads to
        warnings.warn(
            f"The cached measurement {file} is damaged ({reason_of(error)}). Measuring the volume again.", stacklevel=2
        )
        return None


def write_cached(cache: Path, key: str, measured: Measured) -> None:
    facts = {
        "content": measured.content,
        FACTS: vars(measured.stats),
        "numbers": measured.numbers,
        "curves": measured.curves,
        "plausible": measured.plausible,
    }
    packed = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_file(cache / f"{key}.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{FACTS: packed, **measured.features})
    except OSError as error:
        raise CardioDiTError(f"{cache} cannot be written: {error.strerror}.") from error


def _start_process() -> None:
    """Use one thread, leave Ctrl-C to the process that started this one, and end with it if it is killed."""
    import torch

    ignore_interrupts()
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
