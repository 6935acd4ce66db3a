"""Stage 2's samples, loss and validation: noise is put on latents, and a transformer is asked to undo it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch.utils.data import Dataset

from cardiodit._util.randomness import generator_for
from cardiodit.schedulers import cosine_betas, make_scheduler
from cardiodit.training.harness.sampler import SampleOrder, seed_for
from cardiodit.training.settings import DiffusionSettings

ERRORS: dict[str, Callable[..., torch.Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
}
LOG_VARIANCES = (-20.0, 5.0)  # what a learned log σ is kept within

Batch = dict[str, Any]


class Source(Protocol):
    """Latents from files, or volumes that are still to be encoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class LabelledSamples:
    """Samples with what is known of them.

    Args:
        source: tensors by index.
        subjects: whose each is.
        labels: class of each, or None.
    """

    source: Source
    subjects: Sequence[str]
    labels: Sequence[int] | None = None


@dataclass(frozen=True)
class Noising:
    """How noise is drawn: everything by a visit's number, so by nothing else.

    Args:
        shape: of a latent `(C, *size)`.
        timesteps: of the schedule.
        seed: of the run.
        null_label: stands for a label that was dropped; None where labels are never dropped.
        label_dropout: share of labels dropped.
        noise_power: 1 visits all timesteps alike; by larger numbers, the share of those up to t is (t / T)^power.
    """

    shape: tuple[int, ...]
    timesteps: int
    seed: int
    null_label: int | None = None
    label_dropout: float = 0.0
    noise_power: float = 1.0

    def timestep_at(self, share: torch.Tensor) -> torch.Tensor:
        """That below which a share of all visits lies, the share being in [0, 1)."""
        return (share.double() ** (1 / self.noise_power) * self.timesteps).long().clamp(max=self.timesteps - 1)


class NoisyDataset(Dataset):
    """Training samples by visit: a latent (or volume), its noise, its timestep and its label."""

    def __init__(self, patients: LabelledSamples, noising: Noising) -> None:
        self.patients = patients
        self.noising = noising
        self.order = SampleOrder(len(patients.source), noising.seed)
        self.seed = seed_for(noising.seed, "noise")

    def __getitem__(self, visit: int) -> Batch:
        index, how = self.order[visit], self.noising
        generator = generator_for(self.seed, visit)
        timestep = torch.randint(how.timesteps, (), generator=generator)
        if how.noise_power != 1:
            timestep = how.timestep_at((timestep + 0.5) / how.timesteps)
        is_dropped = torch.rand((), generator=generator) < how.label_dropout
        noise = torch.randn(how.shape, generator=generator)
        item = _item(self.patients, index, timestep, noise)
        if "label" in item and how.null_label is not None and is_dropped:
            item["label"] = torch.tensor(how.null_label)
        return item


class ValidationDataset(Dataset):
    """Validation samples: every patient at several noise levels, the same ones and the same noise every time.

    Timesteps are stratified (one from each of `levels` equal parts of the schedule), so that the mean over a few tells
    much. Padded to a multiple of `multiple` by samples that weigh nothing, so that all processes have equally many.
    """

    def __init__(self, patients: LabelledSamples, noising: Noising, levels: int, multiple: int) -> None:
        self.patients = patients
        self.noising = noising
        self.levels = levels
        self.real = len(patients.source) * levels
        self.size = -(-self.real // multiple) * multiple
        self.seed = seed_for(noising.seed, "validation")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Batch:
        index, level = divmod(place % self.real, self.levels)
        generator = generator_for(self.seed, place % self.real)
        share = (level + torch.rand((), generator=generator, dtype=torch.float64)) / self.levels
        noise = torch.randn(self.noising.shape, generator=generator)
        item = _item(self.patients, index, self.noising.timestep_at(share), noise)
        return {**item, "weight": torch.tensor(float(place < self.real))}


def _item(patients: LabelledSamples, index: int, timestep: torch.Tensor, noise: torch.Tensor) -> Batch:
    item = {
        "sample": patients.source[index],
        "noise": noise,
        "timestep": timestep,
        "subject": patients.subjects[index],
    }
    return item if patients.labels is None else {**item, "label": torch.tensor(patients.labels[index])}


class Process(Protocol):
    """What is undone, and the error that is lowered."""

    def losses(self, model: torch.nn.Module, latents: torch.Tensor, batch: Batch) -> torch.Tensor: ...


class Denoising:
    """The published process and loss (`DiffusionSettings`)."""

    def __init__(self, settings: DiffusionSettings, device: torch.device | str) -> None:
        steps = settings.num_train_timesteps
        self.settings = settings
        self.betas = cosine_betas(steps)
        self.scheduler: DDPMScheduler = make_scheduler("ddpm", steps, self.betas, settings.prediction_type)
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(device)  # else copied at every step

    def losses(self, model: torch.nn.Module, latents: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of each sample `(B,)`; latents `(B, C, *size)` as the transformer sees them, scaled."""
        noise, timesteps = batch["noise"], batch["timestep"]
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        steering = {"condition": batch["condition"]} if "condition" in batch else {}
        predicted = model(noisy, timesteps, class_labels=batch.get("label"), return_dict=False, **steering)[0].float()
        target = self.target(latents, noise, timesteps)
        if predicted.shape[1] == 2 * target.shape[1]:
            mean, log_variance = predicted.chunk(2, dim=1)
            return gaussian_nll(mean, log_variance, target).flatten(1).mean(dim=1)
        error = ERRORS[self.settings.loss](predicted, target, reduction="none")
        return error.flatten(1).mean(dim=1)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What is to be predicted; v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans and Ho, arXiv:2202.00512, appendix D)."""
        if self.settings.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise if self.settings.prediction_type == "epsilon" else latents


def gaussian_nll(mean: torch.Tensor, log_variance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """exp(−log σ)·error² + log σ: the published loss with a learned variance."""
    log_variance = log_variance.clamp(*LOG_VARIANCES)
    return torch.exp(-log_variance) * (mean - target).square() + log_variance
