"""The report of two measured sets: every score, every number, and what was left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit.evaluation.diversity_scores import SimilarityInput, diversity_scores, in_order_of_content
from cardiodit.evaluation.evaluators import EvaluatorConfig, Instruments
from cardiodit.evaluation.feature_scores import Tell, feature_scores, names_of_scores, typicality
from cardiodit.evaluation.loading import is_whole_beat
from cardiodit.evaluation.measured_set import Side
from cardiodit.evaluation.metric import GROUPS, Metric
from cardiodit.evaluation.number_scores import number_scores, plausibility_scores, reconstruction_scores
from cardiodit.evaluation.quantities import CURVE_TITLES
from cardiodit.evaluation.report import SCHEMA, rounded
from cardiodit.evaluation.request import MEASURED, Request
from cardiodit.evaluation.threads import one_thread
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.preprocessing import Preprocessing, without_typical

OTHER_SCORES = ("MS-SSIM", "numbers of single hearts")  # beside those on features


def compose(
    request: Request,
    sides: list[Side],
    steps: Preprocessing,
    recipe: EvaluatorConfig,
    instruments: Instruments,
    left_out: list[str],
    workers: Workers,
) -> dict[str, Any]:
    real, synthetic = sides
    stages = len(instruments.networks) * len(names_of_scores(request.critic)) + len(OTHER_SCORES)
    with one_thread(), _progress(stages) as tell:
        metrics, distributions, missing = _scores(request, sides, steps, instruments, workers, tell)
    metrics.sort(key=lambda metric: GROUPS.index(metric.group))  # stable
    described = instruments.describe()
    report = {
        "schema": SCHEMA,
        "protocol": {
            "cardiodit": __version__,
            "preprocessing": without_typical(steps).to_dict(),
            **described,
            "labels": dict(recipe.labels),
            "critic": request.critic,
            "seed": request.seed,
            "counts": {side.volumes.name: len(side.items) for side in sides},
            "left_out": [*left_out, *instruments.left_out, *missing],
            "notes": [*real.volumes.notes, *synthetic.volumes.notes, *_copies(real, synthetic)],
        },
        "sets": {side.volumes.name: _set(side) for side in sides},
        "metrics": [metric.to_dict() for metric in metrics],
        "distributions": distributions,
        "curves": _curves(real, synthetic, is_whole_beat(steps)),
        "volumes": _volumes(real, synthetic, instruments),
        "problems": [problem.to_dict() for side in sides for problem in side.problems],
    }
    return rounded(report)


@contextmanager
def _progress(stages: int) -> Iterator[Tell]:
    """A bar on a terminal: of a thousand volumes, scores take minutes after all is measured."""
    from tqdm import tqdm

    with tqdm(total=stages, desc="Scoring", unit="score", disable=None) as bar:

        def tell(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()
            bar.refresh()

        yield tell


def _scores(
    request: Request, sides: list[Side], steps: Preprocessing, instruments: Instruments, workers: Workers, tell: Tell
) -> tuple[list[Metric], list[dict[str, Any]], list[str]]:
    real, synthetic = sides
    similarity, numbers = OTHER_SCORES
    metrics: list[Metric] = []
    left_out: list[str] = []
    for kind in instruments.networks:
        found, missing = feature_scores(
            kind, real.rows(kind), synthetic.rows(kind), seed=request.seed, critic=request.critic, tell=tell
        )
        metrics += found
        left_out += missing
    alike = [
        SimilarityInput(
            *in_order_of_content(side.items, [measured.content for measured in side.measured]),
            steps,
            request.seed,
            request.output_dir / MEASURED,
        )
        for side in sides
    ]
    tell(similarity)
    found, missing = diversity_scores(alike[0], alike[1], workers)
    metrics += found
    left_out += missing
    tell(numbers)
    found, distributions, missing = number_scores(real.by_content, synthetic.by_content, seed=request.seed)
    metrics += found
    left_out += missing
    metrics += plausibility_scores(real.measured, synthetic.measured)
    metrics += reconstruction_scores(real.by_content)
    return metrics, distributions, left_out


def _set(side: Side) -> dict[str, Any]:
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


def _curves(real: Side, synthetic: Side, closes: bool) -> list[dict[str, Any]]:
    """In the order of the volumes, of whom each has a frame time of its own."""
    return [
        {
            "name": name,
            "title": title,
            "unit": "mL",
            "is_one_beat": closes,
            "real": [measured.curves[name] for measured in real.measured],
            "synthetic": [measured.curves[name] for measured in synthetic.measured],
        }
        for name, title in CURVE_TITLES.items()
        if all(name in measured.curves for measured in (*real.measured, *synthetic.measured))
    ]


def _volumes(real: Side, synthetic: Side, instruments: Instruments) -> list[dict[str, Any]]:
    """Every volume with its numbers, the real ones first."""
    unusual = _typicalities(real, synthetic, instruments)
    return [
        {
            "id": f"{side.volumes.name}/{item.id}",
            "set": side.volumes.name,
            "content": measured.content,
            "spacing_mm": measured.facts.spacing,
            "frame_time_s": measured.facts.frame_time,
            "numbers": measured.numbers,
            "plausible": measured.plausible,
            "typicality": float(value),
        }
        for side, values in zip((real, synthetic), unusual, strict=True)
        for item, measured, value in zip(side.items, side.measured, values, strict=True)
    ]


def _typicalities(real: Side, synthetic: Side, instruments: Instruments) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the kinds of features; in the order of the items."""
    kinds = [
        typicality(*(np.stack([measured.features[kind] for measured in side.measured]) for side in (real, synthetic)))
        for kind in instruments.networks
    ]
    return np.mean([own for own, _ in kinds], axis=0), np.mean([others for _, others in kinds], axis=0)


def _copies(real: Side, synthetic: Side) -> list[str]:
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
