"""One of the two sets, measured."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from cardiodit.evaluation.compatibility import Facts, facts_of_set
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.sets import Item, Problem, VolumeSet


@dataclass(frozen=True)
class Side:
    """A measured set: its items and what was measured of each, in their order."""

    volumes: VolumeSet
    items: list[Item]
    measured: list[Measured]
    problems: list[Problem] = field(default_factory=list)

    @property
    def facts(self) -> Facts:
        return facts_of_set([measured.facts for measured in self.measured])

    @property
    def by_content(self) -> list[Measured]:
        """In an order that does not depend on files' names, so that no metric does."""
        return sorted(self.measured, key=lambda measured: measured.content)

    def rows(self, kind: str) -> np.ndarray:
        return np.stack([measured.features[kind] for measured in self.by_content])

    @property
    def identity(self) -> str:
        return hashlib.sha256("".join(measured.content for measured in self.by_content).encode()).hexdigest()
