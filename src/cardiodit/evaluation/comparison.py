"""One number of many hearts, real beside synthetic: how far apart the two are, and how far chance alone takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cardiodit.errors import CardioDiTError

CONFIDENCE = 0.95
DRAWS = 1999  # of the permutation test, whose smallest p value is then 1/2000, and of the floor
CHUNK = 500_000  # numbers held at once while drawing, of several arrays


@dataclass(frozen=True)
class Sample:
    """How many values there are, their mean, and their standard deviation with n − 1."""

    count: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Comparison:
    """Of two distributions of one number.

    Args:
        real, synthetic: each for itself.
        difference: of the means, synthetic − real.
        interval: in which that difference lies with 95% confidence (Welch, unequal variances).
        wasserstein: distance of the distributions in the number's own unit (Wasserstein-1).
        floor: what this distance is on average when both sides are drawn from the real values, as many as there are
            on each side; a perfect generator does not score lower.
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


def compare(
    real: Sequence[float] | np.ndarray, synthetic: Sequence[float] | np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> Comparison:
    """Compares the values of independent subjects; values of one subject's slices or frames are no such values."""
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
    """Column by column, of tables with one row a heart; a column is left out where a heart lacks its number."""
    names = [name for name in real[0] if all(_is_known(row.get(name)) for row in (*real, *synthetic))]
    return {name: compare(_column(real, name), _column(synthetic, name), seed=seed) for name in names}


def wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """∫ |F − G| of the two empirical distribution functions."""
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    is_second = (np.arange(len(values)) >= len(first))[order]
    return float(_distances(values[order], (~is_second)[None], is_second[None])[0])


def welch_interval(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The confidence interval of mean(second) − mean(first), with Welch and Satterthwaite's degrees of freedom."""
    difference = float(second.mean() - first.mean())
    parts = np.array([sample.var(ddof=1) / len(sample) for sample in (first, second)])
    if not parts.sum():
        return difference, difference
    degrees = parts.sum() ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second)))
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(parts.sum()))
    return difference - reach, difference + reach


def _distances(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Wasserstein distances `(N,)` of N pairs of samples of the sorted values (k,), given how often each holds each."""
    gap = first.cumsum(axis=1) / first.sum(axis=1, keepdims=True)
    gap -= second.cumsum(axis=1) / second.sum(axis=1, keepdims=True)  # (N, k): F − G
    return np.abs(gap[:, :-1]) @ np.diff(values)


def _p_value(first: np.ndarray, second: np.ndarray, distance: float, draws: int, random: np.random.Generator) -> float:
    """(1 + as large ones) / (1 + draws), which is never 0 and keeps its level exactly."""
    values = np.sort(np.concatenate([first, second]))
    is_second = np.arange(len(values)) >= len(first)
    as_large = 0
    for count in _chunks(draws, len(values)):
        shuffled = random.permuted(np.broadcast_to(is_second, (count, len(values))), axis=1)
        as_large += int((_distances(values, ~shuffled, shuffled) >= distance * (1 - 1e-12)).sum())
    return (1 + as_large) / (1 + draws)


def _floor(real: np.ndarray, count: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Distances `(draws,)` of two samples drawn from the real values with replacement: as many as real, and `count`."""
    values, chances = np.sort(real), np.full(len(real), 1 / len(real))
    found = []
    for rows in _chunks(draws, len(values)):
        pair = [random.multinomial(size, chances, rows) for size in (len(real), count)]  # (rows, k) each
        found.append(_distances(values, *pair))
    return np.concatenate(found)


def _chunks(draws: int, width: int) -> list[int]:
    largest = max(1, CHUNK // width)
    return [min(largest, draws - start) for start in range(0, draws, largest)]


def _sample(values: np.ndarray) -> Sample:
    return Sample(len(values), float(values.mean()), float(values.std(ddof=1)))


def _checked(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise CardioDiTError(f"Distributions are compared from at least 2 values, the {name} ones are {array.shape}.")
    if bad := int((~np.isfinite(array)).sum()):
        raise CardioDiTError(
            f"{bad} of the {len(array)} {name} values are not finite. Leave those hearts out of both and say how many."
        )
    return array


def _is_known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _column(rows: Sequence[Mapping[str, float | None]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=np.float64)
