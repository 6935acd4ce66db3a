"""The order of samples and the learning rate, as functions of the seed and the step.

Visits of samples are numbered from 0 through the whole run. Step s of a run sees the visits s·G to (s + 1)·G, where G
is the number of samples per step over all processes and accumulated batches. So a resumed run sees what it would have
seen without the interruption, also with another number of processes. Every epoch has its own order; a batch may span
two epochs.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from cardiodit._util.randomness import generator_for

if TYPE_CHECKING:  # the settings know the objectives, which know this file
    from cardiodit.training.settings import Training


def seed_for(seed: int, purpose: str) -> int:
    """Return a seed for one purpose of a run, so that draws for one do not depend on those for another."""
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


class BucketOrder:
    """The order in which samples of several shapes are visited: all samples of a step have the same shape.

    In each epoch every shape's samples are shuffled and filled up to whole steps by repeating, and the steps are
    shuffled. It depends on the seed and the samples per step alone, not on the number of processes.

    Args:
        shapes: shape of each sample.
        step: samples per step.
        seed: random seed.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], step: int, seed: int) -> None:
        self.buckets = [np.flatnonzero([other == shape for other in shapes]) for shape in dict.fromkeys(shapes)]
        self.step, self.seed = step, seed
        self.size = sum(-(-len(bucket) // step) * step for bucket in self.buckets)
        self._kept: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of visits in an epoch."""
        return self.size

    def __getitem__(self, visit: int) -> int:
        epoch, place = divmod(visit, self.size)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = (epoch, self._order(epoch))
        return int(self._kept[1][place])

    def _order(self, epoch: int) -> np.ndarray:
        generator = generator_for(seed_for(self.seed, "buckets"), epoch)
        steps: list[np.ndarray] = []
        for bucket in self.buckets:
            shuffled = bucket[torch.randperm(len(bucket), generator=generator).numpy()]
            whole = np.resize(shuffled, -(-len(bucket) // self.step) * self.step)
            steps += list(whole.reshape(-1, self.step))
        return np.concatenate([steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()])


@dataclass(frozen=True)
class DistributedSampler:
    """Batch sampler of one process: for each step, `accumulation` batches of visit numbers.

    Args:
        first_step, last_step: range of steps, without the last.
        batch_size, accumulation: samples per batch, batches per step.
        process, processes: index of this process, number of processes.
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
        for batch in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            first = (batch * self.processes + self.process) * self.batch_size
            yield list(range(first, first + self.batch_size))


@dataclass(frozen=True)
class Schedule:
    """A run's settings converted to steps. The learning rate is a function of the step, so nothing needs saving.

    Args:
        steps: steps of the whole run.
        epoch: steps per epoch, not always a whole number.
        warmup: steps in which the learning rate rises.
        settings: the run's settings.
    """

    steps: int
    epoch: float
    warmup: int
    settings: "Training"

    @classmethod
    def of(cls, settings: "Training", samples: int, processes: int) -> "Schedule":
        epoch = samples / (settings.train_batch_size * settings.gradient_accumulation_steps * processes)
        steps = settings.max_train_steps or max(1, math.ceil(settings.num_train_epochs * epoch))
        warmup = settings.lr_warmup_steps
        return cls(steps, epoch, round(settings.lr_warmup_epochs * epoch) if warmup is None else warmup, settings)

    def every(self, epochs: float, steps: int | None) -> int:
        """Return an interval in steps that the settings give in epochs or in steps."""
        return steps if steps is not None else max(1, round(epochs * self.epoch))

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0, as a share of the highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.settings.lr_scheduler == "exponential":
            if self.settings.lr_step_gamma is not None:
                return self.settings.lr_step_gamma**step
            return self.settings.lr_gamma ** math.floor(step / self.epoch)
        if self.settings.lr_scheduler == "cosine":
            done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
            least = self.settings.lr_min_ratio
            return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2
        return 1.0
