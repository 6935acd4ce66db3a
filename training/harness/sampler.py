"""Which sample is seen when: a function of the seed and of a visit's number, whoever loads it.

SampleOrder are numbered from 0 through the whole run. Step s of a run sees the visits s·G to (s + 1)·G, where G is the
number of samples a step over all processes and accumulated batches: so a run that goes on, or goes on with another
number of processes, sees what it would have seen. Every epoch has an order of its own; a batch may span two epochs.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from cardiodit._util.randomness import generator_for


def seed_for(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose of a run, so that draws for one are not those for another."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


@dataclass(frozen=True)
class SampleOrder:
    """The order in which `size` samples are visited."""

    size: int
    seed: int

    def __getitem__(self, visit: int) -> int:
        epoch, place = divmod(visit, self.size)
        return int(_order(self.size, self.seed, epoch)[place])


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(size, generator=generator_for(seed_for(seed, "order"), epoch)).numpy()


@dataclass(frozen=True)
class Share:
    """What one process loads: for each step, `accumulation` batches of visits.

    Args:
        first_step, last_step: from and up to, without the last.
        batch_size, accumulation: samples a batch, batches a step.
        process, processes: which one of how many.
    """

    first_step: int
    last_step: int
    batch_size: int
    accumulation: int = 1
    process: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of visits, as a DataLoader's batch sampler gives them."""
        for batch in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            first = (batch * self.processes + self.process) * self.batch_size
            yield list(range(first, first + self.batch_size))
