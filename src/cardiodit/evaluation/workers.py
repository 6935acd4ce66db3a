"""Measures all volumes of both sets, one at a time in each process; what is wrong with one stops none of the others."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import TypeVar

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import without_folders
from cardiodit.evaluation.evaluators import EvaluatorConfig, open_instruments
from cardiodit.evaluation.measure import Measured, measure
from cardiodit.evaluation.measurement_cache import key_of, read_kept, write_kept
from cardiodit.evaluation.sets import Item, Problem
from cardiodit.evaluation.threads import one_thread
from cardiodit.imaging.preprocessing import Preprocessing

Given = TypeVar("Given")
Found = TypeVar("Found")


class Workers:
    """Does one work for many things: here, or in processes that are started when they are first needed.

    The result does not depend on their number. In this process, too, arithmetic has one thread: with more, sums end in
    other bits.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Given], Found], given: Sequence[Given]) -> Iterator[Found]:
        """Results in the order of what is given."""
        if self.processes == 1 or len(given) < 2:
            with one_thread():
                yield from map(work, given)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, get_context("spawn"), initializer=_start)
        try:
            yield from self._pool.map(work, given)
        except BrokenProcessPool as error:
            raise CardioDiTError(
                "A process was ended from outside, perhaps for want of memory. What was measured is kept: start again, "
                "with fewer processes."
            ) from error


def measure_all(
    items: Sequence[Item], steps: Preprocessing, recipe: EvaluatorConfig, folder: Path, workers: Workers
) -> Iterator[Measured | Problem]:
    """In the order of the items."""
    from tqdm import tqdm

    work = partial(_measure_one, steps=steps, recipe=recipe, folder=folder)
    yield from tqdm(workers.map(work, items), total=len(items), desc="Measuring", unit="volume", disable=None)


def _measure_one(item: Item, steps: Preprocessing, recipe: EvaluatorConfig, folder: Path) -> Measured | Problem:
    instruments, labels_from = open_instruments(recipe), recipe.labels_of(item.set)
    try:
        key = key_of(item, steps, instruments, labels_from)
        found = read_kept(folder, key)
        if found is not None:
            return found
        found = measure(item, steps, instruments, labels_from)
    except (CardioDiTError, OSError) as error:
        paths = [item.image] if item.case is None else [item.image, item.case.path("mask") or item.image]
        return Problem(item.set, item.image.name, without_folders(str(error), paths))
    write_kept(folder, key, found)
    return found


def _start() -> None:
    """Of a process: one thread, and an end when the process that started it was killed."""
    import torch

    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
