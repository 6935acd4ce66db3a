"""The whole evaluation of a set of generated volumes: from two sets to one report, top to bottom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit._util.terminal import say
from cardiodit.energy import EnergyMeter
from cardiodit.energy.electricity import Footprint, choose_electricity, footprint_of
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import (
    VolumeStats,
    check_agreement,
    find_outliers,
    inspect,
    notes_on_contrast,
    notes_on_voxel_sizes,
)
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, EvaluatorConfig, Evaluators, open_evaluators
from cardiodit.evaluation.features import Size
from cardiodit.evaluation.measure import Measured
from cardiodit.evaluation.measured_set import MeasuredSet
from cardiodit.evaluation.metrics.consistency import FEWEST_FRAMES
from cardiodit.evaluation.metrics.copies import distances_to_training
from cardiodit.evaluation.metrics.function import CURVES
from cardiodit.evaluation.metrics.orientation import notes_on_orientation
from cardiodit.evaluation.metrics.radiomics import RADIOMICS
from cardiodit.evaluation.metrics.registry import Compute, Scoring, choose_metrics, compute_by_subject, sources_of
from cardiodit.evaluation.report import SCHEMA, rounded, write_report, write_text
from cardiodit.evaluation.report.markdown import model_index_yaml, table
from cardiodit.evaluation.segmenters import labels_volumes
from cardiodit.evaluation.volume_sets import (
    REAL,
    SYNTHETIC,
    Item,
    Problem,
    VolumeSet,
    is_whole_beat,
    load,
    open_real,
    open_synthetic,
    open_training,
    settle_preprocessing,
    with_requested_masks,
)
from cardiodit.evaluation.workers import Workers, measure_all, one_thread
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.preprocessing import Preprocessing, without_typical

REPORT, PAGE, TABLE, MODEL_INDEX = "report.json", "report.html", "table.md", "model-index.yaml"
CACHE = "measured"  # folder of measurements, within the output folder
FEWEST = 2
NAMED = 8  # problems listed in an error
COMPARED_NEIGHBOURS = 3  # for a volume's typicality
SHOWN_SAMPLES, SHOWN_REAL = 4, 2  # volumes that play on the page: so many most and least typical samples, and real ones


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Args:
        real: manifest.
        synthetic: folder or manifest.
        training: manifest of the volumes that the model was trained on, to find copies of them; None to not look.
        output_dir: folder of the reports and of cached measurements.
        model, preprocessing, depth, spacing: preparation of the real volumes (`settle_preprocessing`).
        features, weights, features_size: feature network (`features.load_network`).
        segmenter: labels both sets; None for none.
        real_masks: use the manifest's masks for the real set even with a segmenter.
        reconstructions: VQ model through which real volumes are passed.
        masks: table of the masks that steered the samples, for their adherence to them.
        critic: also train critics.
        radiomics: also measure radiomics features, for the Fréchet radiomics distance of CT.
        metrics: the user's own metrics: functions under `@metric`, or `module:name` or `file.py:name`.
        max_volumes: random subset of this many volumes per set.
        processes: worker processes; does not change the report.
    """

    real: Path
    synthetic: Path
    output_dir: Path
    training: Path | None = None
    model: str | None = None
    preprocessing: str | None = None
    depth: int | None = None
    spacing: Triple | None = None
    features: str = "random"
    weights: str | None = None
    features_size: Size | None = None
    segmenter: str | None = None
    real_masks: bool = False
    reconstructions: str | None = None
    masks: Path | None = None
    critic: bool = False
    radiomics: bool = False
    metrics: Sequence[str | Compute] = ()
    max_volumes: int | None = None
    seed: int = 0
    processes: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Args:
        report: as written.
        files: all forms of the report.
        cached: number of volumes that an earlier run had measured.
    """

    report: dict[str, Any]
    files: list[Path]
    cached: int


def evaluate(settings: EvaluationSettings) -> Evaluation:
    """Compare generated volumes with real ones, and write the report in all its forms."""
    _check(settings)
    meter, began = EnergyMeter(settings.device), datetime.now(UTC)
    switched_on = [name for name in ("critic", RADIOMICS) if getattr(settings, name)]
    metrics = choose_metrics(settings.metrics, options=switched_on)
    real = open_real(settings.real).drawn(settings.max_volumes, settings.seed)
    synthetic = open_synthetic(settings.synthetic).drawn(settings.max_volumes, settings.seed)
    training = open_training(settings.training, real) if settings.training else None
    if settings.masks:
        real, synthetic = with_requested_masks(real, synthetic, settings.masks)
    chosen = settings.model, settings.preprocessing, settings.depth, settings.spacing
    steps = settle_preprocessing(synthetic, *chosen)

    # Before anything long: are there enough volumes, and can the two sets be compared?
    stats = [_inspect(volumes, steps) for volumes in (real, synthetic)]
    check_agreement(*stats)
    config, left_out = _configure(settings, real, synthetic, stats[0], steps)
    if any(source for _, source in config.labels):
        _require_voxel_sizes(stats)
    evaluators = open_evaluators(config)
    if evaluators.vae is not None:
        from cardiodit.evaluation.reconstruction import check_preparation

        note = check_preparation(evaluators.vae, steps)
        real = replace(real, notes=[*real.notes, *([note] if note else [])])

    settings.output_dir.mkdir(parents=True, exist_ok=True)
    with Workers(settings.processes) as workers:
        sets = _measure(settings, real, synthetic, steps, config, workers)
        check_agreement(sets[0].stats, sets[1].stats)
        learned = _measure_training(settings, training, sets[0], steps, config, workers) if training else None
        scoring = Scoring(sets[0], sets[1], steps, settings.seed, workers, settings.output_dir / CACHE, learned)
        with one_thread():
            scores, reasons = compute_by_subject(metrics, scoring)
    left_out += [*_without_curves(sets), *evaluators.left_out, *reasons]
    if learned is None:
        left_out.append("Copies of training volumes: no manifest of them was given (--training).")
    every_set = [*sets, learned] if learned else sets

    own = {"own_metrics": sources} if (sources := sources_of(metrics)) else {}
    report = rounded(
        {
            "schema": SCHEMA,
            "protocol": {
                "cardiodit": __version__,
                "preprocessing": without_typical(steps).to_dict(),
                **evaluators.describe(),
                "labels": dict(config.labels),
                "critic": settings.critic,
                "radiomics": settings.radiomics,
                **own,
                "seed": settings.seed,
                "counts": {side.volumes.name: len(side.items) for side in sets},
                "left_out": left_out,
                "training": learned and {"count": len(learned.items), "identity": learned.identity},
                "notes": [*(note for side in sets for note in side.volumes.notes), *_notes_on_copies(sets, learned)],
            },
            "sets": {side.volumes.name: _describe_set(side) for side in sets},
            "metrics": [
                *(score.to_dict() for score in scores),
                *(score.under_former_name() for score in scores if score.metric.former),
            ],
            "distributions": [score.result.distribution for score in scores if score.result.distribution],
            "curves": _curves(sets, is_whole_beat(steps)),
            "volumes": _volumes(sets, learned, evaluators),
            "problems": [problem.to_dict() for side in every_set for problem in side.problems],
        }
    )
    footprint = footprint_of(meter.read(), choose_electricity(), began)
    files = _write(settings.output_dir, report, sets, steps, footprint)
    return Evaluation(report, files, sum(measured.was_cached for side in sets for measured in side.measured))


def _check(settings: EvaluationSettings) -> None:
    for name in ("max_volumes", "depth", "processes"):
        value = getattr(settings, name)
        least = FEWEST if name == "max_volumes" else 1
        if value is not None and value < least:
            raise CardioDiTError(f"{name}={value} must be at least {least}.")
    if settings.seed < 0:
        raise CardioDiTError(f"seed={settings.seed} must not be negative.")
    if settings.processes > 1 and not settings.device.startswith("cpu"):
        raise CardioDiTError(f"Several processes would share {settings.device}; leave --processes out.")
    if settings.output_dir.is_file():
        raise CardioDiTError(f"The output {settings.output_dir} is a file; expected a folder.")


def _inspect(volumes: VolumeSet, steps: Preprocessing) -> VolumeStats:
    if len(volumes.items) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(volumes.items), volumes.problems))
    return inspect(volumes, steps)


def _configure(
    settings: EvaluationSettings, real: VolumeSet, synthetic: VolumeSet, stats: VolumeStats, steps: Preprocessing
) -> tuple[EvaluatorConfig, list[str]]:
    """Return what both sets are measured with, and what is left out for lack of something."""
    is_cine = len(stats.size) == 4
    segments_ct = not is_cine and settings.segmenter is not None and labels_volumes(settings.segmenter)
    left_out = []
    labels: dict[str, str | None] = {REAL: None, SYNTHETIC: None}
    if not is_cine:
        left_out.append(
            "Heart function, plausibility, consistency over time and spatiotemporal features: these volumes have no "
            "frames."
        )
        if not settings.segmenter:
            left_out.append("Volumes of anatomical structures: no segmenter was given (--segmenter).")
            if settings.masks:
                left_out.append("Adherence to masks: no segmenter was given (--segmenter).")
        elif not segments_ct:
            left_out.append(
                "Volumes of anatomical structures: the segmenter labels hearts. For CT, name a function with an "
                "attribute `structures`."
            )
    elif settings.segmenter:
        labels = {REAL: MASKS if settings.real_masks else SEGMENTER, SYNTHETIC: SEGMENTER}
    elif real.has_masks and synthetic.has_masks:
        labels = {REAL: MASKS, SYNTHETIC: MASKS}
    else:
        without = " and ".join(volumes.name for volumes in (real, synthetic) if not volumes.has_masks)
        left_out.append(
            "Heart function, plausibility and the consistency of labels: no segmenter was given (--segmenter), and "
            f"the {without} volumes have no masks."
        )
    if settings.masks and is_cine:
        left_out.append("Adherence to masks: it is measured in CT only.")
    if settings.radiomics and is_cine:
        left_out.append("Fréchet radiomics distance: it is measured in CT only.")
    if settings.real_masks and not real.has_masks:
        raise CardioDiTError(
            "--real_masks: the manifest of the real volumes has no column mask with a path in it, and no ed_mask and "
            "es_mask."
        )
    if settings.reconstructions and is_cine and not settings.segmenter:
        left_out.append("Heart function of reconstructions: it needs a segmenter (--segmenter).")
    if is_cine and stats.size[3] < FEWEST_FRAMES:
        left_out.append(f"Consistency: it needs {FEWEST_FRAMES} frames, and these cines have {stats.size[3]}.")
    if is_cine and not is_whole_beat(steps):
        left_out.append(
            "Peak rates, the gaps between last and first frame (of frames and of labels) and the rule that a beat "
            f"closes: the preprocessing repeats beats and cuts them to fill {stats.size[3]} frames, so that these "
            "cines are not whole beats, and the beat duration of a sample is unknown."
        )
    config = EvaluatorConfig(
        features=settings.features,
        weights=settings.weights,
        features_size=settings.features_size,
        segmenter=settings.segmenter if is_cine or segments_ct else None,
        labels=tuple(labels.items()),
        vae=settings.reconstructions,
        is_cine=is_cine,
        radiomics=settings.radiomics and not is_cine,
        device=settings.device,
    )
    return config, left_out


# What to do about a voxel size that is unknown in one of the sets.
UNKNOWN_SIZE = {
    REAL: "Files whose headers state it, as scanners and converters write them, are needed.",
    SYNTHETIC: "Their model does not know it, because its training volumes had different voxel sizes (train it with "
    "data.preprocessing.spacing, so that all have one) or because it was converted without `cardiodit convert ... "
    "--spacing`.",
}


def _require_voxel_sizes(stats: Sequence[VolumeStats]) -> None:
    for name, each in zip((REAL, SYNTHETIC), stats, strict=True):
        if each.spacing is None:
            raise CardioDiTError(
                f"The voxel size of the {name} volumes is unknown, so that no volume in mL can be measured in them. "
                f"{UNKNOWN_SIZE[name]} Or leave --segmenter and the masks out."
            )


def _measure(
    settings: EvaluationSettings,
    real: VolumeSet,
    synthetic: VolumeSet,
    steps: Preprocessing,
    config: EvaluatorConfig,
    workers: Workers,
) -> list[MeasuredSet]:
    items = [*real.items, *synthetic.items]
    results = list(measure_all(items, steps, config, settings.output_dir / CACHE, workers))
    if cached := sum(isinstance(result, Measured) and result.was_cached for result in results):
        say(f"Resuming: {cached} of {len(items)} volumes were measured by an earlier run.", aside=True)
    sets = []
    for volumes in (real, synthetic):
        pairs = [(item, result) for item, result in zip(items, results, strict=True) if item.set == volumes.name]
        sets.append(_measured_set(volumes, pairs))
    stats = [[measured.stats for measured in side.measured] for side in sets]
    contrast = notes_on_contrast(sets[0].stats, sets[1].stats)
    notes = [*sets[1].volumes.notes, *notes_on_voxel_sizes(*stats), *contrast]
    for side in sets:
        notes += notes_on_orientation(side.volumes.name, [measured.numbers for measured in side.measured])
    return [sets[0], replace(sets[1], volumes=replace(sets[1].volumes, notes=notes))]


def _measure_training(
    settings: EvaluationSettings,
    training: VolumeSet,
    real: MeasuredSet,
    steps: Preprocessing,
    config: EvaluatorConfig,
    workers: Workers,
) -> MeasuredSet:
    """Measure the features of the training volumes."""
    results = measure_all(training.items, steps, config, settings.output_dir / CACHE, workers)
    learned = _measured_set(training, list(zip(training.items, results, strict=True)))
    check_agreement(real.stats, replace(learned.stats, units=real.stats.units))
    return learned


def _measured_set(volumes: VolumeSet, pairs: Sequence[tuple[Item, Measured | Problem]]) -> MeasuredSet:
    """Return the volumes of a set that can be compared with each other; the others become problems."""
    problems = [*volumes.problems, *(result for _, result in pairs if isinstance(result, Problem))]
    readable = [(item, result) for item, result in pairs if isinstance(result, Measured)]
    if len(readable) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(readable), problems))
    reasons = find_outliers([item for item, _ in readable], [measured.stats for _, measured in readable])
    items, kept = [], []
    for (item, measured), reason in zip(readable, reasons, strict=True):
        if reason is not None:
            problems.append(Problem(volumes.name, item.image.name, reason))
            continue
        items.append(item)
        kept.append(measured)
    if len(items) < FEWEST:
        raise CardioDiTError(_too_few(volumes, len(items), problems))
    return MeasuredSet(volumes, items, kept, problems)


def _too_few(volumes: VolumeSet, count: int, problems: Sequence[Problem]) -> str:
    named = "".join(f"\n  - {problem.file}: {problem.problem}" for problem in problems[:NAMED])
    more = f"\n  - and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return (
        f"An evaluation needs at least {FEWEST} {volumes.name} volumes, and there {'is' if count == 1 else 'are'} "
        f"{count}{' that can be used:' if named else '.'}{named}{more}"
    )


def _without_curves(sets: Sequence[MeasuredSet]) -> list[str]:
    """Return what is unknown for hearts that are labelled at end-diastole and end-systole only."""
    reasons = []
    for side in sets:
        count = sum("lv_edv_ml" in measured.numbers and not measured.curves for measured in side.measured)
        if count:
            reasons.append(
                f"Volume curves, peak rates, plausibility and the consistency of labels: {count} of the "
                f"{len(side.measured)} {side.volumes.name} volumes are labelled at end-diastole and end-systole only."
            )
    return reasons


def _notes_on_copies(sets: Sequence[MeasuredSet], learned: MeasuredSet | None) -> list[str]:
    contents = [[measured.content for measured in side.measured] for side in sets]
    notes = [
        f"{len(each) - len(set(each))} of the {len(each)} {side.volumes.name} volumes are copies of others among them."
        for side, each in zip(sets, contents, strict=True)
        if len(set(each)) < len(each)
    ]
    if both := sum(content in set(contents[0]) for content in contents[1]):
        notes.append(f"{both} of the {len(contents[1])} synthetic volumes equal a real one voxel by voxel.")
    known = {measured.content for measured in learned.measured} if learned else set()
    for side, each in zip(sets, contents, strict=True):
        if count := sum(content in known for content in each):
            notes.append(
                f"{count} of the {len(each)} {side.volumes.name} volumes equal a training volume voxel by voxel."
            )
    return notes


def _describe_set(side: MeasuredSet) -> dict[str, Any]:
    stats = side.stats
    description = {
        "count": len(side.items),
        "subjects": len(side.by_subject),
        "size": list(stats.size),
        "spacing_mm": None if stats.spacing is None else list(stats.spacing),
        "frame_time_s": stats.frame_time,
        "intensity": list(stats.intensity),
        "units": None if stats.units is None else list(stats.units),
        "identity": side.identity,
    }
    more = {"made_by": side.volumes.made_by, "energy": side.volumes.energy}
    return {**description, **{key: value for key, value in more.items() if value}}


def _curves(sets: Sequence[MeasuredSet], closes: bool) -> list[dict[str, Any]]:
    """Return the volume curves in the order of the volumes, each of which has its own frame time."""
    return [
        {
            "name": name,
            "title": title,
            "unit": "mL",
            "is_one_beat": closes,
            **{side.volumes.name: [measured.curves[name] for measured in side.measured] for side in sets},
        }
        for name, (title, _) in CURVES.items()
        if all(name in measured.curves for side in sets for measured in side.measured)
    ]


def _volumes(sets: Sequence[MeasuredSet], learned: MeasuredSet | None, evaluators: Evaluators) -> list[dict[str, Any]]:
    """Return every volume with its numbers, the real ones first; distances are means over the kinds of features."""
    typicalities, nearest = [], []
    for kind in evaluators.networks:
        rows = [np.stack([measured.features[kind] for measured in side.measured]) for side in sets]
        typicalities.append(typicality(*rows))
        if learned:
            nearest.append(distances_to_training(rows[0], rows[1], learned.rows(kind)))
    return [
        {
            "id": f"{side.volumes.name}/{item.id}",
            "set": side.volumes.name,
            "content": measured.content,
            "spacing_mm": measured.stats.spacing,
            "frame_time_s": measured.stats.frame_time,
            "numbers": measured.numbers,
            "plausible": measured.plausible,
            "typicality": float(np.mean([pair[i][j] for pair in typicalities])),
            "training_distance": float(np.mean([pair[i][j] for pair in nearest])) if nearest else None,
        }
        for i, side in enumerate(sets)
        for j, (item, measured) in enumerate(zip(side.items, side.measured, strict=True))
    ]


def typicality(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each volume's distance `(n,)`, `(m,)` to its nearest real ones, over the median of the real ones."""
    from scipy.spatial.distance import cdist

    among = cdist(real, real)
    np.fill_diagonal(among, np.inf)  # a volume is not its own neighbour
    own = _to_nearest(among)
    usual = float(np.median(own))
    if usual == 0:
        return np.ones(len(real)), np.ones(len(synthetic))
    return own / usual, _to_nearest(cdist(synthetic, real)) / usual


def _to_nearest(distances: np.ndarray) -> np.ndarray:
    """Return the mean over the nearest few finite distances."""
    near = np.sort(distances, axis=1)[:, :COMPARED_NEIGHBOURS]
    finite = np.isfinite(near)
    return np.where(finite, near, 0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)


def _write(
    folder: Path, report: dict[str, Any], sets: Sequence[MeasuredSet], steps: Preprocessing, footprint: Footprint
) -> list[Path]:
    from cardiodit.evaluation.report.page import write_page

    write_report(report, folder / REPORT)
    write_text(table(report), folder / TABLE)
    write_text(model_index_yaml(report), folder / MODEL_INDEX)
    write_page(report, _shown_volumes(report, sets, steps), folder / PAGE, footprint)
    return [folder / name for name in (REPORT, TABLE, MODEL_INDEX, PAGE)]


def _shown_volumes(
    report: dict[str, Any], sets: Sequence[MeasuredSet], steps: Preprocessing
) -> dict[str, Callable[[], np.ndarray]]:
    """Return loaders of the volumes that play on the page: most and least typical samples, some usual real ones."""
    items = {f"{side.volumes.name}/{item.id}": item for side in sets for item in side.items}
    ordered = sorted(report["volumes"], key=lambda volume: (volume["typicality"], volume["id"]))
    real, samples = ([volume["id"] for volume in ordered if volume["set"] == name] for name in (REAL, SYNTHETIC))
    half = min(SHOWN_SAMPLES, len(samples) // 2)
    chosen = [*real[len(real) // 2 :][:SHOWN_REAL], *samples[:half], *samples[len(samples) - half :]]
    return {name: partial(_load_voxels, items[name], steps) for name in chosen}


def _load_voxels(item: Item, steps: Preprocessing) -> np.ndarray:
    return load(item, steps).volume.voxels
