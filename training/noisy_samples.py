"""Samples of denoisers by visit number, with their noise and times, which depend on the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import Dataset, Subset

from cardiodit._util.randomness import generator_for
from cardiodit.models.clinical_conditions import dropped_at_random
from cardiodit.training.cine_frames import CineFrames
from cardiodit.training.harness.schedule import BucketOrder, SampleOrder, seed_for
from cardiodit.training.latent_augmentation import LatentAugmentation
from cardiodit.training.objectives import Batch, Objective


class Source(Protocol):
    """Latents from files, or volumes that are encoded while training."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor: ...


class SamplesByVisit(Protocol):
    """Training samples by visit number: dictionaries with `sample`, `subject` and what else a model is given."""

    def __getitem__(self, visit: int) -> Batch: ...


@dataclass(frozen=True)
class LabelledSamples:
    """Samples with what is known about them.

    Args:
        source: tensors by index.
        subjects: subject of each tensor.
        labels: class number of each tensor, if there are labels.
        conditions: masks of each tensor, if an adapter is trained.
        frames: padding and phases of the tensors' frames.
        clinical: clinical conditions of each tensor as the model takes them, NaN where one is missing.
    """

    source: Source
    subjects: Sequence[str]
    labels: Sequence[int] | None = None
    conditions: Source | None = None
    frames: CineFrames | None = None
    clinical: Sequence[Sequence[float]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        item: Batch = {"sample": self.source[index], "subject": self.subjects[index]}
        if self.labels is not None:
            item["label"] = torch.tensor(self.labels[index])
        if self.conditions is not None:
            item["condition"] = self.conditions[index]
        if self.clinical is not None:
            item["clinical"] = torch.tensor(self.clinical[index], dtype=torch.float32)
        return item if self.frames is None else self.frames(item, index)

    def shuffled(self, seed: int, buckets: BucketOrder | None = None) -> "ShuffledSamples":
        """Return the samples by visit number; in the order of `buckets` if they differ in shape."""
        return ShuffledSamples(self, SampleOrder(len(self), seed) if buckets is None else buckets)


@dataclass(frozen=True)
class ShuffledSamples:
    """Samples by visit number, each once per epoch, or a few times to fill up buckets."""

    samples: LabelledSamples
    order: SampleOrder | BucketOrder

    def __getitem__(self, visit: int) -> Batch:
        return self.samples[self.order[visit]]


@dataclass(frozen=True)
class Noising:
    """Draw noise and times for samples from the seed and a sample's number alone.

    Args:
        objective: draws the times.
        seed: the run's seed.
        shape: shape of the noise `(C, *size)` if it is not the sample's, as for volumes that are still to be encoded.
        null_label: stands for a label that was dropped; None if labels are never dropped.
        label_dropout: share of labels to drop; None for models without labels, for which nothing is drawn.
        condition_dropout: share of each clinical condition to drop.
        unconditional: share of samples of which all conditions and the label are dropped.
    """

    objective: Objective
    seed: int
    shape: tuple[int, ...] | None = None
    null_label: int | None = None
    label_dropout: float | None = None
    condition_dropout: float = 0.0
    unconditional: float = 0.0

    def noise_for(self, sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(sample.shape if self.shape is None else self.shape, generator=generator)
        if strength := self.objective.offset_noise_strength:
            noise += strength * torch.randn(len(noise), *(1,) * (noise.ndim - 1), generator=generator)
        return noise


class NoisyDataset(Dataset):
    """Training samples by visit number, each with its noise and time."""

    def __init__(
        self, samples: SamplesByVisit, noising: Noising, augmentation: LatentAugmentation | None = None
    ) -> None:
        self.samples = samples
        self.noising = noising
        self.augmentation = None if augmentation is None or augmentation.is_none else augmentation
        self.seed = seed_for(noising.seed, "noise")
        self.dropout_seed = seed_for(noising.seed, "clinical conditions")

    def __getitem__(self, visit: int) -> Batch:
        item, noising = self.samples[visit], self.noising
        generator = generator_for(self.seed, visit)
        item["timestep"] = noising.objective.draw_time(generator)
        if noising.label_dropout is not None:
            is_dropped = torch.rand((), generator=generator) < noising.label_dropout
            if "label" in item and noising.null_label is not None and is_dropped:
                item["label"] = torch.tensor(noising.null_label)
        if "clinical" in item:
            drawn = generator_for(self.dropout_seed, visit)  # so that conditions do not change the noise
            item["clinical"], is_alone = dropped_at_random(
                item["clinical"], noising.condition_dropout, noising.unconditional, drawn
            )
            if is_alone and "label" in item and noising.null_label is not None:
                item["label"] = torch.tensor(noising.null_label)
        if self.augmentation is not None:
            item["augmentation"] = self.augmentation.draw(noising.seed, visit)
        item["noise"] = noising.noise_for(item["sample"], generator)
        return item


class ValidationDataset(Dataset):
    """Validation samples: every sample at several noise levels, with the same noise at every validation.

    Times are stratified, one from each of `levels` equal parts of the training distribution, so that the mean over a
    few of them varies little. The set is padded to a multiple of `multiple` by samples of weight 0, so that all
    processes get equally many.
    """

    def __init__(
        self, samples: "LabelledSamples | Subset[Batch]", noising: Noising, levels: int, multiple: int
    ) -> None:
        self.samples = samples
        self.noising = noising
        self.levels = levels
        self.multiple = multiple
        self.real = len(samples) * levels
        self.size = -(-self.real // multiple) * multiple
        self.seed = seed_for(noising.seed, "validation")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Batch:
        index, level = divmod(place % self.real, self.levels)
        generator = generator_for(self.seed, place % self.real)
        item = self.samples[index]
        share = (level + torch.rand((), generator=generator, dtype=torch.float64)) / self.levels
        item["timestep"] = self.noising.objective.time_at(share)
        item["noise"] = self.noising.noise_for(item["sample"], generator)
        return {**item, "weight": torch.tensor(float(place < self.real)), "place": torch.tensor(place % self.real)}

    def with_samples(self, others: LabelledSamples) -> "ValidationDataset":
        """Return the same times and noises for equally many other samples, evenly spaced; few ones occur repeatedly."""
        places = torch.linspace(0, len(others) - 1, len(self.samples)).round().int().tolist()
        chosen = Subset(others, places)  # type: ignore[arg-type,var-annotated]  # it only needs to be indexed
        return ValidationDataset(chosen, self.noising, self.levels, self.multiple)
