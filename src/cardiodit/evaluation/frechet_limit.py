"""The Fréchet distance for infinitely many volumes, and where it may lie: by extrapolation and a jackknife.

Subsets of the volumes tell how the bias falls with their number. Where it does not fall as the extrapolation supposes,
some of it is left, an interval around the value would miss the truth, and none is given.
"""

from collections.abc import Iterator

import numpy as np

from cardiodit.evaluation.estimate import Estimate, checked_features, jackknife_interval
from cardiodit.evaluation.frechet import centred_gram, frechet_distance
from cardiodit.evaluation.frechet_subsets import Pair, pair_of

FRACTIONS = (0.8, 0.65, 0.5)  # of the volumes, for the extrapolation, beside all of them
ORDERS = 3  # shuffles from which subsets are taken
GROUPS = 10  # left out in turn, of each sample
FEWEST = 8  # volumes of each kind, to extrapolate
# Volumes per effective dimension. Below, simulated intervals missed the truth: the bias is no longer linear in 1/n.
# Effective dimensions see the leading directions only; of the tail, halves of a sample tell.
ENOUGH = 10.0
HALVINGS = 8  # random halves of each sample
# Share of the traces by which one distance may be off: some 1e-5 after extrapolation, and volumes scatter a hundred
# times as far.
SEEN = 2e-6

Order = tuple[np.ndarray, np.ndarray]  # of the real and of the synthetic volumes


def frechet_estimate(real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0) -> Estimate:
    """d² for infinitely many volumes: a line in 1/n through subsets (Chong and Forsyth 2020), and a jackknife.

    Both samples shrink by the same fraction, so that the bias a/n + b/m shrinks along one line. The order of the rows
    decides which volumes share a subset; another order is another seed.
    """
    real, synthetic = checked_features(real, synthetic)
    if min(len(real), len(synthetic)) < FEWEST:
        return Estimate(
            frechet_distance(real, synthetic),
            None,
            None,
            method="Fréchet distance of the volumes at hand",
            notes=(f"Biased upwards: fewer than {FEWEST} volumes of a kind do not allow to extrapolate.",),
        )
    pair = pair_of(real, synthetic)
    value, low, high = _with_interval(pair, seed)
    method = (
        f"Fréchet distance extrapolated to infinitely many volumes (line in 1/n through {min(FRACTIONS):.0%} to 100% "
        f"of the volumes, {ORDERS} shuffles); interval by a jackknife over {GROUPS} groups of volumes of each kind"
    )
    notes = ["Below 0 stands for no distance that could be told from none."] if value < 0 else []
    why_none = _crowded(real, synthetic) or _left_in_halves(pair, value - low, seed)
    if why_none:
        return Estimate(value, None, None, method=method, notes=(*notes, why_none))
    return Estimate(value, low, high, method=method, notes=tuple(notes))


def _with_interval(pair: Pair, seed: int) -> tuple[float, float, float]:
    """The limit, and the ends of its interval."""
    rng = np.random.default_rng([seed, *pair.counts])
    orders = [(rng.permutation(pair.counts[0]), rng.permutation(pair.counts[1])) for _ in range(ORDERS)]
    groups = [rng.permutation(np.arange(count) % GROUPS) for count in pair.counts]
    everyone = [np.ones(count, bool) for count in pair.counts]
    value = _extrapolated(pair, orders, everyone)
    without_real = [_extrapolated(pair, orders, [groups[0] != g, everyone[1]]) for g in np.unique(groups[0])]
    without_synthetic = [_extrapolated(pair, orders, [everyone[0], groups[1] != g]) for g in np.unique(groups[1])]
    return value, *jackknife_interval(value, np.array(without_real), np.array(without_synthetic))


def effective_dimensions(features: np.ndarray) -> float:
    """(tr C)² / tr C²: how many directions of equal spread would do, with the sampling noise's share taken out."""
    gram = centred_gram(features)
    if not np.trace(gram):
        return 0.0
    inverse = np.square(gram).sum() / np.trace(gram) ** 2 - 1 / (len(features) - 1)
    return float(1 / inverse) if inverse > 0 else float("inf")


def _crowded(real: np.ndarray, synthetic: np.ndarray) -> str:
    """Why there is no interval; empty where there may be one."""
    for sample, kind in ((real, "real"), (synthetic, "synthetic")):
        dimensions = effective_dimensions(sample)
        if len(sample) < ENOUGH * dimensions:
            return (
                f"No interval: {len(sample)} {kind} volumes spread over about {dimensions:.0f} dimensions, and below "
                f"{ENOUGH:.0f} volumes a dimension the bias is not linear in 1/n; the value is still too high."
            )
    return ""


def _left_in_halves(pair: Pair, reach: float, seed: int) -> str:
    """Why there is no interval; empty where the bias that extrapolation leaves, as halves show it, is within reach."""
    pairs: tuple[Pair, Pair] = pair.with_themselves
    for same, kind in zip(pairs, ("real", "synthetic"), strict=True):
        left = _between_halves(same, seed)
        if left > reach:
            return (
                f"No interval: between random halves of the {same.counts[0]} {kind} volumes, which are 0 apart in "
                f"truth, extrapolation leaves {left:.3g}, more than the interval would reach ({reach:.3g}). Many "
                "directions hold a little of their spread each, and the bias is not linear in 1/n; the value is still "
                "too high."
            )
    return ""


def _between_halves(same: Pair, seed: int) -> float:
    """The mean limit between random halves of one sample, which is nothing but bias."""
    count = same.counts[0]
    limits = []
    for draw in range(HALVINGS):
        shuffled = np.random.default_rng([seed, count, draw]).permutation(count)
        halves = same[shuffled[: count // 2], shuffled[count // 2 :]]
        as_they_are = [np.arange(half) for half in halves.counts]
        everyone = [np.ones(half, bool) for half in halves.counts]
        limits.append(_extrapolated(halves, [(as_they_are[0], as_they_are[1])], everyone))
    return float(np.mean(limits))


def _extrapolated(pair: Pair, orders: list[Order], kept: list[np.ndarray]) -> float:
    """Where the line through the subsets' distances meets 1/n = 0; each order counts all volumes once."""
    points = [_point(pair[kept[0], kept[1]])] * len(orders)
    for order in orders:
        first, second = (turn[keep[turn]] for turn, keep in zip(order, kept, strict=True))
        points += map(_point, _subsets(pair[first, second]))
    inverse, distances = np.array(points).T
    _, limit = np.polyfit(inverse, distances, 1)
    return float(limit)


def _point(pair: Pair) -> tuple[float, float]:
    """1/n + 1/m, and d²."""
    return sum(1 / count for count in pair.counts), pair.distance(SEEN)


def _subsets(pair: Pair) -> Iterator[Pair]:
    """Of each fraction the first and the last volumes."""
    for fraction in FRACTIONS:
        n, m = (round(fraction * count) for count in pair.counts)
        yield pair[:n, :m]
        yield pair[-n:, -m:]
