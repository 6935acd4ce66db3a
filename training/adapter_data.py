"""Training data of a mask adapter: latents, the masks that belong to them, and how masks are dropped."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems, try_all
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.manifest import Case, check_disjoint
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents import LatentCohort, identity_of_steps, identity_of_vae
from cardiodit.latents.dataset import read_mask
from cardiodit.latents.file import identity_of
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.conditions import Conditions, as_model_sees
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.latent_data import numbers_of
from cardiodit.training.noisy_samples import LabelledSamples, SamplesByVisit
from cardiodit.training.objectives import Batch
from cardiodit.training.settings import ConditionSettings, ControlNetSettings, TGCASettings


def conditions_of(settings: TGCASettings | ControlNetSettings) -> Conditions:
    conditions = settings.conditions
    return Conditions(conditions.keys, conditions.labels, conditions.other_labels)


class CohortMasks:
    """Masks of a manifest of latents; all of them are read and checked at the start, and kept compressed.

    Reading a mask of 512×512×256 from its file takes seconds at every visit. `identity` is a hash of all masks in their
    order, as the model sees them.

    Args:
        cases: rows of the manifest.
        conditions: which columns hold masks, and how masks become channels.
        size: size of the volumes along the model's axes.
    """

    def __init__(self, cases: Sequence[Case], conditions: Conditions, size: tuple[int, ...]) -> None:
        self.conditions = conditions
        self._kept: list[tuple[torch.Tensor, tuple[int, ...]]] = []  # compressed bytes and shape of each mask
        contents: list[str] = []
        problems = Problems("The masks of these latents cannot be used")
        for case in cases:
            paths = {key: path for key in conditions.keys if (path := case.path(key)) is not None}
            if missing := [key for key in conditions.keys if key not in paths]:
                problems.add(f"{case.subject} has no {', '.join(missing)}")
                continue
            try:
                masks = {key: read_mask(path) for key, path in paths.items()}
                channels = as_model_sees(conditions.channels_of(masks))
            except (CardioDiTError, OSError) as error:
                problems.add(f"{case.subject}: {str(error).rstrip('.')}")
                continue
            if tuple(channels.shape[1:]) != size:
                problems.add(f"{case.subject} has masks of {tuple(channels.shape[1:])}, its volume is {size}")
            contents.append(content_of(channels.numpy()))
            packed = zlib.compress(channels.to(torch.uint8).numpy().tobytes(), level=1)
            self._kept.append((torch.frombuffer(bytearray(packed), dtype=torch.uint8), tuple(channels.shape)))
        problems.raise_if_any(
            "`cardiodit encode --condition_keys ...` prepares masks with the latents. With conditions.other_labels "
            "background, labels that are not listed in conditions.labels become background."
        )
        self.identity = identity_of(contents)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> torch.Tensor:
        """`(K, *axes)` uint8; the device makes floats of them."""
        packed, shape = self._kept[index]
        return torch.frombuffer(bytearray(zlib.decompress(packed.numpy().tobytes())), dtype=torch.uint8).view(shape)


class MaskDropout:
    """Training samples by visit number, some of whose masks are dropped."""

    def __init__(self, samples: SamplesByVisit, settings: ConditionSettings, seed: int) -> None:
        self.samples, self.settings = samples, settings
        self.seed = seed_for(seed, "conditions")

    def __getitem__(self, visit: int) -> Batch:
        item = self.samples[visit]
        return {**item, "condition": drop_masks(item["condition"], self.settings, generator_for(self.seed, visit))}


def drop_masks(condition: torch.Tensor, settings: ConditionSettings, generator: torch.Generator) -> torch.Tensor:
    """Set all channels, some masks, channels or boxes of `(K, *axes)` to 0, each at exactly the configured rate."""
    channels = len(condition)
    # All numbers are always drawn, so that one setting does not change the draws of another.
    draw_for_all, *draws = torch.rand(1 + channels, generator=generator).tolist()
    if draw_for_all < settings.dropout_prob:
        return torch.zeros_like(condition)
    if channels > 1:
        kept = torch.tensor([draw >= settings.channel_dropout_prob for draw in draws])
        condition = condition * kept.view(-1, *[1] * (condition.ndim - 1))
    if settings.patch_dropout_prob > 0:
        size, side = condition.shape[1:], settings.patch_dropout_size
        boxes = torch.rand([-(-n // side) for n in size], generator=generator)
        kept = (boxes >= settings.patch_dropout_prob).to(condition.dtype)
        for axis, length in enumerate(size):
            kept = kept.repeat_interleave(side, dim=axis).narrow(axis, 0, length)
        condition = condition * kept
    if settings.key_dropout_prob > 0:
        counts = [1] * channels if settings.labels is None else [len(labels) for labels in settings.labels]
        keys = torch.rand(len(counts), generator=generator) >= settings.key_dropout_prob
        kept = keys.repeat_interleave(torch.tensor(counts))
        condition = condition * kept.view(-1, *[1] * (condition.ndim - 1))
    return condition


def read_cohorts(paths: Sequence[Path], vae: VQModel) -> list[LatentCohort]:
    """Read the latents for training and validation, which must be of the base's own VQ model."""
    cohorts = try_all(*(partial(LatentCohort.open, path, identity_of_vae(vae)) for path in paths))
    check_disjoint(training=cohorts[0].cases, validation=cohorts[1].cases)
    if cohorts[0].size != cohorts[1].size:
        raise CardioDiTError(
            f"Latents for training are {cohorts[0].size} and for validation {cohorts[1].size}: they must agree."
        )
    return list(cohorts)


def read_masks(cohorts: Sequence[LatentCohort], conditions: Conditions, voxels_per_latent: Sequence[int]) -> Any:
    """Read the masks of all latents, which must have the size of the volumes."""
    size = tuple(n * f for n, f in zip(cohorts[0].size, voxels_per_latent, strict=True))
    return try_all(*(partial(CohortMasks, cohort.cases, conditions, size) for cohort in cohorts))


def own_preprocessing(cohorts: Sequence[LatentCohort], vae: VQModel) -> Preprocessing | None:
    """Return how the latents and their masks were prepared, if that differs from the VQ model's preprocessing.

    It can differ: the authors' adapter was trained on cropped volumes and their base on resized ones.
    """
    training, validation = cohorts
    if training.preprocessing != validation.preprocessing:
        raise CardioDiTError(
            "The latents for training and for validation were prepared in different ways. Encode both with the same "
            "--preset and --depth."
        )
    own = None if vae.config.preprocessing is None else Preprocessing.from_dict(vae.config.preprocessing)
    if own is not None and identity_of_steps(own) == training.preprocessing:
        return None
    if training.steps is None:
        raise CardioDiTError(
            "The latents do not record how they were prepared, because an older version of cardiodit wrote them. Run "
            "the same `cardiodit encode` again."
        )
    limits = training.steps.intensity.low, training.steps.intensity.high
    if own is not None and (own.intensity.low, own.intensity.high) == limits:
        return replace(training.steps, intensity=own.intensity)  # which knows what -1 and 1 usually stand for
    return training.steps


def labelled_samples(
    cohort: LatentCohort, masks: CohortMasks | None, label_column: str | None, base: Any
) -> LabelledSamples:
    """Return latents with their masks, and the labels and clinical conditions that the base gets.

    Without a label column, the base gets its null label. Conditions come from the columns of their names; columns that
    the manifest lacks are not given.
    """
    names, null_label = base.config.get("class_names"), base.null_label
    if label_column is not None and not names:
        raise CardioDiTError(f"label_column is {label_column!r}, but the base has no named labels.")
    if label_column is None and base.config.get("num_classes") and null_label is None:
        raise CardioDiTError(
            "The base was trained with class labels and without label dropout, so it always needs a label: set "
            "label_column to the manifest column that holds them."
        )
    labels = numbers_of(cohort.cases, label_column, names or ())
    if labels is None and null_label is not None:
        labels = [null_label] * len(cohort.cases)
    subjects = [case.subject for case in cohort.cases]
    known = getattr(base, "conditions", None)
    # A held-out patient may exceed the range of the base's cohort.
    clinical = known and known.numbers_of([case.row for case in cohort.cases], subjects, extrapolate=True)
    return LabelledSamples(cohort, subjects, labels, masks, clinical)
