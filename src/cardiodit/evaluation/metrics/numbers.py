"""Metrics on one number of single hearts, such as the ejection fraction: how far apart its two distributions are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, Floor
from cardiodit.evaluation.metrics.registry import LOWER, NOT_NEGATIVE, Result, Scoring, metric

CONFIDENCE = 0.95
DRAWS = 1999  # of the floor and of the permutation test, whose smallest p value is then 1/2000
CHUNK = 500_000  # numbers held at once while drawing, in each of several arrays


@dataclass(frozen=True)
class Quantity:
    """A number that is measured in each heart."""

    name: str
    title: str
    unit: str = ""


@dataclass(frozen=True)
class Sample:
    """Count, mean, and standard deviation with n − 1."""

    count: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of two distributions of one number.

    Args:
        real, synthetic: summaries of the two samples.
        difference: of the means, synthetic − real.
        interval: 95% confidence interval of that difference (Welch, unequal variances).
        wasserstein: Wasserstein-1 distance of the distributions, in the number's own unit.
        floor: mean of this distance when both sides are drawn from the real values, as many as there are on each side;
            a perfect generator does not score lower.
        floor_high: the floor's 95th percentile.
        p_value: of a permutation test of the distance: how often it is as large when real and synthetic are shuffled.
    """

    real: Sample
    synthetic: Sample
    difference: float
    interval: tuple[float, float]
    wasserstein: float
    floor: float
    floor_high: float
    p_value: float


def register_quantities(quantities: Sequence[Quantity], *, group: str, if_unknown: str | None = None) -> None:
    """Register the Wasserstein distance of each quantity as a metric.

    Args:
        if_unknown: reason to give where a quantity was to be measured and is unknown in every volume.
    """
    for quantity in quantities:
        metric(
            f"wasserstein_{quantity.name}",
            f"{quantity.title}: Wasserstein distance",
            group=group,
            better=LOWER,
            unit=quantity.unit,
            label=quantity.title,
            bounds=NOT_NEGATIVE,
        )(partial(_wasserstein_metric, quantity=quantity, group=group, if_unknown=if_unknown))


def _wasserstein_metric(scoring: Scoring, *, quantity: Quantity, group: str, if_unknown: str | None) -> Result | None:
    values = scoring.numbers(quantity.name)
    missing = [len(side.measured) - len(known) for side, known in zip(scoring.sets, values, strict=True)]
    if not any(values):
        is_measured = any(quantity.name in volume.numbers for side in scoring.sets for volume in side.measured)
        if is_measured and if_unknown:
            raise CardioDiTError(if_unknown)
        return None
    if min(map(len, values)) < 2:
        raise CardioDiTError(f"{missing[0]} real and {missing[1]} synthetic volumes do not have this number.")
    comparison = compare(*values, seed=scoring.seed, draws=DRAWS)
    real, synthetic, (low, high) = comparison.real, comparison.synthetic, comparison.interval
    notes = [
        f"Real {real.mean:.4g} ± {real.sd:.3g}, synthetic {synthetic.mean:.4g} ± {synthetic.sd:.3g}"
        f"{f' {quantity.unit}' if quantity.unit else ''}; difference of the means {comparison.difference:.3g} "
        f"({low:.3g} to {high:.3g}); permutation test of the distance: p = {comparison.p_value:.3g}.",
        "The distance itself has no interval; the floor's high end is its 95th percentile between real and real.",
    ]
    if any(missing):
        notes.append(f"{missing[0]} real and {missing[1]} synthetic volumes do not have this number.")
    method = "Wasserstein-1 distance between the distributions of one number per heart"
    return Result(
        Estimate(comparison.wasserstein, method=method, notes=tuple(notes)),
        Floor(comparison.floor, None, comparison.floor_high, comparison.wasserstein, None),
        distribution={
            "name": quantity.name,
            "title": quantity.title,
            "unit": quantity.unit,
            "group": group,
            "real": values[0],
            "synthetic": values[1],
            "comparison": {**asdict(comparison), "interval": list(comparison.interval)},
        },
        p_value=comparison.p_value,
    )


def compare(
    real: Sequence[float] | np.ndarray, synthetic: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Comparison:
    """Compare the values of independent subjects; several slices or frames of one subject are not independent."""
    first, second = _checked("real", real), _checked("synthetic", synthetic)
    distance = wasserstein(first, second)
    floor = _floor(first, len(second), draws, np.random.default_rng([seed, 0]))
    return Comparison(
        real=_sample(first),
        synthetic=_sample(second),
        difference=float(second.mean() - first.mean()),
        interval=welch_interval(first, second),
        wasserstein=distance,
        floor=float(floor.mean()),
        floor_high=float(np.quantile(floor, 0.95)),
        p_value=_p_value(first, second, distance, draws, np.random.default_rng([seed, 1])),
    )


def compare_tables(
    real: Sequence[Mapping[str, float | None]], synthetic: Sequence[Mapping[str, float | None]], *, seed: int = 0
) -> dict[str, Comparison]:
    """Compare tables with one row per heart, column by column; a column with an unknown number is left out."""
    tables: list[Any] = [{name: [row.get(name) for row in rows] for name in real[0]} for rows in (real, synthetic)]
    return {
        name: compare(tables[0][name], tables[1][name], seed=seed)
        for name in real[0]
        if all(value is not None and np.isfinite(value) for table in tables for value in table[name])
    }


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Return ∫ |F − G| of the two empirical distribution functions."""
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    is_second = (np.arange(len(values)) >= len(first))[order]
    return float(_distances(values[order], (~is_second)[None], is_second[None])[0])


def welch_interval(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of mean(second) − mean(first), with Welch and Satterthwaite's degrees of freedom."""
    difference = float(second.mean() - first.mean())
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in (first, second)])
    if not parts.sum():
        return difference, difference
    degrees = parts.sum() ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second)))
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(parts.sum()))
    return difference - reach, difference + reach


def _distances(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Wasserstein distances `(N,)` of N pairs of samples of the sorted values (k,), given their counts."""
    gap = first.cumsum(axis=1) / first.sum(axis=1, keepdims=True)
    gap -= second.cumsum(axis=1) / second.sum(axis=1, keepdims=True)  # (N, k): F − G
    return np.abs(gap[:, :-1]) @ np.diff(values)


def _p_value(first: np.ndarray, second: np.ndarray, distance: float, draws: int, random: np.random.Generator) -> float:
    """Return (1 + draws at least as large) / (1 + draws), which is never 0 and keeps its level exactly."""
    values = np.sort(np.concatenate([first, second]))
    is_second = np.arange(len(values)) >= len(first)
    as_large = 0
    for count in _chunks(draws, len(values)):
        shuffled = random.permuted(np.broadcast_to(is_second, (count, len(values))), axis=1)
        as_large += int((_distances(values, ~shuffled, shuffled) >= distance * (1 - 1e-12)).sum())
    return (1 + as_large) / (1 + draws)


def _floor(real: np.ndarray, count: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Return distances `(draws,)` of two samples of the real values, with replacement: as many as real, and `count`."""
    values, chances = np.sort(real), np.full(len(real), 1 / len(real))
    distances = []
    for rows in _chunks(draws, len(values)):
        pair = [random.multinomial(size, chances, rows) for size in (len(real), count)]  # (rows, k) each
        distances.append(_distances(values, *pair))
    return np.concatenate(distances)


def _chunks(draws: int, width: int) -> list[int]:
    largest = max(1, CHUNK // width)
    return [min(largest, draws - start) for start in range(0, draws, largest)]


def _sample(values: np.ndarray) -> Sample:
    return Sample(len(values), float(values.mean()), float(values.std(ddof=1)))


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise CardioDiTError(f"Distributions need at least 2 values; the {name} ones have the shape {array.shape}.")
    if bad := int((~np.isfinite(array)).sum()):
        raise CardioDiTError(
            f"{bad} of the {len(array)} {name} values are not finite. Leave those hearts out and report how many."
        )
    return array
