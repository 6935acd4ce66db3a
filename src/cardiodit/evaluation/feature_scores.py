"""The metrics on features: distances of two distributions, and how well each covers the other, beside their floors."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.coverage import NEIGHBOURS, Coverage, coverage_estimates, coverage_metrics
from cardiodit.evaluation.estimate import Estimate
from cardiodit.evaluation.floor import REPEATS, beside_floor
from cardiodit.evaluation.floor import Metric as Distance
from cardiodit.evaluation.frechet import frechet, frechet_distance
from cardiodit.evaluation.frechet_limit import frechet_estimate
from cardiodit.evaluation.kernel import kid_estimate, mmd_prdit
from cardiodit.evaluation.metric import DISTRIBUTION, HIGHER, LOWER, NEAR_REAL, Floor, Metric, Shrunk

CRITIC = "Critic"
CRITIC_REPEATS = 2  # draws of the critic's floor, each of which trains twice as many critics as there are seeds
CRITIC_SEEDS = 3
SHARES = {"precision": HIGHER, "recall": HIGHER, "density": NEAR_REAL, "coverage": HIGHER}
COMPARED_NEIGHBOURS = 3  # for a volume's typicality

Sets = tuple[np.ndarray, np.ndarray]
Tell = Callable[[str], object]


def silent(_: str) -> None:
    """Tells nobody."""


def feature_scores(
    kind: str, real: np.ndarray, synthetic: np.ndarray, *, seed: int = 0, critic: bool = False, tell: Tell = silent
) -> tuple[list[Metric], list[str]]:
    """All metrics of one kind of rows, and a sentence for each that these volumes do not allow.

    Args:
        tell: is called with the name of each before it is computed.
    """
    metrics, left_out = [], []
    for name in names_of_scores(critic):
        tell(f"{name}, {kind}")
        try:
            metrics += _MAKERS[name](kind, (real, synthetic), seed)
        except CardioDiTError as error:
            left_out.append(f"{name}, {kind}: {error}")
    return metrics, left_out


def names_of_scores(critic: bool) -> list[str]:
    """What `feature_scores` computes of each kind of rows."""
    return [name for name in _MAKERS if critic or name != CRITIC]


def typicality(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each volume `(n,)`, `(m,)` is from its nearest real ones, over how far real ones are; 1 is usual."""
    from scipy.spatial.distance import cdist

    among = cdist(real, real)
    np.fill_diagonal(among, np.inf)
    own = _to_nearest(among)
    usual = float(np.median(own))
    if usual == 0:
        return np.ones(len(real)), np.ones(len(synthetic))
    return own / usual, _to_nearest(cdist(synthetic, real)) / usual


def _to_nearest(distances: np.ndarray) -> np.ndarray:
    """Mean over the nearest few; of a volume's distance to itself, infinite, none is taken."""
    near = np.sort(distances, axis=1)[:, :COMPARED_NEIGHBOURS]
    held = np.isfinite(near)
    return np.where(held, near, 0).sum(axis=1) / np.maximum(held.sum(axis=1), 1)


def _frechet(kind: str, sets: Sets, seed: int) -> list[Metric]:
    estimate, at_hand = frechet_estimate(*sets, seed=seed), frechet(*sets)
    found = _shrunk(sets, at_hand.distance) if at_hand.notes else None
    shrunk = "" if found is None else f"; with both covariances shrunk (Ledoit and Wolf 2004) {found.value:.6g}"
    published = f"Of the volumes at hand, as it is published elsewhere, it is {at_hand.distance:.6g}{shrunk}."
    estimate = _with_notes(estimate, *at_hand.notes, published)
    title = f"Fréchet distance, {kind}"
    metric = _beside_floor(f"frechet_{kind}", title, LOWER, estimate, frechet_distance, sets, seed)
    return [replace(metric, shrunk=found)]


def _shrunk(sets: Sets, at_hand: float) -> Shrunk:
    found = frechet(*sets, shrinkage=True)
    assert found.shrinkage is not None
    return Shrunk(found.distance, at_hand, *found.shrinkage)


def _kid(kind: str, sets: Sets, seed: int) -> list[Metric]:
    def distance(real: np.ndarray, synthetic: np.ndarray) -> float:
        return kid_estimate(real, synthetic).value

    title = f"Kernel distance (unbiased MMD²), {kind}"
    return [_beside_floor(f"kid_{kind}", title, LOWER, kid_estimate(*sets), distance, sets, seed)]


def _prdit(kind: str, sets: Sets, seed: int) -> list[Metric]:
    estimate = Estimate(
        mmd_prdit(*sets),
        None,
        None,
        method="biased MMD² with an RBF kernel, its bandwidth from the median distance of real pairs, as PRDiT has it",
        notes=("It is biased and falls with the number of volumes: compare it with its floor. No interval.",),
    )
    return [_beside_floor(f"mmd_prdit_{kind}", f"MMD² as in PRDiT, {kind}", LOWER, estimate, mmd_prdit, sets, seed)]


def _coverage(kind: str, sets: Sets, seed: int) -> list[Metric]:
    estimates = coverage_estimates(*sets)
    remembered = _remembering(coverage_metrics)
    metrics = []
    for name, better in SHARES.items():

        def share(real: np.ndarray, synthetic: np.ndarray, name: str = name) -> float:
            return float(getattr(remembered(real, synthetic), name))

        title = f"{name.capitalize()} ({NEIGHBOURS} neighbours), {kind}"
        estimate = getattr(estimates, name)
        metrics.append(_beside_floor(f"{name}_{kind}", title, better, estimate, share, sets, seed))
    return metrics


def _critic(kind: str, sets: Sets, seed: int) -> list[Metric]:
    from cardiodit.evaluation.critic import critic_distance

    seeds = range(seed, seed + CRITIC_SEEDS)

    def distance(real: np.ndarray, synthetic: np.ndarray) -> float:
        return critic_distance(real, synthetic, seeds=seeds).value

    title = f"Wasserstein distance by a critic, {kind}"
    estimate = critic_distance(*sets, seeds=seeds)
    return [_beside_floor(f"critic_{kind}", title, LOWER, estimate, distance, sets, seed, CRITIC_REPEATS)]


def _beside_floor(
    name: str,
    title: str,
    better: str,
    estimate: Estimate,
    distance: Distance,
    sets: Sets,
    seed: int,
    repeats: int = REPEATS,
) -> Metric:
    """The metric, with its floor where there are real volumes enough to be halved."""
    try:
        floor = Floor.of(beside_floor(distance, *sets, seed=seed, repeats=repeats))
    except CardioDiTError as error:
        return Metric(name, title, DISTRIBUTION, better, _with_notes(estimate, f"No floor: {error}"))
    if floor.high is None:
        reason = f"The floor is the mean of {repeats} draws, too few for a range: nothing is judged by it."
        estimate = _with_notes(estimate, reason)
    return Metric(name, title, DISTRIBUTION, better, estimate, floor)


def _with_notes(estimate: Estimate, *notes: str) -> Estimate:
    return replace(estimate, notes=(*estimate.notes, *notes))


def _remembering(metric: Callable[[np.ndarray, np.ndarray], Coverage]) -> Callable[[np.ndarray, np.ndarray], Coverage]:
    """Four shares are asked for one by one, each at the same draws."""
    seen: dict[bytes, Coverage] = {}

    def ask(real: np.ndarray, synthetic: np.ndarray) -> Coverage:
        key = hashlib.sha256(real.tobytes() + synthetic.tobytes()).digest()
        if key not in seen:
            seen[key] = metric(real, synthetic)
        return seen[key]

    return ask


_MAKERS: dict[str, Callable[[str, Sets, int], list[Metric]]] = {
    "Fréchet distance": _frechet,
    "Kernel distance": _kid,
    "MMD": _prdit,
    "Precision, recall, density and coverage": _coverage,
    CRITIC: _critic,
}
