"""Data of stage 2: latents or images of two manifests, checked against each other before training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems, try_all
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.manifest import Case, check_disjoint, read_manifest, read_table
from cardiodit.imaging.preprocessing import Preprocessing, note_on_padding
from cardiodit.latents import (
    LatentCohort,
    check_geometries,
    encode_volume,
    identity_of_vae,
    measure_scale,
    preprocessing_for,
)
from cardiodit.latents.file import identity_of
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.clinical_conditions import ClinicalConditions, split_unit
from cardiodit.training.cine_frames import CineFrames, Pool, padded_length, read_phases
from cardiodit.training.harness.schedule import BucketOrder, seed_for
from cardiodit.training.noisy_samples import LabelledSamples, SamplesByVisit
from cardiodit.training.objectives import Batch

SCALE_SAMPLES = 16  # latents by which the scaling factor is checked
SCALE_TOLERANCE = 0.3  # deviation from the standard deviation of 1


@dataclass(frozen=True)
class Cohort:
    """Training and validation data of a transformer.

    Args:
        training, validation: tensors with their subjects and labels.
        classes: class names in the order of their numbers.
        shape: shape of a latent `(C, *size)`.
        online: whether the tensors are volumes that are encoded while training.
        shapes: shape of each training latent, if they differ; `shape` is then the largest along each axis.
        identities: hashes of the data and the VQ model, for the run's record.
        conditions: clinical conditions of the samples; None without.
    """

    training: LabelledSamples
    validation: LabelledSamples
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    online: bool
    identities: dict[str, str]
    shapes: tuple[tuple[int, ...], ...] | None = None
    conditions: ClinicalConditions | None = None


def read_cohort(
    training_ids: Path,
    validation_ids: Path,
    vae: VQModel,
    depth: int | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    spacing: Triple | None = None,
    report: Callable[[str], None] = print,
    any_size: bool = False,
    frame_multiple: int | None = None,
    phases: tuple[str | None, str | None, Pool] = (None, None, "linear"),
    condition_columns: Sequence[str] = (),
    known_conditions: ClinicalConditions | None = None,
) -> Cohort:
    """Read both manifests. Volumes whose voxel size is not the VQ model's are an error.

    Args:
        training_ids, validation_ids: manifests of `cardiodit encode` (with a column `latent`), or of images, which are
            encoded while training.
        vae: VQ model that encoded the latents or will encode the images.
        depth: number of slices to crop or pad images to.
        label_column: column with the class labels.
        classes: class names of a model that is fine-tuned; other labels are errors.
        spacing: voxel size in mm to resample images to.
        report: receives notes, one sentence each.
        any_size: allow latents of different sizes.
        frame_multiple: repeat latents in time to a multiple of this number of frames; what is repeated does not count
            in the loss.
        phases: manifest column, or folder, with the phase of each frame, and how these become those of latent frames.
        condition_columns: columns with clinical conditions, see `ClinicalConditions.of_cohort`.
        known_conditions: those of a model that is fine-tuned; other columns are errors.
    """
    online = {path: "latent" not in read_table(path, ())[0][1] for path in (training_ids, validation_ids)}
    if len(set(online.values())) > 1:
        raise CardioDiTError(
            f"{training_ids} and {validation_ids} must both be manifests of images or both of latents "
            "(from `cardiodit encode`)."
        )
    is_online = online[training_ids]
    if spacing is not None and not is_online:
        raise CardioDiTError("--spacing is for images; latents have the voxel size that `cardiodit encode` gave them.")
    if depth is not None and not is_online:
        raise CardioDiTError("--depth is for images; latents have the slices that `cardiodit encode` gave them.")
    if any_size and is_online:
        raise CardioDiTError(
            "batch_strategy: bucket is for stored latents (`cardiodit encode --any_size`), and the manifests list "
            "images."
        )
    if is_online and (frame_multiple or any(phases[:2])):
        raise CardioDiTError(
            "frame_multiple, phase_column and phase_dir are for stored latents (`cardiodit encode`), and the manifests "
            "list images."
        )
    made_by = identity_of_vae(vae)
    steps = _preprocessing(vae, depth, spacing) if is_online else None
    read = (
        partial(_volumes, steps=steps) if steps else partial(LatentCohort.open, vae_identity=made_by, any_size=any_size)
    )
    sources = try_all(partial(read, training_ids), partial(read, validation_ids))
    cases = [source.cases for source in sources]
    check_disjoint(training=cases[0], validation=cases[1])
    geometries = [
        source.geometries if is_online else [header.geometry for header in source.headers] for source in sources
    ]
    paths = [case.image for case in [*cases[0], *cases[1]]]
    for note in check_geometries(vae, dict(zip(paths, [*geometries[0], *geometries[1]], strict=True))):
        report(note)
    if is_online and (note := note_on_padding({**sources[0].slices, **sources[1].slices})):
        report(note)
    names = _classes(cases[0], label_column, classes)
    shapes = [_shape(source, vae, is_online, path) for source, path in zip(sources, online)]
    frames = [None if is_online else _frames_of(source, frame_multiple, phases) for source in sources]
    multiple = frame_multiple or 1
    shapes = [_padded(shape, multiple) for shape in shapes]
    if any_size:
        shapes = [tuple(max(lengths) for lengths in zip(*shapes, strict=True))] * 2
    if shapes[0] != shapes[1]:
        raise CardioDiTError(f"Latents for training are {shapes[0]} and for validation {shapes[1]}: they must agree.")
    conditions, clinical = _conditions(cases, condition_columns, known_conditions)
    training, validation = (
        LabelledSamples(
            source,
            [case.subject for case in held],
            numbers_of(held, label_column, names) if names else None,
            frames=framed,
            clinical=numbers,
        )
        for source, held, framed, numbers in zip(sources, cases, frames, clinical)
    )
    identities = {
        "vae": made_by,
        "scaling_factor": str(vae.config.scaling_factor),
        "training_data": sources[0].identity,
        "validation_data": sources[1].identity,
    }
    if conditions is not None:
        identities["conditions"] = identity_of([str((list(conditions), numbers)) for numbers in clinical])
        for column, (name, condition) in enumerate(conditions.items()):
            known = sum(not math.isnan(numbers[column]) for numbers in clinical[0] or ())
            report(f"Condition {name}: {condition.range}; known for {known} of {len(cases[0])} training samples.")
    each = tuple(_padded(header.shape, multiple) for header in sources[0].headers) if any_size else None
    return Cohort(training, validation, tuple(names), shapes[0], is_online, identities, each, conditions)


def _conditions(
    cases: Sequence[Sequence[Case]], columns: Sequence[str], known: ClinicalConditions | None
) -> tuple[ClinicalConditions | None, list[list[tuple[float, ...]] | None]]:
    """Return the cohort's clinical conditions, and their numbers for training and validation."""
    if not columns:
        return None, [None, None]
    rows = [[case.row for case in held] for held in cases]
    names = [split_unit(column)[0] for column in columns]
    if known is None:
        known = ClinicalConditions.of_cohort(rows[0], columns)
    else:
        known.check_names(names)
    if missing := [name for name in names if not any(name in row for row in rows[1])]:
        raise CardioDiTError(f"The validation manifest has no column {', '.join(map(repr, missing))}.")
    kept = [[{name: row.get(name, "") for name in names} for row in held] for held in rows]
    subjects = [[case.subject for case in held] for held in cases]
    # Ranges are those of the training cohort; a validation patient may exceed them.
    return known, [known.numbers_of(*pair, extrapolate=True) for pair in zip(kept, subjects, strict=True)]


def _frames_of(
    cohort: LatentCohort, multiple: int | None, phases: tuple[str | None, str | None, Pool]
) -> CineFrames | None:
    """Return what is known about the frames of stored latents; None if nothing has to be done with them."""
    column, folder, pool = phases
    is_repeated = any(header.valid_frames is not None for header in cohort.headers)
    if multiple is None and column is None and folder is None and not is_repeated:
        return None
    if len(cohort.size) != 4:
        raise CardioDiTError("frame_multiple, phase_column and phase_dir are for cines, and these latents are 3D.")
    if column is not None and folder is not None:
        raise CardioDiTError("Phases come either from phase_column or from phase_dir: give one of both.")
    lengths = [header.shape[-1] for header in cohort.headers]
    found = None
    if column is not None or folder is not None:
        found = read_phases(cohort.cases, lengths, column, None if folder is None else Path(folder), pool)
    return CineFrames(multiple or 1, [header.valid_latents for header in cohort.headers], found)


def _padded(shape: tuple[int, ...], multiple: int) -> tuple[int, ...]:
    return shape if multiple == 1 else (*shape[:-1], padded_length(shape[-1], multiple))


def with_model_frames(cohort: Cohort, model: Any) -> Cohort:
    """Keep tokens that only hold padded frames out of the model's attention, and check that it uses phases."""
    frames = cohort.training.frames
    if frames is None:
        return cohort
    positions = getattr(model, "positions", None)
    if frames.phases is not None and not (positions is not None and positions.uses_phase):
        raise CardioDiTError(
            "phase_column and phase_dir need a model whose positions depend on the phase: set model.position_mode to "
            "axial_rope, time_rope, interpolated or phase."
        )
    if frames.multiple <= model.config.patch_size[-1]:
        return cohort  # every token holds a frame that counts
    training, validation = (
        replace(samples, frames=replace(samples.frames, masks_attention=True))  # type: ignore[type-var]
        for samples in (cohort.training, cohort.validation)
    )
    return replace(cohort, training=training, validation=validation)


def with_null_labels(cohort: Cohort, model: Any) -> Cohort:
    """Give samples without labels the model's null label, as sampling without labels does.

    A labelled model that is fine-tuned without labels would otherwise leave its label embedding without a gradient,
    which several processes cannot train.
    """
    if cohort.training.labels is not None or not model.config.get("num_classes"):
        return cohort
    if model.null_label is None:
        raise CardioDiTError(
            "The model was trained with class labels and without label dropout, so it always needs a label: set "
            "label_column to the manifest column that holds them."
        )
    training, validation = (
        replace(samples, labels=[model.null_label] * len(samples)) for samples in (cohort.training, cohort.validation)
    )
    return replace(cohort, training=training, validation=validation)


def shown_conditions(cohort: Cohort, count: int) -> list[dict[str, float | str]] | None:
    """Return the conditions of the first training samples, for previews; None without conditions."""
    numbers = cohort.training.clinical
    if cohort.conditions is None or numbers is None:
        return None
    return [cohort.conditions.values_of(numbers[i % len(numbers)]) for i in range(count)]


@dataclass(frozen=True)
class AugmentedSamples:
    """Training samples by visit number whose volumes change at random, to be encoded afterwards.

    Args:
        spacing: voxel size of the volumes in mm along H, W, D.
    """

    samples: SamplesByVisit
    augmentation: Augmentation
    seed: int
    spacing: Triple

    def __getitem__(self, visit: int) -> Batch:
        item = self.samples[visit]
        generator = generator_for(seed_for(self.seed, "augmentation"), visit)
        image, _ = self.augmentation(item["sample"], generator=generator, spacing=self.spacing)
        return {**item, "sample": image}


def training_samples(
    cohort: Cohort, augmentation: Augmentation, vae: VQModel, seed: int, buckets: BucketOrder | None = None
) -> SamplesByVisit:
    """Return the shuffled training samples; images are augmented if the settings say so, and latents cannot be."""
    samples = cohort.training.shuffled(seed, buckets)
    if not augmentation.is_active:
        return samples
    if not cohort.online:
        raise CardioDiTError(
            "`image_augmentation` changes images before they are encoded, but the manifests list latents: give "
            "manifests of images, or leave it out."
        )
    augmentation.check(is_cine=len(cohort.shape) == 5)
    return AugmentedSamples(samples, augmentation, seed, vae.config.spacing or (1.0, 1.0, 1.0))


def encode(vae: VQModel, volumes: torch.Tensor) -> torch.Tensor:
    """Return the latents of a batch of volumes, as `cardiodit encode` would write them, not yet scaled."""
    return torch.stack([encode_volume(vae, volume) for volume in volumes])


def check_scale(cohort: Cohort, vae: VQModel) -> None:
    """Raise an error unless latents times the scaling factor have a standard deviation near 1."""
    device = next(vae.parameters()).device
    some = islice((cohort.training.source[i] for i in range(len(cohort.training.source))), SCALE_SAMPLES)
    latents = (encode(vae, volume[None].to(device)) if cohort.online else volume[None] for volume in some)
    if vae.config.latents_mean is not None:
        latents = (vae.scale_latents(latent) for latent in latents)
    right = measure_scale(latents)
    held = vae.config.scaling_factor if vae.config.latents_mean is None else 1.0
    if abs(held / right - 1) > SCALE_TOLERANCE:
        how = (
            "encode them (cardiodit encode) and run cardiodit scale-factor on the result"
            if cohort.online
            else "run cardiodit scale-factor --latents MANIFEST --vae MODEL"
        )
        raise CardioDiTError(
            f"The VQ model's scaling_factor is {held:g}, but these latents need about {right:.4g} to have a standard "
            f"deviation of 1: {how}, which writes it into the model."
        )


def _preprocessing(vae: VQModel, depth: int | None, spacing: Triple | None) -> Preprocessing:
    if vae.config.preprocessing is None:
        raise CardioDiTError(
            "The VQ model's config has no preprocessing, so images cannot be encoded while training. Encode them "
            "first (cardiodit encode --preset …) and train on the latents."
        )
    return preprocessing_for(vae, depth=depth, spacing=spacing)


def _volumes(path: Path, steps: Preprocessing) -> PreparedVolumes:
    return PreparedVolumes(read_manifest(path), steps)


def _shape(source: Any, vae: VQModel, online: bool, path: Path) -> tuple[int, ...]:
    if not online:
        return (source.channels, *source.size)
    if len(set(source.shapes)) > 1:
        sizes = ", ".join(map(str, sorted({shape[1:] for shape in source.shapes})))
        raise CardioDiTError(f"The volumes of {path} have different sizes ({sizes}). Give --depth to crop or pad them.")
    size = source.shapes[0][1:]
    factors = vae.scale_factors
    divided = tuple(n // f for n, f in zip(size[-3:], factors, strict=True))
    return (vae.config.embedding_dim, *size[:-3], *divided)


def _classes(cases: Sequence[Case], column: str | None, known: Sequence[str] | None) -> list[str]:
    if column is None:
        return list(known or [])
    return list(known) if known else sorted({case.row.get(column, "") for case in cases} - {""})


def numbers_of(cases: Sequence[Case], column: str | None, classes: Sequence[str]) -> list[int] | None:
    """Return each row's class number; raise an error that lists rows without a label or with an unknown one."""
    if column is None:
        return None
    problems = Problems(f"The column {column!r} cannot be used as class labels")
    numbers = []
    for case in cases:
        label = case.row.get(column, "")
        if label not in classes:
            what = f"the label {label!r}, which is not one of {', '.join(classes)}" if label else "no label"
            problems.add(f"{case.subject} has {what}")
        else:
            numbers.append(list(classes).index(label))
    problems.raise_if_any()
    return numbers
