"""The registry of metrics: their names and titles, their order in every report, and the functions that compute them.

A metric is one function under `@metric`, in a file of this folder or in a user's own module (`--metric module:name`):

    @metric("mean_intensity", "Difference of mean intensities", group="distribution", better="lower")
    def mean_intensity(scoring: Scoring) -> float:
        real, synthetic = (np.mean([volume.mean() for volume in scoring.voxels(name)]) for name in SETS)
        return abs(real - synthetic)

It then appears in report.json, table.md, model-index.yaml, the page and the model card.
"""

import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import REPEATS, Distance, Estimate, Floor, floor_of
from cardiodit.evaluation.user_code import hash_of_sources, load_own
from cardiodit.evaluation.volume_sets import REAL, SYNTHETIC, load
from cardiodit.imaging.preprocessing import Preprocessing

if TYPE_CHECKING:
    from cardiodit.evaluation.measured_set import MeasuredSet
    from cardiodit.evaluation.workers import Workers

LOWER, HIGHER, NEAR_REAL = "lower", "higher", "near real"  # which values are better
DISTRIBUTION, DIVERSITY, COPIES, FUNCTION = "distribution", "diversity", "copies", "function"
TIMING, ORIENTATION = "timing", "orientation"
PLAUSIBILITY, CONSISTENCY, RECONSTRUCTION = "plausibility", "consistency", "reconstruction"
ANATOMY = "anatomy"
GROUPS = {  # titles, in the order of every report
    DISTRIBUTION: "Distribution",
    DIVERSITY: "Diversity",
    COPIES: "Copies of training volumes",
    FUNCTION: "Cardiac function",
    TIMING: "Timing of the beat",
    ORIENTATION: "Orientation and contrast",
    ANATOMY: "Anatomy of CT",
    PLAUSIBILITY: "Plausibility",
    CONSISTENCY: "Consistency",
    RECONSTRUCTION: "Reconstruction",
}
SPATIAL, SPATIOTEMPORAL = "spatial", "spatiotemporal"  # kinds of features
SETS = (REAL, SYNTHETIC)
LAST = 1000  # place of a metric that does not name one
DRAWS = 5  # choices of one volume per subject, where subjects have several

Bounds = tuple[float | None, float | None]
ANY: Bounds = (None, None)
SHARE: Bounds = (0, 1)
NOT_NEGATIVE: Bounds = (0, None)

Compute = Callable[[Any], Any]
Function = TypeVar("Function", bound=Compute)


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Args:
        name: key in `report.json`.
        title: name in tables and on the page.
        group: a key of `GROUPS`.
        better: "lower", "higher" or "near real".
        unit: of the value; empty for none.
        features: kind of features that it is computed on; None for a metric that takes the whole `Scoring`.
        place: position within its group.
        label: what it is called where it is left out; metrics that share a label are left out together.
        option: setting that switches it on, such as "critic"; empty for a metric that is always computed.
        bounds: smallest and largest value that the metric can have; values, intervals and floors are kept within.
        former: key under which earlier versions reported it, which `report.json` still contains.
        compute: takes `Features` or `Scoring`; returns a number, an `Estimate`, a `Result`, or None if the metric does
            not apply to these volumes. A `CardioDiTError` leaves the metric out and says why in the report.
    """

    name: str
    title: str
    group: str
    better: str
    unit: str
    features: str | None
    place: int
    label: str
    option: str
    bounds: Bounds
    former: str
    compute: Compute

    @property
    def is_own(self) -> bool:
        """True for a user's own metric."""
        return not _module_of(self.compute).startswith(f"{__package__}.")


@dataclass(frozen=True)
class Shrunk:
    """A Fréchet distance with singular covariances, recomputed with both shrunk (Ledoit and Wolf 2004).

    Args:
        value: with shrinkage.
        at_hand: of the same volumes without shrinkage.
        real, synthetic: shrinkage intensities, from 0 to 1.
    """

    value: float
    at_hand: float
    real: float
    synthetic: float


@dataclass(frozen=True)
class Result:
    """The result of a metric.

    Args:
        distribution: for a number of single hearts, its values in both sets, as listed under `distributions`.
        p_value: of a test that both sets have one distribution; a metric outside of its floor is judged by it, too.
    """

    estimate: Estimate
    floor: Floor | None = None
    shrunk: Shrunk | None = None
    distribution: dict[str, Any] | None = None
    p_value: float | None = None

    def with_notes(self, *notes: str) -> "Result":
        return replace(self, estimate=replace(self.estimate, notes=(*self.estimate.notes, *notes)))


@dataclass(frozen=True)
class Features:
    """One kind of features of both sets, `(n, f)` and `(m, f)`, each in an order that does not depend on file names."""

    kind: str
    real: np.ndarray
    synthetic: np.ndarray
    seed: int = 0
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, function: Callable[[np.ndarray, np.ndarray], Any]) -> Any:
        """Return `function(real, synthetic)`, computed once for all metrics that share it."""
        if function not in self._memory:
            self._memory[function] = function(self.real, self.synthetic)
        return self._memory[function]

    def beside_floor(self, estimate: Estimate, distance: Distance, repeats: int = REPEATS) -> Result:
        """Return the estimate with the floor of the same distance, if there are enough real volumes to be halved."""
        result = Result(estimate)
        try:
            floor = floor_of(distance, self.real, self.synthetic, seed=self.seed, repeats=repeats)
        except CardioDiTError as error:
            return result.with_notes(f"No floor: {error}")
        if floor.high is None:
            reason = f"The floor is the mean of {repeats} draws, too few for a range: nothing is judged by it."
            result = result.with_notes(reason)
        return replace(result, floor=floor)


@dataclass(frozen=True)
class Scoring:
    """Everything that a metric may use.

    Args:
        real, synthetic: the measured sets.
        preprocessing: of the real volumes.
        cache: folder for intermediate results.
        training: the volumes that the model was trained on, if they were given.
    """

    real: "MeasuredSet"
    synthetic: "MeasuredSet"
    preprocessing: Preprocessing
    seed: int
    workers: "Workers"
    cache: Path
    training: "MeasuredSet | None" = None

    @property
    def sets(self) -> tuple["MeasuredSet", "MeasuredSet"]:
        return self.real, self.synthetic

    def draws(self) -> list["Scoring"]:
        """Return several choices of one volume per subject; this scoring itself if no subject has several volumes."""
        if not any(side.has_repeated_subjects for side in self.sets):
            return [self]
        chosen = []
        for draw in range(DRAWS):
            rng = np.random.default_rng([self.seed, draw])
            real, synthetic = (side.one_per_subject(rng) if side.has_repeated_subjects else side for side in self.sets)
            chosen.append(replace(self, real=real, synthetic=synthetic))
        return chosen

    def features(self, kind: str) -> Features | None:
        """Return the features of one kind; None if these volumes do not have them."""
        if not all(kind in measured.features for side in self.sets for measured in side.measured):
            return None
        return Features(kind, self.real.rows(kind), self.synthetic.rows(kind), self.seed)

    def numbers(self, name: str) -> tuple[list[float], list[float]]:
        """Return the known values of one number of single volumes, such as `lv_ef_percent`, in both sets."""
        return self.real.known(name), self.synthetic.known(name)

    def voxels(self, name: str) -> Iterator[np.ndarray]:
        """Load the volumes of the "real" or "synthetic" set one by one, in [-1, 1]."""
        measured_set = {REAL: self.real, SYNTHETIC: self.synthetic}[name]
        return (load(item, self.preprocessing).volume.voxels for item in measured_set.items_by_content)


@dataclass(frozen=True)
class Score:
    """A computed metric: one line of the report."""

    metric: Metric
    result: Result

    def to_dict(self) -> dict[str, Any]:
        metric, estimate = self.metric, self.result.estimate
        floor, shrunk = self.result.floor, self.result.shrunk
        return {
            "name": metric.name,
            "title": metric.title,
            "group": metric.group,
            "better": metric.better,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "level": estimate.level,
            "method": estimate.method,
            "notes": list(estimate.notes),
            "floor": None if floor is None else asdict(floor),
            "unit": metric.unit,
            "shrunk": None if shrunk is None else asdict(shrunk),
            "p_value": self.result.p_value,
        }

    def under_former_name(self) -> dict[str, Any]:
        """Return the line once more under the key of earlier versions, marked by `renamed`."""
        kind = f"_{self.metric.features}" if self.metric.features else ""
        return {**self.to_dict(), "name": f"{self.metric.former}{kind}", "renamed": self.metric.name}


_REGISTERED: list[Metric] = []


def metric(
    name: str,
    title: str,
    *,
    group: str,
    better: str,
    unit: str = "",
    on_features: bool = False,
    place: int = LAST,
    label: str = "",
    option: str = "",
    bounds: Bounds = ANY,
    former: str = "",
) -> Callable[[Function], Function]:
    """Register a function as a metric; the arguments are those of `Metric`.

    A family of metrics is a loop over this decorator. With `on_features`, the function takes `Features` and becomes one
    metric for each kind of features, `name_spatial` and `name_spatiotemporal`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise CardioDiTError(f'Metric name "{name}": only lower-case letters, digits and underscores are allowed.')
    for what, value, allowed in (("group", group, GROUPS), ("better", better, (LOWER, HIGHER, NEAR_REAL))):
        if value not in allowed:
            raise CardioDiTError(f'Metric {name}: {what}="{value}" is unknown; choose one of {", ".join(allowed)}.')
    if not title.strip():
        raise CardioDiTError(f"Metric {name}: the title is empty.")

    def register(function: Function) -> Function:
        for kind in (SPATIAL, SPATIOTEMPORAL) if on_features else (None,):
            end, ending = (f"_{kind}", f", {kind}") if kind else ("", "")
            record = Metric(
                name=f"{name}{end}",
                title=f"{title}{ending}",
                group=group,
                better=better,
                unit=unit,
                features=kind,
                place=place,
                label=f"{label or title}{ending}",
                option=option,
                bounds=bounds,
                former=former,
                compute=function,
            )
            _REGISTERED.append(record)
        return function

    return register


def built_in_metrics() -> list[Metric]:
    """Return the metrics of this folder in the order of reports: by group, then kind of features, then place."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        importlib.import_module(module.name)

    def position(each: Metric) -> tuple[int, int, int]:
        kinds = (SPATIAL, SPATIOTEMPORAL, None)
        return list(GROUPS).index(each.group), kinds.index(each.features), each.place

    return sorted((each for each in _REGISTERED if not each.is_own), key=position)


def choose_metrics(own: Sequence[str | Compute] = (), options: Sequence[str] = ()) -> list[Metric]:
    """Return the metrics of an evaluation: the built-in ones, then the user's own, each at the end of its group.

    Args:
        own: functions under `@metric`, or where to find them: `module:name` or `file.py:name`.
        options: the settings that are on, of those that switch on a metric.
    """
    chosen = [each for each in built_in_metrics() if each.option in ("", *options)]
    for target in own:
        function = load_own(target, "a metric")[1] if isinstance(target, str) else target
        records = [each for each in _REGISTERED if each.compute is function]
        if not records:
            raise CardioDiTError(
                f"{target} is not a metric: put `@metric(name, title, group=…, better=…)` of "
                "cardiodit.evaluation.metrics above the function."
            )
        for record in records:
            if record.name in {each.name for each in chosen}:
                raise CardioDiTError(f'Metric {target}: the name "{record.name}" is taken; choose another one.')
            chosen.append(record)
    return sorted(chosen, key=lambda each: list(GROUPS).index(each.group))  # stable


def compute_by_subject(metrics: Sequence[Metric], scoring: Scoring) -> tuple[list[Score], list[str]]:
    """Compute all metrics on independent volumes: one of each subject, averaged over several choices of these.

    Averaging estimates over such choices is within-cluster resampling (Hoffman, Sen and Weinberg 2001). Halves of the
    real set never share a subject, and intervals count subjects.
    """
    runs = [compute_metrics(metrics, draw) for draw in scoring.draws()]
    scores, left_out = runs[0]
    if len(runs) == 1:
        return scores, left_out
    found = [{score.metric.name: score.result for score in run} for run, _ in runs]
    for _, reasons in runs[1:]:
        left_out += [reason for reason in reasons if reason not in left_out]
    in_all = [score for score in scores if all(score.metric.name in run for run in found)]
    return [Score(each.metric, _mean_result([run[each.metric.name] for run in found])) for each in in_all], left_out


def _mean_result(results: Sequence[Result]) -> Result:
    """Average the numbers of several results; texts, and the values of single volumes, are those of the first."""
    first = results[0]
    note = f"Mean over {len(results)} random choices of one volume per subject."
    floors = [result.floor for result in results]
    distribution = first.distribution
    if distribution is not None:
        compared = [result.distribution["comparison"] for result in results if result.distribution]
        distribution = {**distribution, "comparison": _mean(compared)}
    mean = Result(
        Estimate(**_mean([vars(result.estimate) for result in results])),
        None if None in floors else Floor(**_mean([vars(floor) for floor in floors])),
        None if first.shrunk is None else Shrunk(**_mean([vars(each.shrunk) for each in results if each.shrunk])),
        distribution,
        _mean([result.p_value for result in results]),
    )
    return mean.with_notes(note)


def _mean(values: Sequence[Any]) -> Any:
    """Average floats within equal structures; None where one is unknown; anything else is that of the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _mean([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean(items) for items in zip(*values, strict=True)]
    if any(value is None for value in values):
        return None
    return float(np.mean(values)) if isinstance(first, float) else first


def compute_metrics(metrics: Sequence[Metric], scoring: Scoring) -> tuple[list[Score], list[str]]:
    """Compute all metrics, and return their scores and one sentence for each reason why some were left out."""
    scores: list[Score] = []
    left_out: dict[str, dict[str, None]] = {}  # labels in their order, by the reason
    features: dict[str, Features | None] = {}
    with progress(metrics, "Scoring", "score") as bar:
        for each in bar:
            bar.set_postfix_str(each.title)
            given: Features | Scoring | None = scoring
            if each.features is not None:
                if each.features not in features:
                    features = {each.features: scoring.features(each.features)}  # one kind in memory at a time
                given = features[each.features]
            if given is None:
                continue
            try:
                result = _compute(each, given)
            except CardioDiTError as error:
                left_out.setdefault(str(error), {})[each.label] = None
                continue
            if result is not None:
                scores.append(Score(each, result))
    return scores, [f"{'; '.join(labels)}: {reason}" for reason, labels in left_out.items()]


def _compute(each: Metric, given: Features | Scoring) -> Result | None:
    try:
        found = each.compute(given)
    except CardioDiTError:
        raise
    except Exception as error:
        if not each.is_own:
            raise
        raise CardioDiTError(f"The metric failed: {type(error).__name__}: {error}") from error
    if isinstance(found, int | float | np.floating):
        found = Estimate(float(found))
    if isinstance(found, Estimate):
        found = Result(found)
    if isinstance(found, Result):
        return _within(found, each.bounds)
    if found is None:
        return None
    raise CardioDiTError(
        f"The metric returned {type(found).__name__}; expected a number, an Estimate, a Result or None."
    )


def _within(result: Result, bounds: Bounds) -> Result:
    """Keep a result within the metric's range, with a note if the estimate itself was outside."""
    low, high = (-math.inf if bounds[0] is None else bounds[0], math.inf if bounds[1] is None else bounds[1])

    def kept(value: float | None) -> float | None:
        return None if value is None else min(max(value, low), high)

    estimate, floor = result.estimate, result.floor
    ends: dict[str, Any] = {name: kept(getattr(estimate, name)) for name in ("value", "low", "high")}
    if not low <= estimate.value <= high and math.isfinite(estimate.value):
        note = (
            f"The estimate is {estimate.value:.4g}, outside of the metric's range, and is given as {ends['value']:g}."
        )
        estimate = replace(estimate, notes=(*estimate.notes, note))
    if floor is not None:
        reach: dict[str, Any] = {name: kept(getattr(floor, name)) for name in ("value", "low", "high", "matched")}
        floor = replace(floor, **reach)
    return replace(result, estimate=replace(estimate, **ends), floor=floor)


def sources_of(metrics: Sequence[Metric]) -> dict[str, str | None]:
    """Return the SHA-256 of the source files of the user's own metrics."""
    return {each.name: hash_of_sources(each.compute) for each in metrics if each.is_own}


def _module_of(function: Any) -> str:
    """Return the module of a function, or of the function inside a `functools.partial`."""
    return getattr(getattr(function, "func", function), "__module__", None) or ""
