"""The whole evaluation of one set of generated volumes: from two sets to one report."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.agreement import Facts, check_agreement, facts_of_set, look, unlike_most
from cardiodit.evaluation.consistency import FEWEST_FRAMES
from cardiodit.evaluation.diversity_scores import Alike, diversity_scores, in_order_of_content
from cardiodit.evaluation.feature_scores import feature_scores, typicality
from cardiodit.evaluation.features.inputs import Size
from cardiodit.evaluation.instruments import MASKS, SEGMENTER, Instruments, Recipe, open_instruments
from cardiodit.evaluation.loading import load
from cardiodit.evaluation.markdown import model_index_yaml, table
from cardiodit.evaluation.measuring import Measured
from cardiodit.evaluation.metric import GROUPS, Metric
from cardiodit.evaluation.number_scores import number_scores, plausibility_scores, reconstruction_scores
from cardiodit.evaluation.quantities import CURVE_TITLES
from cardiodit.evaluation.report import SCHEMA, rounded, write_report, write_text
from cardiodit.evaluation.running import Workers, measure_all
from cardiodit.evaluation.sets import REAL, SYNTHETIC, Item, Problem, VolumeSet, open_real, open_synthetic
from cardiodit.evaluation.settled import settle_preprocessing
from cardiodit.evaluation.threads import one_thread
from cardiodit.imaging.cache_files import without_typical
from cardiodit.imaging.preprocessing import Preprocessing

REPORT, PAGE, TABLE, MODEL_INDEX = "report.json", "report.html", "table.md", "model-index.yaml"
MEASURED = "measured"  # the folder of what is kept
FEWEST = 2
NAMED = 8  # problems in an error
SHOWN_SAMPLES, SHOWN_REAL = 4, 2  # best and as many worst ones that play on the page


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and with what.

    Args:
        real: manifest.
        synthetic: folder or manifest.
        output_dir: where reports go and what was measured is kept.
        model, preprocessing, depth: how real volumes are prepared (`settle_preprocessing`).
        features, weights, features_size: the feature network (`features.load_network`).
        segmenter: that labels both sets; None without.
        real_masks: take the manifest's masks for the real set all the same.
        reconstructions: a VQ model that real volumes are passed through.
        critic: also train critics.
        max_volumes: of each set, the first.
        processes: that measure; the report does not depend on it.
    """

    real: Path
    synthetic: Path
    output_dir: Path
    model: str | None = None
    preprocessing: str | None = None
    depth: int | None = None
    features: str = "random"
    weights: str | None = None
    features_size: Size | None = None
    segmenter: str | None = None
    real_masks: bool = False
    reconstructions: str | None = None
    critic: bool = False
    max_volumes: int | None = None
    seed: int = 0
    processes: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        report: as written.
        files: the report in its forms.
        kept: how many volumes an earlier run had measured.
    """

    report: dict[str, Any]
    files: list[Path]
    kept: int


@dataclass(frozen=True)
class _Side:
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


def evaluate(request: Request) -> Evaluation:
    """Writes the report in all its forms."""
    _check(request)
    real, synthetic = (
        volumes.first(request.max_volumes) for volumes in (open_real(request.real), open_synthetic(request.synthetic))
    )
    steps = settle_preprocessing(synthetic, request.model, request.preprocessing, request.depth)
    seen = _look_at_both(real, synthetic, steps)
    recipe, left_out = _recipe(request, real, synthetic, is_cine=len(seen[0].size) == 4)
    if recipe.is_cine and seen[0].size[3] < FEWEST_FRAMES:
        left_out.append(f"Consistency: it needs {FEWEST_FRAMES} frames, and these cines have {seen[0].size[3]}.")
    if any(source for _, source in recipe.labels):
        _check_voxel_sizes(*seen)
    instruments = open_instruments(recipe)
    request.output_dir.mkdir(parents=True, exist_ok=True)
    with Workers(request.processes) as workers:
        sides = _measure(request, real, synthetic, steps, recipe, workers)
        check_agreement(sides[0].facts, sides[1].facts)
        report = _report(request, sides, steps, recipe, instruments, left_out, workers)
    files = _write(request.output_dir, report, sides, steps)
    return Evaluation(report, files, sum(measured.was_kept for side in sides for measured in side.measured))


def _check(request: Request) -> None:
    for name in ("max_volumes", "depth", "processes"):
        value = getattr(request, name)
        least = FEWEST if name == "max_volumes" else 1
        if value is not None and value < least:
            raise CardioDiTError(f"{name}={value} must be at least {least}.")
    if request.seed < 0:
        raise CardioDiTError(f"seed={request.seed} must not be negative.")
    if request.processes > 1 and not request.device.startswith("cpu"):
        raise CardioDiTError(f"Several processes would share {request.device}; leave --processes out.")
    if request.output_dir.is_file():
        raise CardioDiTError(f"The output {request.output_dir} is a file; a folder was expected.")


def _look_at_both(real: VolumeSet, synthetic: VolumeSet, steps: Preprocessing) -> tuple[Facts, Facts]:
    """Before anything long: whether there is enough, and whether it can be compared."""
    seen = []
    for volumes in (real, synthetic):
        if len(volumes.items) < FEWEST:
            raise CardioDiTError(_too_few(volumes, len(volumes.items), volumes.problems))
        seen.append(look(volumes, steps))
    check_agreement(*seen)
    return seen[0], seen[1]


def _check_voxel_sizes(real: Facts, synthetic: Facts) -> None:
    for name, facts in ((REAL, real), (SYNTHETIC, synthetic)):
        if facts.spacing is None:
            raise CardioDiTError(
                f"The voxel size of the {name} volumes is unknown, so that no volume in mL can be measured in them. "
                "Put it into the headers of their files (a converted model learns it by `cardiodit convert ... "
                "--spacing`), or leave --segmenter and the masks out."
            )


def _recipe(request: Request, real: VolumeSet, synthetic: VolumeSet, is_cine: bool) -> tuple[Recipe, list[str]]:
    """What both sets are measured with, and what is left out for want of something."""
    left_out = []
    labels: dict[str, str | None] = {REAL: None, SYNTHETIC: None}
    if not is_cine:
        left_out.append(
            "Heart function, plausibility, consistency and spatiotemporal features: these volumes do not beat."
        )
    elif request.segmenter:
        labels = {REAL: MASKS if request.real_masks else SEGMENTER, SYNTHETIC: SEGMENTER}
    elif real.has_masks and synthetic.has_masks:
        labels = {REAL: MASKS, SYNTHETIC: MASKS}
    else:
        without = " and ".join(volumes.name for volumes in (real, synthetic) if not volumes.has_masks)
        left_out.append(
            "Heart function, plausibility and what consistency measures of labels: no segmenter was named "
            f"(--segmenter), and the {without} volumes have no masks."
        )
    if request.real_masks and not real.has_masks:
        raise CardioDiTError("--real_masks: the manifest of the real volumes has no column mask with a path in it.")
    recipe = Recipe(
        features=request.features,
        weights=request.weights,
        features_size=request.features_size,
        segmenter=request.segmenter if is_cine else None,
        labels=tuple(labels.items()),
        vae=request.reconstructions,
        is_cine=is_cine,
        device=request.device,
    )
    return recipe, left_out


def _measure(
    request: Request, real: VolumeSet, synthetic: VolumeSet, steps: Preprocessing, recipe: Recipe, workers: Workers
) -> list[_Side]:
    items = [*real.items, *synthetic.items]
    found = list(measure_all(items, steps, recipe, request.output_dir / MEASURED, workers))
    if kept := sum(isinstance(result, Measured) and result.was_kept for result in found):
        print(f"Goes on: {kept} of {len(items)} volumes were measured by an earlier run.", file=sys.stderr)
    sides = []
    for volumes in (real, synthetic):
        pairs = [(item, result) for item, result in zip(items, found, strict=True) if item.set == volumes.name]
        sides.append(_side(volumes, pairs))
    return sides


def _side(volumes: VolumeSet, pairs: Sequence[tuple[Item, Measured | Problem]]) -> _Side:
    """The volumes of a set that are of one size; the others are problems."""
    problems = [*volumes.problems, *(result for _, result in pairs if isinstance(result, Problem))]
    held = [(item, result) for item, result in pairs if isinstance(result, Measured)]
    if len(held) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(held), problems))
    usual = facts_of_set([measured.facts for _, measured in held])
    items, kept = [], []
    for item, measured in held:
        reason = unlike_most(item, measured.facts, usual)
        if reason is not None:
            problems.append(Problem(volumes.name, item.image.name, reason))
            continue
        items.append(item)
        kept.append(measured)
    if len(items) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(items), problems))
    return _Side(volumes, items, kept, problems)


def _too_few(volumes: VolumeSet, count: int, problems: Sequence[Problem]) -> str:
    named = "".join(f"\n  - {problem.file}: {problem.problem}" for problem in problems[:NAMED])
    more = f"\n  - and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return (
        f"An evaluation needs at least {FEWEST} {volumes.name} volumes, and there {'is' if count == 1 else 'are'} "
        f"{count}{' that can be used:' if named else '.'}{named}{more}"
    )


def _report(
    request: Request,
    sides: list[_Side],
    steps: Preprocessing,
    recipe: Recipe,
    instruments: Instruments,
    left_out: list[str],
    workers: Workers,
) -> dict[str, Any]:
    real, synthetic = sides
    with one_thread():
        metrics, distributions, missing = _scores(request, sides, steps, instruments, workers)
    metrics.sort(key=lambda metric: GROUPS.index(metric.group))  # stable
    described = instruments.describe()
    report = {
        "schema": SCHEMA,
        "protocol": {
            "cardiodit": __version__,
            "preprocessing": without_typical(steps).to_dict(),
            **described,
            "labels": dict(recipe.labels),
            "seed": request.seed,
            "counts": {side.volumes.name: len(side.items) for side in sides},
            "left_out": [*left_out, *instruments.left_out, *missing],
            "notes": [*real.volumes.notes, *synthetic.volumes.notes, *_copies(real, synthetic)],
        },
        "sets": {side.volumes.name: _set(side) for side in sides},
        "metrics": [metric.to_dict() for metric in metrics],
        "distributions": distributions,
        "curves": _curves(real, synthetic),
        "volumes": _volumes(real, synthetic, instruments),
        "problems": [problem.to_dict() for side in sides for problem in side.problems],
    }
    return rounded(report)


def _scores(
    request: Request, sides: list[_Side], steps: Preprocessing, instruments: Instruments, workers: Workers
) -> tuple[list[Metric], list[dict[str, Any]], list[str]]:
    real, synthetic = sides
    metrics: list[Metric] = []
    left_out: list[str] = []
    for kind in instruments.networks:
        found, missing = feature_scores(
            kind, real.rows(kind), synthetic.rows(kind), seed=request.seed, critic=request.critic
        )
        metrics += found
        left_out += missing
    alike = [
        Alike(
            *in_order_of_content(side.items, [measured.content for measured in side.measured]),
            steps,
            request.seed,
            request.output_dir / MEASURED,
        )
        for side in sides
    ]
    found, missing = diversity_scores(alike[0], alike[1], workers)
    metrics += found
    left_out += missing
    found, distributions, missing = number_scores(real.by_content, synthetic.by_content, seed=request.seed)
    metrics += found
    left_out += missing
    metrics += plausibility_scores(real.measured, synthetic.measured)
    metrics += reconstruction_scores(real.by_content)
    return metrics, distributions, left_out


def _set(side: _Side) -> dict[str, Any]:
    facts, volumes = side.facts, side.volumes
    told = {
        "count": len(side.items),
        "size": list(facts.size),
        "spacing_mm": None if facts.spacing is None else list(facts.spacing),
        "frame_time_s": facts.frame_time,
        "intensity": list(facts.intensity),
        "units": None if facts.units is None else list(facts.units),
        "identity": side.identity,
    }
    return {**told, "made_by": volumes.made_by} if volumes.made_by else told


def _curves(real: _Side, synthetic: _Side) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "title": title,
            "unit": "mL",
            "frame_time_s": synthetic.facts.frame_time or real.facts.frame_time,
            "real": [measured.curves[name] for measured in real.measured],
            "synthetic": [measured.curves[name] for measured in synthetic.measured],
        }
        for name, title in CURVE_TITLES.items()
        if all(name in measured.curves for measured in (*real.measured, *synthetic.measured))
    ]


def _volumes(real: _Side, synthetic: _Side, instruments: Instruments) -> list[dict[str, Any]]:
    """Every volume with its numbers, the real ones first."""
    unusual = _typicalities(real, synthetic, instruments)
    return [
        {
            "id": f"{side.volumes.name}/{item.id}",
            "set": side.volumes.name,
            "content": measured.content,
            "numbers": measured.numbers,
            "plausible": measured.plausible,
            "typicality": float(value),
        }
        for side, values in zip((real, synthetic), unusual, strict=True)
        for item, measured, value in zip(side.items, side.measured, values, strict=True)
    ]


def _typicalities(real: _Side, synthetic: _Side, instruments: Instruments) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the kinds of features; in the order of the items."""
    kinds = [
        typicality(*(np.stack([measured.features[kind] for measured in side.measured]) for side in (real, synthetic)))
        for kind in instruments.networks
    ]
    return np.mean([own for own, _ in kinds], axis=0), np.mean([others for _, others in kinds], axis=0)


def _copies(real: _Side, synthetic: _Side) -> list[str]:
    """Volumes that are equal voxel by voxel."""
    contents = [[measured.content for measured in side.measured] for side in (real, synthetic)]
    notes = [
        f"{len(held) - len(set(held))} of the {len(held)} {side.volumes.name} volumes are copies of others among them."
        for side, held in zip((real, synthetic), contents, strict=True)
        if len(set(held)) < len(held)
    ]
    if both := sum(content in set(contents[0]) for content in contents[1]):
        notes.append(f"{both} of the {len(contents[1])} synthetic volumes equal a real one voxel by voxel.")
    return notes


def _write(folder: Path, report: dict[str, Any], sides: list[_Side], steps: Preprocessing) -> list[Path]:
    write_report(report, folder / REPORT)
    write_text(table(report), folder / TABLE)
    write_text(model_index_yaml(report), folder / MODEL_INDEX)
    from cardiodit.evaluation.page import write_page

    write_page(report, media_of(report, sides, steps), folder / PAGE)
    return [folder / name for name in (REPORT, TABLE, MODEL_INDEX, PAGE)]


def media_of(
    report: dict[str, Any], sides: Sequence[_Side], steps: Preprocessing
) -> dict[str, Callable[[], np.ndarray]]:
    """Loads the volumes that play on the page: the most and the least typical samples, and some usual real ones."""
    items = {f"{side.volumes.name}/{item.id}": item for side in sides for item in side.items}
    by_set = {
        name: sorted(
            (volume for volume in report["volumes"] if volume["set"] == name),
            key=lambda volume: (volume["typicality"], volume["id"]),
        )
        for name in (REAL, SYNTHETIC)
    }
    samples, real = by_set[SYNTHETIC], by_set[REAL]
    half = min(SHOWN_SAMPLES, len(samples) // 2)
    chosen = [*real[len(real) // 2 :][:SHOWN_REAL], *samples[:half], *samples[len(samples) - half :]]
    return {volume["id"]: partial(_voxels, items[volume["id"]], steps) for volume in chosen}


def _voxels(item: Item, steps: Preprocessing) -> np.ndarray:
    return load(item, steps).volume.voxels
