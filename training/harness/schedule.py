"""The learning rate as a function of the step: nothing to be saved, nothing to be restarted by mistake."""

import math
from dataclasses import dataclass

from cardiodit.training.settings import Training


@dataclass(frozen=True)
class Schedule:
    """What a run's settings mean in steps.

    Args:
        steps: in all.
        epoch: steps an epoch, not always a whole number.
    """

    steps: int
    epoch: float
    warmup: int
    settings: Training

    @classmethod
    def of(cls, settings: Training, samples: int, processes: int) -> "Schedule":
        epoch = samples / (settings.train_batch_size * settings.gradient_accumulation_steps * processes)
        steps = settings.max_train_steps or max(1, math.ceil(settings.num_train_epochs * epoch))
        warmup = settings.lr_warmup_steps
        return cls(steps, epoch, round(settings.lr_warmup_epochs * epoch) if warmup is None else warmup, settings)

    def every(self, epochs: float, steps: int | None) -> int:
        """Steps between two of something that is asked for in epochs or in steps."""
        return steps if steps is not None else max(1, round(epochs * self.epoch))

    def rate(self, step: int) -> float:
        """Share of the highest rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.settings.lr_scheduler == "exponential":
            return self.settings.lr_gamma ** math.floor(step / self.epoch)
        if self.settings.lr_scheduler == "cosine":
            done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
            least = self.settings.lr_min_ratio
            return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2
        return 1.0
