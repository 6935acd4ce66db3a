"""A measured set of volumes."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cardiodit.evaluation.compatibility import VolumeStats, summarize_set
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.volume_sets import Item, Problem, VolumeSet


@dataclass(frozen=True)
class MeasuredSet:
    """The volumes of one set and their measurements, in the same order.

    Metrics take them in the order of their contents, so that no result depends on the names of files.
    """

    volumes: VolumeSet
    items: list[Item]
    measured: list[Measured]
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def stats(self) -> VolumeStats:
        return summarize_set([measured.stats for measured in self.measured])

    @cached_property
    def by_content(self) -> list[Measured]:
        return sorted(self.measured, key=lambda measured: measured.content)

    @property
    def items_by_content(self) -> list[Item]:
        """The items in the order of `by_content`."""
        order = sorted(range(len(self.items)), key=lambda i: self.measured[i].content)
        return [self.items[i] for i in order]

    @cached_property
    def by_subject(self) -> list[list[int]]:
        """The positions of each subject's volumes, in the order of their contents."""
        order = sorted(range(len(self.items)), key=lambda i: self.measured[i].content)
        groups: dict[str, list[int]] = {}
        for i in order:
            item = self.items[i]
            groups.setdefault(f"subject {item.subject}" if item.subject else f"volume {i}", []).append(i)
        return list(groups.values())

    @property
    def has_repeated_subjects(self) -> bool:
        """True if some of several subjects have more than one volume."""
        return 1 < len(self.by_subject) < len(self.items)

    def one_per_subject(self, rng: np.random.Generator) -> "MeasuredSet":
        """Return one randomly chosen volume of each subject."""
        chosen = sorted(volumes[int(rng.integers(len(volumes)))] for volumes in self.by_subject)
        return replace(self, items=[self.items[i] for i in chosen], measured=[self.measured[i] for i in chosen])

    @property
    def identity(self) -> str:
        """SHA-256 over the contents of all volumes."""
        return hashlib.sha256("".join(measured.content for measured in self.by_content).encode()).hexdigest()

    def rows(self, kind: str) -> np.ndarray:
        """Return one kind of features, `(n, f)`."""
        return np.stack([measured.features[kind] for measured in self.by_content])

    def known(self, name: str) -> list[float]:
        """Return the known values of one number."""
        values = (measured.numbers.get(name) for measured in self.by_content)
        return [value for value in values if value is not None and math.isfinite(value)]
