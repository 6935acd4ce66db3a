"""A line of the report: a metric with its interval, and beside it what it is between real and real."""

from dataclasses import asdict, dataclass
from typing import Any

from cardiodit.evaluation.estimate import Estimate
from cardiodit.evaluation.floor import Floored

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"
DISTRIBUTION, DIVERSITY, FUNCTION = "distribution", "diversity", "function"
CONSISTENCY, PLAUSIBILITY, RECONSTRUCTION = "consistency", "plausibility", "reconstruction"
GROUPS = (DISTRIBUTION, DIVERSITY, FUNCTION, PLAUSIBILITY, CONSISTENCY, RECONSTRUCTION)


@dataclass(frozen=True)
class Floor:
    """The same metric between real and real.

    Args:
        value, low, high: of the floor, and how far it reaches; None where that is not known.
        matched: the metric at the floor's number of volumes; what the floor is to be compared with.
        volumes: that number, on each side; None where the floor is that of all volumes, and no set was cut for it.
    """

    value: float
    low: float | None
    high: float | None
    matched: float
    volumes: int | None

    @classmethod
    def of(cls, floored: Floored) -> "Floor":
        return cls(floored.floor, floored.floor_low, floored.floor_high, floored.matched, floored.volumes)


@dataclass(frozen=True)
class Shrunk:
    """A Fréchet distance of singular covariances, and what it is when they are drawn towards multiples of I.

    Args:
        value: with both covariances shrunk.
        at_hand: of the same volumes without.
        real, synthetic: how far each was drawn, from 0 to 1 (Ledoit and Wolf 2004).
    """

    value: float
    at_hand: float
    real: float
    synthetic: float


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: for programs.
        title: for people.
        group: one of `GROUPS`.
        better: "lower", "higher" or "near real".
        shrunk: beside a Fréchet distance where a covariance is singular.
    """

    name: str
    title: str
    group: str
    better: str
    estimate: Estimate
    floor: Floor | None = None
    unit: str = ""
    shrunk: Shrunk | None = None

    def to_dict(self) -> dict[str, Any]:
        estimate, floor = self.estimate, self.floor
        return {
            "name": self.name,
            "title": self.title,
            "group": self.group,
            "better": self.better,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "level": estimate.level,
            "method": estimate.method,
            "notes": list(estimate.notes),
            "floor": None if floor is None else asdict(floor),
            "unit": self.unit,
            "shrunk": None if self.shrunk is None else asdict(self.shrunk),
        }
