"""The whole memorization audit: from a model, its training patients and held-out ones to one report, top to bottom."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit._util.hashing import sha256_of
from cardiodit._util.terminal import progress, say
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.compatibility import check_agreement, find_outliers, inspect, summarize_set
from cardiodit.evaluation.report import rounded
from cardiodit.evaluation.volume_sets import (
    Item,
    Problem,
    VolumeSet,
    load,
    open_real,
    open_synthetic,
    settle_preprocessing,
)
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.manifest import check_disjoint
from cardiodit.imaging.preprocessing import Preprocessing, without_typical
from cardiodit.privacy import identities
from cardiodit.privacy.attacks import LossMeter, authenticity, generalisation_gap, loss_attacks, sample_attacks
from cardiodit.privacy.conclusions import conclusion, limits, strongest, tested
from cardiodit.privacy.detectors import PIXELS, RECONSTRUCTIONS, DetectorConfig, check_unseen, open_detector
from cardiodit.privacy.findings import (
    Distances,
    Findings,
    attack_report,
    authenticity_report,
    estimate,
    findings_of,
)
from cardiodit.privacy.planted import sensitivity
from cardiodit.privacy.report import SCHEMA, write_all
from cardiodit.privacy.search import Embedded, References, embed_all
from cardiodit.privacy.statistics import fewest_held_out

CACHE = "described"  # folder of rows and losses, within the output folder
TRAINING, HELD_OUT, SYNTHETIC = "training", "held-out", "synthetic"
RELEASES = ("weights", "samples", "service")
SUBGROUPS = ("label", "vendor")
SHOWN = 8  # nearest pairs on the page
NAMED = 8


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Args:
        training: manifest of the images that the model was trained on, in the order of training.
        held_out: manifest of patients that neither the model nor a trained detector has seen.
        synthetic: folder of samples, or a manifest.
        output_dir: folder of the report and of cached rows.
        model: pipeline whose weights are audited; None if only samples are known.
        run: training run that recorded the identity of the cohort; default: the one that contains the model.
        detectors: names (`DetectorConfig.name`); default: pixels, and reconstructions if the model has a VQ model.
        weights: of a feature network.
        reference: model that was trained on other patients, which tells how difficult a volume is.
        preprocessing, depth, spacing: as in an evaluation.
        noise_levels: at which the denoising loss is measured; 0 for no attacks with the weights.
        attack_volumes: largest number of volumes per set whose loss is measured.
        planted: training volumes of which copies of every kind are planted; 0 to skip.
        subgroups: manifest columns whose groups are reported.
        release: what is to be published: "weights", "samples" or "service".
        signed_by: who answers for the audit.
        processes: worker processes; does not change the report.
        share: number of this process and of all processes of a distributed call.
        wait: waits for all processes of a distributed call.
    """

    training: Path
    held_out: Path
    synthetic: Path
    output_dir: Path
    model: str | None = None
    run: Path | None = None
    detectors: Sequence[str] | None = None
    weights: str | None = None
    reference: str | None = None
    preprocessing: str | None = None
    depth: int | None = None
    spacing: Triple | None = None
    noise_levels: int = 5
    attack_volumes: int = 100
    planted: int = 12
    subgroups: Sequence[str] = SUBGROUPS
    release: str = "weights"
    signed_by: str | None = None
    seed: int = 0
    processes: int = 1
    device: str = "cpu"
    share: tuple[int, int] = (0, 1)
    wait: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class DescribedSet:
    """The volumes of a set that a detector could describe, in the order of their contents."""

    volumes: VolumeSet
    items: list[Item]
    described: list[Embedded]
    problems: list[Problem]

    @property
    def patients(self) -> list[str]:
        return [patient_of(item) for item in self.items]

    @property
    def identity(self) -> str:
        """SHA-256 over the contents of all volumes."""
        return hashlib.sha256("".join(each.content for each in self.described).encode()).hexdigest()


@dataclass(frozen=True)
class Audit:
    """The outcome: the report as written, and its files."""

    report: dict[str, Any]
    files: list[Path]


def audit(settings: AuditSettings) -> Audit | None:
    """Ask whether a model reproduces its training patients, and write the report; None on all but the first process."""
    _check(settings)
    sets = [named(open_real(settings.training), TRAINING), named(open_real(settings.held_out), HELD_OUT)]
    sets.append(open_synthetic(settings.synthetic))
    _check_patients(sets)
    steps = settle_preprocessing(sets[2], settings.model, settings.preprocessing, settings.depth, settings.spacing)
    stats = [inspect(each, steps) for each in sets]
    for other in stats[1:]:
        check_agreement(stats[0], other)
    folder = None if settings.model is None else identities.model_folder(settings.model)
    model = _identify(settings, folder, sets, steps)

    settings.output_dir.mkdir(parents=True, exist_ok=True)
    with Workers(settings.processes) as workers:
        parts, described = [], []
        for name in _detectors(settings, folder):
            config = DetectorConfig(name, settings.model, settings.weights, settings.device)
            described = _describe(settings, sets, steps, config, workers)
            if settings.share[0] > 0:
                continue
            parts.append(_examine(settings, described, steps, config, workers))
    if settings.share[0] > 0:
        return None
    attacks = [attack for part in parts for attack in part[1]]
    gap: dict[str, Any] | None = None
    left_out: list[str] = []
    if settings.model and settings.noise_levels:
        with_weights, gap, left_out = _attack_with_weights(settings, described, steps, model["weights"])
        attacks += with_weights
    report = rounded(_report(settings, model, described, steps, parts, attacks, gap, left_out))

    shown = report["detectors"].index(strongest(report))
    pairs = _shown_pairs(parts[shown][0], described, steps)
    return Audit(report, write_all(settings.output_dir, report, pairs))


def patient_of(item: Item) -> str:
    return item.case.subject if item.case is not None else item.id


def named(volumes: VolumeSet, name: str) -> VolumeSet:
    items = [replace(item, set=name) for item in volumes.items]
    return replace(
        volumes, name=name, items=items, notes=[note.replace(" real ", f" {name} ") for note in volumes.notes]
    )


def _check(settings: AuditSettings) -> None:
    for name, least in (("noise_levels", 0), ("attack_volumes", 2), ("planted", 0), ("processes", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise CardioDiTError(f"{name}={getattr(settings, name)} must be at least {least}.")
    if settings.release not in RELEASES:
        raise CardioDiTError(f"release={settings.release!r} must be one of {', '.join(RELEASES)}.")
    if settings.detectors is not None and not settings.detectors:
        raise CardioDiTError("An audit needs at least one detector.")
    if settings.reference and not settings.model:
        raise CardioDiTError("--reference calibrates attacks with the weights: give --model too.")
    if settings.output_dir.is_file():
        raise CardioDiTError(f"The output {settings.output_dir} is a file; expected a folder.")


def _detectors(settings: AuditSettings, model: Path | None) -> Sequence[str]:
    if settings.detectors is not None:
        return settings.detectors
    # A VQ model that blurs makes copies that are no nearer to the scans than other hearts are.
    has_vae = model is not None and (model / "vae").is_dir()
    return (PIXELS, RECONSTRUCTIONS) if has_vae else (PIXELS,)


def _check_patients(sets: Sequence[VolumeSet]) -> None:
    """Check that held-out patients are held out, and enough of them for any statement."""
    training, held_out, _ = sets
    for volumes in sets:
        if not volumes.items:
            raise CardioDiTError(f"There are no {volumes.name} volumes.")
    cases = [[item.case for item in each.items if item.case is not None] for each in (training, held_out)]
    check_disjoint(**{"training": cases[0], "held-out": cases[1]})
    known = {sha256_of(case.image): case.image.name for case in cases[0]}
    if both := [case.image.name for case in cases[1] if sha256_of(case.image) in known]:
        raise CardioDiTError(
            f"{len(both)} held-out files equal training files byte for byte ({', '.join(both[:NAMED])}). Patients that "
            "the model was trained on cannot be held out: remove them from the held-out manifest."
        )
    patients = len({case.subject for case in cases[1]})
    if patients < fewest_held_out():
        raise CardioDiTError(
            f"There are {patients} held-out patients. With fewer than {fewest_held_out()}, no copy can be told from "
            "chance at a level of 5%, whatever the model does; 100 or more make the threshold reliable. Add patients "
            "from the same scanners who are in neither the training nor the validation set."
        )


def _identify(
    settings: AuditSettings, folder: Path | None, sets: Sequence[VolumeSet], steps: Preprocessing
) -> dict[str, Any]:
    """Return the identities of weights and cohort; raise an error if the cohort or the samples are another model's."""
    cases = [item.case for item in sets[0].items if item.case is not None]
    made_by = sets[2].made_by
    if settings.model is None or folder is None:
        known = identities.cohort_identities(cases, steps)
        return {"name": made_by.get("model"), "weights": None, "revision": made_by.get("revision"),
                "samples_are_of_these_weights": None, "cohort": known, "cohort_checked_against": None}  # fmt: skip
    weights, revision = identities.identity_of_weights(folder), identities.revision_of_folder(folder)
    sampled = made_by.get("revision")
    if sampled is not None and revision is not None and sampled != revision and identities.are_alike(sampled, revision):
        raise CardioDiTError(
            f"The samples of {settings.synthetic} were made by the weights {sampled}, and {settings.model} "
            f"has {revision}. Sample again with the model that is audited."
        )
    vae = None
    if (folder / "vae").is_dir():
        from cardiodit.hub.load import open_vae

        vae = open_vae(folder)
    known = identities.cohort_identities(cases, steps, vae)
    trained_on = identities.known_cohort(folder, settings.run)
    checked_against = None if trained_on is None else trained_on.match(known)
    if trained_on is not None and checked_against is None:
        raise CardioDiTError(
            f"{settings.training} is not what {settings.model} was trained on: {trained_on.source} records the data "
            f"{trained_on.identity[:16]}, and these images are {known[0][:16]}"
            + (f" (as latents {known[1][:16]})" if len(known) > 1 else "")
            + ". Give the manifest of the training images themselves, in its original order, with the preprocessing "
            "and --depth of training. An audit against another cohort says nothing about this model."
        )
    return {
        "name": folder.resolve().name if Path(settings.model).exists() else settings.model,
        "weights": weights,
        "revision": revision,
        "samples_are_of_these_weights": sampled is not None and sampled == revision,
        "cohort": known,
        "cohort_checked_against": checked_against,
    }


def _describe(
    settings: AuditSettings, sets: Sequence[VolumeSet], steps: Preprocessing, config: DetectorConfig, workers: Workers
) -> list[DescribedSet]:
    """Describe all sets with one detector; in a distributed call, every process describes its share first."""
    cache = settings.output_dir / CACHE
    detector = open_detector(config)
    check_unseen(detector, [item.image for item in sets[1].items])
    say(f"Detector {detector.name}: describing {sum(len(each.items) for each in sets)} volumes.", aside=True)
    if settings.share[1] > 1:
        for volumes in sets:
            for is_query in (False, True):
                if is_query == (volumes.name != TRAINING) or volumes.name == HELD_OUT:
                    list(embed_all(volumes.items, steps, config, cache, workers, is_query, settings.share))
        settings.wait()
        if settings.share[0] > 0:
            return []
    described = []
    for volumes in sets:
        results = list(embed_all(volumes.items, steps, config, cache, workers, volumes.name != TRAINING))
        described.append(usable(volumes, results))
    for other in described[1:]:
        check_agreement(
            summarize_set([e.stats for e in described[0].described]), summarize_set([e.stats for e in other.described])
        )
    contents = {each.content for each in described[0].described}
    if both := [
        i.image.name for i, e in zip(described[1].items, described[1].described, strict=True) if e.content in contents
    ]:
        raise CardioDiTError(
            f"{len(both)} held-out volumes equal training volumes voxel by voxel ({', '.join(both[:NAMED])}). Remove "
            "them from the held-out manifest."
        )
    return described


def usable(volumes: VolumeSet, results: Sequence[Embedded | Problem]) -> DescribedSet:
    problems = [*volumes.problems, *(result for result in results if isinstance(result, Problem))]
    pairs = [(item, each) for item, each in zip(volumes.items, results, strict=True) if isinstance(each, Embedded)]
    reasons = find_outliers([item for item, _ in pairs], [each.stats for _, each in pairs]) if pairs else []
    problems += [
        Problem(volumes.name, item.image.name, reason)
        for (item, _), reason in zip(pairs, reasons, strict=True)
        if reason is not None
    ]
    kept = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    least = fewest_held_out() if volumes.name == HELD_OUT else 2
    if len(kept) < least:
        listed = "".join(f"\n  - {problem.file}: {problem.problem}" for problem in problems[:NAMED])
        raise CardioDiTError(
            f"An audit needs at least {least} {volumes.name} volumes; {len(kept)} can be used.{listed}"
        )
    kept.sort(key=lambda pair: pair[1].content)
    return DescribedSet(volumes, [item for item, _ in kept], [each for _, each in kept], problems)


def _one_per_patient(held_out: DescribedSet) -> DescribedSet:
    """Keep one volume of each patient: volumes of one patient are not independent."""
    first = list({patient: place for place, patient in reversed(list(enumerate(held_out.patients)))}.values())
    first.sort()
    return replace(held_out, items=[held_out.items[i] for i in first], described=[held_out.described[i] for i in first])


def _examine(
    settings: AuditSettings,
    sets: Sequence[DescribedSet],
    steps: Preprocessing,
    config: DetectorConfig,
    workers: Workers,
) -> tuple[tuple[Findings, DetectorConfig], list[dict[str, Any]]]:
    """Search with one detector, and return its findings and the attacks that use its distances."""
    training, held_out, synthetic = sets[0], _one_per_patient(sets[1]), sets[2]
    detector, name = open_detector(config), Path(config.name).name
    references = References.of(training.described, training.patients)
    query = partial(_rows_of, held_out.described)
    to_held_out = references.distances(query, len(held_out.items)).T
    to_samples = references.distances(partial(_rows_of, synthetic.described), len(synthetic.items)).T
    others = list(embed_all(held_out.items, steps, config, settings.output_dir / CACHE, workers, is_query=False))
    others_found = [each for each in others if isinstance(each, Embedded)]
    from_others = references.with_rows(References.rows_of(others_found))
    held_out_to_samples = from_others.distances(partial(_rows_of, synthetic.described), len(synthetic.items)).T
    found = Distances(to_held_out, to_samples, held_out_to_samples, references.own, references.rarity())
    groups = {
        column: [item.case.row.get(column, "") if item.case else "" for item in training.items]
        for column in settings.subgroups
    }
    findings = findings_of(found, training.patients, groups, settings.seed)
    report = {"detector": {**detector.describe(), "identity": detector.identity}, **findings.report}
    report["sensitivity"] = []
    report["authenticity"] = authenticity_report(authenticity(to_samples, to_held_out, references.own))
    if settings.planted:
        chosen = _evenly(training.items, settings.planted), _evenly(synthetic.items, settings.planted)
        report["sensitivity"] = sensitivity(
            config, references, findings.threshold, *chosen, steps, workers, settings.seed
        )
    attacks = [attack_report(each, name) for each in sample_attacks(to_samples, held_out_to_samples)]
    return (replace(findings, report=report), config), attacks


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def _rows_of(described: Sequence[Embedded], place: int) -> np.ndarray:
    return described[place].rows()


def _attack_with_weights(
    settings: AuditSettings, sets: Sequence[DescribedSet], steps: Preprocessing, weights: str
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[str]]:
    """Return the attacks, the generalisation gap of the loss, and what could not be done."""
    from cardiodit.pipelines.load import open_pipeline

    rng = np.random.default_rng([settings.seed, settings.attack_volumes])
    chosen = []
    for each in (sets[0], _one_per_patient(sets[1])):
        places = np.sort(rng.permutation(len(each.items))[: settings.attack_volumes])
        chosen.append([(each.items[i], each.described[i].content) for i in places])
    losses = []
    try:
        for name in filter(None, (settings.model, settings.reference)):
            pipe = open_pipeline(name).to(settings.device)
            identity = (
                weights if name == settings.model else identities.identity_of_weights(identities.model_folder(name))
            )
            meter = LossMeter(pipe, settings.noise_levels, identity, settings.output_dir / CACHE)
            both = [pair for pairs in chosen for pair in pairs]
            rows = [meter.losses(item, content, steps) for item, content in progress(both, "Denoising loss")]
            losses.append((np.stack(rows[: len(chosen[0])]), np.stack(rows[len(chosen[0]) :])))
    except CardioDiTError as error:
        return [], None, [f"Attacks with the weights: {error}"]
    attacks = loss_attacks(meter, *losses[0], losses[1] if len(losses) > 1 else None)
    return [attack_report(each) for each in attacks], estimate(generalisation_gap(*losses[0], settings.seed)), []


def _report(
    settings: AuditSettings,
    model: dict[str, Any],
    sets: Sequence[DescribedSet],
    steps: Preprocessing,
    parts: Sequence[Any],
    attacks: list[dict[str, Any]],
    gap: dict[str, Any] | None,
    left_out: list[str],
) -> dict[str, Any]:

    training, held_out, synthetic = sets
    samples = []
    for place, (item, each) in enumerate(zip(synthetic.items, synthetic.described, strict=True)):
        found = [part[0][0] for part in parts]
        samples.append(
            {
                "file": item.image.name,
                "content": each.content,
                "is_copy": bool(any(one.is_copy[place] for one in found)),
                "p_values": [float(one.p_values[place]) for one in found],
                "nearest": [training.described[one.nearest[place]].content for one in found],
            }
        )
    samples.sort(key=lambda sample: str(sample["file"]))
    notes = [note for each in sets for note in each.volumes.notes]
    if model["samples_are_of_these_weights"] is False:
        notes.append("The samples have no records of the weights that made them, so that this could not be checked.")
    if len(set(held_out.patients)) < len(held_out.items):
        notes.append(
            "Of each held-out patient, one volume is used, because volumes of one patient are not independent."
        )
    if model["weights"] and model["cohort_checked_against"] is None:
        notes.append(
            "Neither a training run nor the model card says which data the model was trained on, so that the "
            "training cohort could not be checked."
        )
    report = {
        "schema": SCHEMA,
        "cardiodit": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "signed_by": settings.signed_by,
        "release": settings.release,
        "model": model,
        "preprocessing": without_typical(steps).to_dict(),
        "seed": settings.seed,
        "sets": {
            each.volumes.name: {
                "volumes": len(each.items),
                "patients": None if each is synthetic else len(set(each.patients)),
                "identity": each.identity,
            }
            for each in sets
        },
        "made_by": synthetic.volumes.made_by,
        "detectors": [part[0][0].report for part in parts],
        "attacks": attacks,
        "generalisation_gap": gap,
        "left_out": left_out,
        "notes": notes,
        "samples": samples,
        "problems": [problem.to_dict() for each in sets for problem in each.problems],
    }
    return {**report, "tested": tested(report), "limits": limits(report), "conclusion": conclusion(report)}


@dataclass(frozen=True)
class Pair:
    """A sample beside the training volume nearest to it, for the internal page."""

    sample: str
    patient: str
    p_value: float
    is_copy: bool
    pictures: tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]


def _shown_pairs(
    part: tuple[Findings, DetectorConfig], sets: Sequence[DescribedSet], steps: Preprocessing
) -> list[Pair]:
    findings, (training, _, synthetic) = part[0], sets
    order = sorted(range(len(synthetic.items)), key=lambda i: (findings.p_values[i], findings.distances[i]))
    pairs = []
    for i in order[:SHOWN]:
        item, near = synthetic.items[i], training.items[findings.nearest[i]]
        loaders = (partial(_voxels, item, steps), partial(_voxels, near, steps))
        pairs.append(
            Pair(item.image.name, patient_of(near), float(findings.p_values[i]), bool(findings.is_copy[i]), loaders)
        )
    return pairs


def _voxels(item: Item, steps: Preprocessing) -> np.ndarray:
    return load(item, steps).volume.voxels
