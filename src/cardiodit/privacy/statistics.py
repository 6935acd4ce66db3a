"""Statistics of copies: the published rule, and estimates that are compared with what held-out patients reach.

A distance is small when two volumes are alike. Matrices have one row per training patient; columns are held-out
patients or generated samples. A held-out patient was never seen by the model, so whatever a search among training
patients finds for held-out patients is the null: a generator that copies nobody reaches the same.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import beta, betabinom, norm

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import LEVEL as COVERAGE
from cardiodit.evaluation.metrics.estimate import Estimate, jackknife_interval

LEVEL = 0.05  # share of held-out patients that a threshold flags
DISCOVERIES = 0.10  # largest expected share of false ones among the samples that are named as copies
REPEATS, PERMUTATIONS, GROUPS = 1000, 199, 20
CLOSEST = 1e-6  # smaller distances are rounding errors
FALSE_ALARMS = (0.01, 0.001)  # rates at which attacks are reported


@dataclass(frozen=True)
class Published:
    """Counts by the published rule, which depends on the sizes of the sets.

    Args:
        threshold: the 5th percentile, over training patients, of the distance to the nearest held-out one.
        patients: whether the nearest sample of each training patient is below the threshold.
        copies: whether the nearest training patient of each sample is below it.
        expected: largest share that a generator that copies nobody is expected to reach in either direction.
    """

    threshold: float
    patients: np.ndarray
    copies: np.ndarray
    expected: float


def published_rule(held_out: np.ndarray, samples: np.ndarray, level: float = LEVEL) -> Published:
    """Apply the rule of Dar et al. (arXiv:2402.01054) to distances `(training, held-out)`, `(training, samples)`."""
    threshold = float(np.percentile(held_out.min(axis=1), 100 * level))
    chances = max(1.0, samples.shape[1] / held_out.shape[1])
    return Published(
        threshold, samples.min(axis=1) < threshold, samples.min(axis=0) < threshold, 1 - (1 - level) ** chances
    )


def fewest_held_out(level: float = LEVEL) -> int:
    """Return how many held-out patients are needed before any p-value can reach the level."""
    return math.ceil(1 / level) - 1


def matched_p_values(held_out: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the p-value of each sample: how often a held-out patient is as near to a training patient.

    Args:
        held_out: distance of each held-out patient to its nearest training patient.
        samples: distance of each sample to its nearest training patient.
    """
    nearer = np.searchsorted(np.sort(held_out), samples, side="right")
    return (1 + nearer) / (len(held_out) + 1)


def tail_p_values(held_out: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return p-values that continue below the nearest held-out patient, so that single copies can be named.

    The p-values of `matched_p_values` are at least 1 / (n + 1), which hardly survives a correction for many samples.
    Near zero, the share of distances below d grows like a power of d; the power is Hill's estimate from the nearest
    tenth of the held-out patients (at least 10), less its standard error times 1.64.
    """
    ordered = np.maximum(np.sort(held_out), CLOSEST)
    rank = min(max(10, len(ordered) // 10), len(ordered) // 2)
    edge = ordered[rank - 1]
    spread = np.log(edge / ordered[: rank - 1]).mean()
    power = (1 - 1.64 / math.sqrt(rank)) / max(float(spread), 1e-6)
    beyond = rank / (len(ordered) + 1) * np.minimum(1, np.maximum(samples, CLOSEST) / edge) ** power
    p_values = matched_p_values(held_out, samples)
    return np.where(samples < edge, np.minimum(p_values, beyond), p_values)


def benjamini_hochberg(p_values: np.ndarray, level: float = DISCOVERIES) -> np.ndarray:
    """Return which hypotheses are rejected so that the expected share of false rejections is at most the level."""
    order = np.argsort(p_values)
    passed = np.flatnonzero(p_values[order] <= level * np.arange(1, len(p_values) + 1) / len(p_values))
    rejected = np.zeros(len(p_values), bool)
    if len(passed):
        rejected[order[: passed[-1] + 1]] = True
    return rejected


@dataclass(frozen=True)
class Excess:
    """A share of copies beyond what held-out patients reach.

    Args:
        observed: share that is nearer than the threshold.
        null: the same share for a generator that copies nobody.
        excess: their difference, with its interval.
        p_value: of the hypothesis that there is no excess.
        true_level: interval of the share of the whole population that the threshold flags, whose estimate rests on
            few held-out patients.
    """

    observed: float
    null: float
    excess: Estimate
    p_value: float
    true_level: tuple[float, float]


def true_level(held_out: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the 95% interval of the level that a threshold from so many held-out patients really has."""
    rank = max(1, math.floor(level * (held_out + 1)))
    low, high = beta.ppf([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], rank, held_out + 1 - rank)
    return float(low), float(high)


def excess_of_copies(
    held_out: np.ndarray,
    samples: np.ndarray,
    nearest: np.ndarray,
    level: float = LEVEL,
    seed: int = 0,
    repeats: int = REPEATS,
) -> Excess:
    """Estimate the share of samples that are copies beyond those that chance makes look so.

    Args:
        held_out, samples: distance of each to its nearest training patient.
        nearest: number of that training patient for each sample: copies of one patient are not independent.
    """
    count = len(held_out)
    rank = math.floor(level * (count + 1))
    if rank < 1:
        raise CardioDiTError(
            f"{count} held-out patients cannot show copies at a level of {level:g}: at least {fewest_held_out(level)} "
            "are needed. Add held-out patients from the same scanners."
        )
    null = rank / (count + 1)
    flagged = samples < np.partition(held_out, rank - 1)[rank - 1]  # p ≤ level
    rng = np.random.default_rng([seed, count, len(samples)])
    patients, place = np.unique(nearest, return_inverse=True)
    rates = np.empty(repeats)
    for repeat in range(repeats):
        drawn = np.bincount(rng.integers(len(patients), size=len(patients)), minlength=len(patients))[place]
        threshold = np.partition(rng.choice(held_out, count), rank - 1)[rank - 1]
        rates[repeat] = np.average(samples < threshold, weights=drawn) if drawn.any() else np.nan
    low, high = np.nanpercentile(rates, [50 * (1 - COVERAGE), 50 * (1 + COVERAGE)]) - null
    method = f"bootstrap over {count} held-out patients and over the {len(patients)} training patients near samples"
    observed = float(flagged.mean())
    value = observed - null
    estimate = Estimate(value, min(float(low), value), max(float(high), value), method=method)
    p_value = float(betabinom.sf(flagged.sum() - 1, len(samples), rank, count + 1 - rank))
    return Excess(observed, null, estimate, p_value, true_level(count, level))


def excess_of_patients(
    held_out: np.ndarray, samples: np.ndarray, level: float = LEVEL, seed: int = 0, permutations: int = PERMUTATIONS
) -> Excess:
    """Estimate the share of training patients that samples reproduce beyond chance, among equally many samples.

    More samples are more chances to be near a patient, so only as many samples as there are held-out patients are
    compared; the result is the exact average over all such draws. The test exchanges samples and held-out patients.

    Args:
        held_out, samples: distances `(training patients, held-out patients)` and `(training patients, samples)`.
    """
    rng = np.random.default_rng([seed, *held_out.shape, samples.shape[1]])
    if samples.shape[1] < held_out.shape[1]:
        held_out = held_out[:, np.sort(rng.permutation(held_out.shape[1])[: samples.shape[1]])]
    observed = matched_rate(held_out, samples, level)
    null = float((held_out.min(axis=1) < _threshold(held_out, level)).mean())

    def excess(rows: np.ndarray, columns: np.ndarray, others: np.ndarray) -> float:
        return matched_rate(held_out[np.ix_(rows, columns)], samples[np.ix_(rows, others)], level) - null

    whole = [np.arange(n) for n in (*held_out.shape, samples.shape[1])]
    left_out = [np.array([excess(*kept) for kept in _without_groups(whole, axis, rng)]) for axis in range(3)]
    low, high = jackknife_interval(observed - null, *left_out)
    m, both = held_out.shape[1], np.concatenate([held_out, samples], axis=1)
    as_large = 0
    for _ in range(permutations):
        order = rng.permutation(both.shape[1])
        as_large += matched_rate(both[:, order[:m]], both[:, order[m:]], level) >= observed
    method = (
        f"mean over all draws of {m} of {samples.shape[1]} samples; interval by the jackknife over groups of training "
        "patients, held-out patients and samples; p by exchanging held-out patients and samples"
    )
    return Excess(
        observed,
        null,
        Estimate(observed - null, low, high, method=method),
        (1 + as_large) / (permutations + 1),
        true_level(m, level),
    )


def matched_rate(held_out: np.ndarray, samples: np.ndarray, level: float = LEVEL) -> float:
    """Return the share of training patients near one of m samples, averaged over all draws of m samples.

    m is the number of held-out patients, or of samples if those are fewer; "near" is below the published threshold.
    """
    return share_near(samples, _threshold(held_out, level), held_out.shape[1])


def share_near(distances: np.ndarray, threshold: float, drawn: int) -> float:
    """Return the share of rows with a column below the threshold, averaged over all draws of so many columns."""
    total = distances.shape[1]
    drawn = min(drawn, total)
    others = total - (distances < threshold).sum(axis=1)  # columns that are not near
    missed = np.exp(
        gammaln(others + 1) - gammaln(np.maximum(others - drawn, 0) + 1)
        - gammaln(total + 1) + gammaln(total - drawn + 1)
    )  # fmt: skip
    return float(np.where(others < drawn, 1.0, 1 - missed).mean())


def _threshold(held_out: np.ndarray, level: float) -> float:
    return float(np.percentile(held_out.min(axis=1), 100 * level))


def _without_groups(whole: list[np.ndarray], axis: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Return all rows and columns, without each of the random groups of one of them."""
    shuffled = rng.permutation(whole[axis])
    groups = np.array_split(shuffled, min(GROUPS, len(shuffled)))
    return [
        [np.setdiff1d(part, group) if i == axis else part for i, part in enumerate(whole)]
        for group in groups
        if len(group) < len(shuffled)
    ]


@dataclass(frozen=True)
class Attack:
    """How well a score separates members (training patients) from others; 0.5 is an AUC of pure chance.

    Args:
        rates: share of members found at each rate of false alarms, with exact intervals.
    """

    auc: Estimate
    rates: dict[float, Estimate]
    members: int
    others: int


def attack_of(members: np.ndarray, others: np.ndarray) -> Attack:
    """Evaluate an attack whose scores are low for members; AUC by DeLong, rates by Clopper and Pearson."""
    n, m = len(members), len(others)
    if min(n, m) < 2:
        raise CardioDiTError(f"An attack needs at least 2 members and 2 others, and there are {n} and {m}.")
    placements, reverse = _share_above(others, members), 1 - _share_above(members, others)
    auc = float(placements.mean())
    spread = math.sqrt(placements.var(ddof=1) / n + reverse.var(ddof=1) / m)
    reach = float(norm.ppf((1 + COVERAGE) / 2)) * spread
    estimate = Estimate(auc, max(0.0, auc - reach), min(1.0, auc + reach), method="DeLong")
    return Attack(estimate, {rate: _found_at(members, others, rate) for rate in FALSE_ALARMS}, n, m)


def _share_above(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return for each score the share of the values that are larger; equal ones count half."""
    ordered = np.sort(values)
    below, up_to = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return 1 - (below + up_to) / 2 / len(values)


def _found_at(members: np.ndarray, others: np.ndarray, rate: float) -> Estimate:
    allowed = math.floor(rate * len(others))  # false alarms
    found = int((members < np.sort(others)[allowed]).sum())
    low, high = proportion_interval(found, len(members))
    notes = () if allowed else (f"With {len(others)} others, no false alarm is allowed at this rate.",)
    return Estimate(found / len(members), low, high, method=f"{allowed} false alarms of {len(others)}", notes=notes)


def proportion_interval(count: int, total: int) -> tuple[float, float]:
    """Return the exact 95% interval of a proportion (Clopper and Pearson)."""
    tail = (1 - COVERAGE) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(1 - tail, count + 1, total - count))
    return low, high
