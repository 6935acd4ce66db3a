"""The whole evaluation of one set of generated volumes: from two sets to one report."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import (
    Facts,
    check_agreement,
    look,
    notes_on_contrast,
    notes_on_voxel_sizes,
    unlike_most,
)
from cardiodit.evaluation.consistency import FEWEST_FRAMES
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, EvaluatorConfig, Instruments, open_instruments
from cardiodit.evaluation.gallery import media_of
from cardiodit.evaluation.loading import is_whole_beat
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import Side
from cardiodit.evaluation.real_preprocessing import settle_preprocessing
from cardiodit.evaluation.report import write_report, write_text
from cardiodit.evaluation.report.markdown import model_index_yaml, table
from cardiodit.evaluation.report_builder import compose
from cardiodit.evaluation.request import MEASURED, Request
from cardiodit.evaluation.sets import REAL, SYNTHETIC, Item, Problem, VolumeSet, open_real, open_synthetic
from cardiodit.evaluation.workers import Workers, measure_all
from cardiodit.imaging.preprocessing import Preprocessing

REPORT, PAGE, TABLE, MODEL_INDEX = "report.json", "report.html", "table.md", "model-index.yaml"
FEWEST = 2
NAMED = 8  # problems in an error


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


def evaluate(request: Request) -> Evaluation:
    """Writes the report in all its forms."""
    _check(request)
    real, synthetic = (
        volumes.drawn(request.max_volumes, request.seed)
        for volumes in (open_real(request.real), open_synthetic(request.synthetic))
    )
    steps = settle_preprocessing(synthetic, request.model, request.preprocessing, request.depth)
    seen = _look_at_both(real, synthetic, steps)
    recipe, left_out = _recipe(request, real, synthetic, is_cine=len(seen[0].size) == 4)
    if recipe.is_cine:
        left_out += _short_or_repeated(steps, frames=seen[0].size[3])
    if any(source for _, source in recipe.labels):
        _check_voxel_sizes(*seen)
    instruments = open_instruments(recipe)
    if instruments.vae is not None:
        real = replace(real, notes=[*real.notes, *_notes_on_vae(instruments, steps)])
    request.output_dir.mkdir(parents=True, exist_ok=True)
    with Workers(request.processes) as workers:
        sides = _measure(request, real, synthetic, steps, recipe, workers)
        check_agreement(sides[0].facts, sides[1].facts)
        left_out += [reason for side in sides for reason in _without_a_curve(side)]
        report = compose(request, sides, steps, recipe, instruments, left_out, workers)
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


def _short_or_repeated(steps: Preprocessing, frames: int) -> list[str]:
    """What cannot be told of cines that are too short, or no one beat."""
    reasons = []
    if frames < FEWEST_FRAMES:
        reasons.append(f"Consistency: it needs {FEWEST_FRAMES} frames, and these cines have {frames}.")
    if not is_whole_beat(steps):
        reasons.append(
            "Peak rates, the gaps between last and first frame (of frames and of labels) and the rule that a beat "
            f"closes: by the preprocessing, beats are repeated and cut to fill {frames} frames, so that these cines "
            "are no whole beats, and how long a beat of a sample is nobody knows."
        )
    return reasons


def _without_a_curve(side: Side) -> list[str]:
    """What is not known of hearts that are labelled at end-diastole and end-systole alone."""
    count = sum("lv_edv_ml" in measured.numbers and not measured.curves for measured in side.measured)
    if not count:
        return []
    return [
        f"Volume curves, peak rates, plausibility and what consistency measures of labels: {count} of the "
        f"{len(side.measured)} {side.volumes.name} volumes are labelled at end-diastole and end-systole alone."
    ]


def _notes_on_vae(instruments: Instruments, steps: Preprocessing) -> list[str]:
    from cardiodit.evaluation.reconstruction import check_preparation

    note = check_preparation(instruments.vae, steps)
    return [] if note is None else [note]


def _check_voxel_sizes(real: Facts, synthetic: Facts) -> None:
    for name, facts in ((REAL, real), (SYNTHETIC, synthetic)):
        if facts.spacing is None:
            raise CardioDiTError(
                f"The voxel size of the {name} volumes is unknown, so that no volume in mL can be measured in them. "
                "Put it into the headers of their files (a converted model learns it by `cardiodit convert ... "
                "--spacing`), or leave --segmenter and the masks out."
            )


def _recipe(
    request: Request, real: VolumeSet, synthetic: VolumeSet, is_cine: bool
) -> tuple[EvaluatorConfig, list[str]]:
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
        raise CardioDiTError(
            "--real_masks: the manifest of the real volumes has no column mask with a path in it, and no ed_mask and "
            "es_mask."
        )
    if request.reconstructions and is_cine and not request.segmenter:
        left_out.append(
            "Heart function of reconstructions: nothing but a segmenter (--segmenter) finds the heart in them."
        )
    recipe = EvaluatorConfig(
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
    request: Request,
    real: VolumeSet,
    synthetic: VolumeSet,
    steps: Preprocessing,
    recipe: EvaluatorConfig,
    workers: Workers,
) -> list[Side]:
    items = [*real.items, *synthetic.items]
    found = list(measure_all(items, steps, recipe, request.output_dir / MEASURED, workers))
    if kept := sum(isinstance(result, Measured) and result.was_kept for result in found):
        print(f"Goes on: {kept} of {len(items)} volumes were measured by an earlier run.", file=sys.stderr)
    sides = []
    for volumes in (real, synthetic):
        pairs = [(item, result) for item, result in zip(items, found, strict=True) if item.set == volumes.name]
        sides.append(_side(volumes, pairs))
    facts = [[measured.facts for measured in side.measured] for side in sides]
    contrast = notes_on_contrast(sides[0].facts, sides[1].facts)
    notes = [*sides[1].volumes.notes, *notes_on_voxel_sizes(*facts), *contrast]
    return [sides[0], replace(sides[1], volumes=replace(sides[1].volumes, notes=notes))]


def _side(volumes: VolumeSet, pairs: Sequence[tuple[Item, Measured | Problem]]) -> Side:
    """The volumes of a set that are of one kind; the others are problems."""
    problems = [*volumes.problems, *(result for _, result in pairs if isinstance(result, Problem))]
    held = [(item, result) for item, result in pairs if isinstance(result, Measured)]
    if len(held) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(held), problems))
    reasons = unlike_most([item for item, _ in held], [measured.facts for _, measured in held])
    items, kept = [], []
    for (item, measured), reason in zip(held, reasons, strict=True):
        if reason is not None:
            problems.append(Problem(volumes.name, item.image.name, reason))
            continue
        items.append(item)
        kept.append(measured)
    if len(items) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(items), problems))
    return Side(volumes, items, kept, problems)


def _too_few(volumes: VolumeSet, count: int, problems: Sequence[Problem]) -> str:
    named = "".join(f"\n  - {problem.file}: {problem.problem}" for problem in problems[:NAMED])
    more = f"\n  - and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return (
        f"An evaluation needs at least {FEWEST} {volumes.name} volumes, and there {'is' if count == 1 else 'are'} "
        f"{count}{' that can be used:' if named else '.'}{named}{more}"
    )


def _write(folder: Path, report: dict[str, Any], sides: list[Side], steps: Preprocessing) -> list[Path]:
    write_report(report, folder / REPORT)
    write_text(table(report), folder / TABLE)
    write_text(model_index_yaml(report), folder / MODEL_INDEX)
    from cardiodit.evaluation.report.page import write_page

    write_page(report, media_of(report, sides, steps), folder / PAGE)
    return [folder / name for name in (REPORT, TABLE, MODEL_INDEX, PAGE)]
