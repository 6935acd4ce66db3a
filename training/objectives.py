"""Training objectives: how samples are corrupted, what a model predicts, and how the prediction is compared.

Each objective is one class. It draws the times, corrupts clean samples, states the target and the loss, makes the
scheduler that samples with it, and checks that a trained model belongs to it. The config section `diffusion` (or
`process`) is made from the objective's constructor; in `diffusion`, the key `objective` names one of
`LATENT_OBJECTIVES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.utils.data import Dataset, Subset

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.schedulers import NoiseAndImageScheduler, cosine_betas, make_scheduler
from cardiodit.schedulers.solvers import FLOW, MOST_TIMESTEPS
from cardiodit.training.harness.schedule import SampleOrder, seed_for
from cardiodit.training.latent_augmentation import LatentAugmentation

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
}
Prediction = Literal["v_prediction", "epsilon", "sample"]
LOG_VARIANCE_RANGE = (-20.0, 5.0)

Batch = dict[str, Any]


class Objective:
    """Base of the objectives. Times are integers of a schedule, uniformly drawn, unless a subclass says otherwise.

    Args:
        num_train_timesteps: steps of the schedule.
        noise_power: 1 draws all times equally often; with larger numbers, the share of times up to t is (t / T)^power.
    """

    model_config: dict[str, Any]  # what the config of a model that was trained with it must say

    def __init__(self, num_train_timesteps: int, noise_power: float = 1.0) -> None:
        if num_train_timesteps > MOST_TIMESTEPS:
            raise CardioDiTError(f"num_train_timesteps is {num_train_timesteps}; at most {MOST_TIMESTEPS} are used.")
        self.num_train_timesteps = num_train_timesteps
        self.noise_power = noise_power

    @classmethod
    def kept_from(cls, model_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that a trained model fixes when it is fine-tuned."""
        return {}

    def draw_time(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the time of a training sample, a scalar."""
        time = torch.randint(self.num_train_timesteps, (), generator=generator)
        return self.time_at((time + 0.5) / self.num_train_timesteps)

    def time_at(self, share: torch.Tensor) -> torch.Tensor:
        """Return the time below which a share in [0, 1) of all drawn times lies: the quantile function of the draw.

        It decides how often each time is drawn, both in training and in validation.
        """
        times = (share.double() ** (1 / self.noise_power) * self.num_train_timesteps).long()
        return times.clamp(max=self.num_train_timesteps - 1)

    def corrupt(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the noisy samples `(B, C, *size)` at times `(B,)`."""
        raise NotImplementedError

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return what the model is to predict."""
        raise NotImplementedError

    def error(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the error of each voxel; its mean is the loss."""
        raise NotImplementedError

    def sampling_scheduler(self) -> Any:
        """Make the scheduler that samples with a model trained this way."""
        raise NotImplementedError

    def losses(self, model: torch.nn.Module, clean: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each sample `(B,)`; `clean` `(B, C, *size)` is as the model sees it, latents scaled."""
        noise, time = batch["noise"], batch["timestep"]
        inputs = {name: batch[key] for name, key in MODEL_INPUTS.items() if key in batch}
        if "condition" in inputs:
            inputs["condition"] = inputs["condition"].float()  # masks are loaded as uint8
        predicted = model(self.corrupt(clean, noise, time), time, return_dict=False, **inputs)[0].float()
        return self.error(predicted, self.target(clean, noise, time)).flatten(1).mean(dim=1)

    def conflicts(self, model_config: Any) -> list[str]:
        """Return a phrase for each entry by which a trained model shows that it had another objective."""
        return [
            f"{key} is {value} here and {model_config[key]} there"
            for key, value in self.model_config.items()
            if value != model_config[key]
        ]


MODEL_INPUTS = {"class_labels": "label", "condition": "condition"}  # argument of the model, key of the batch


class Denoising(Objective):
    """Prediction of v, ε or x0 on the squared-cosine schedule, as published for CardioDiT and VolDiT.

    Args:
        num_train_timesteps: number of steps of the squared-cosine noise schedule.
        prediction_type: what the model predicts: the velocity v, the noise or the clean sample.
        loss: loss function between prediction and target.
        noise_power: see `Objective`.
    """

    def __init__(
        self,
        num_train_timesteps: int = 300,
        prediction_type: Prediction = "v_prediction",
        loss: Literal["smooth_l1", "mse", "l1"] = "smooth_l1",
        noise_power: float = 1.0,
    ) -> None:
        super().__init__(num_train_timesteps, noise_power)
        if prediction_type not in get_args(Prediction):  # such as the base of an adapter, trained by flow matching
            raise CardioDiTError(
                f"A model that predicts {prediction_type!r} cannot be trained, or steered by an adapter, with the "
                f"objective `denoising`, which is for {', '.join(get_args(Prediction))}."
            )
        self.prediction_type, self.loss = prediction_type, loss
        self.model_config = {"prediction_type": prediction_type}
        self.betas = cosine_betas(num_train_timesteps)
        self.scheduler: DDPMScheduler = make_scheduler("ddpm", num_train_timesteps, self.betas, prediction_type)

    @classmethod
    def kept_from(cls, model_config: Mapping[str, Any]) -> dict[str, Any]:
        trained = model_config["prediction_type"]
        return {"prediction_type": trained} if trained in get_args(Prediction) else {}

    def corrupt(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(clean, noise, time)

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans and Ho, arXiv:2202.00512, appendix D), ε or x0."""
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(clean, noise, time)
        return noise if self.prediction_type == "epsilon" else clean

    def error(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if predicted.shape[1] == 2 * target.shape[1]:
            mean, log_variance = predicted.chunk(2, dim=1)
            return gaussian_nll(mean, log_variance, target)
        return LOSSES[self.loss](predicted, target, reduction="none")

    def sampling_scheduler(self) -> Any:
        return make_scheduler("dpm++", self.num_train_timesteps, self.betas, self.prediction_type)


class FlowMatching(Objective):
    """Prediction of the velocity ε − x0 on the straight line x_t = (1 − t)·x0 + t·ε, as CardioDiT and VolDiT do now.

    The model is given t · num_train_timesteps. Lipman et al., arXiv:2210.02747; times as in Esser et al.,
    arXiv:2403.03206, section 3.1.

    Args:
        num_train_timesteps: time of pure noise, as the model sees it.
        sample_method: distribution of training times; logit_normal trains the middle more often.
        logit_mean, logit_std: mean and standard deviation of logit(t) with logit_normal.
        loss: loss function between prediction and target.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sample_method: Literal["logit_normal", "uniform"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        loss: Literal["smooth_l1", "mse", "l1"] = "smooth_l1",
    ) -> None:
        super().__init__(num_train_timesteps)
        self.sample_method, self.logit_mean, self.logit_std, self.loss = sample_method, logit_mean, logit_std, loss
        self.model_config = {"prediction_type": FLOW}

    def draw_time(self, generator: torch.Generator) -> torch.Tensor:
        return self.time_at(torch.rand((), generator=generator, dtype=torch.float64))

    def time_at(self, share: torch.Tensor) -> torch.Tensor:
        """Return a time, a fraction of `num_train_timesteps` that need not be whole."""
        if self.sample_method == "logit_normal":
            share = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(share.double()))
        return (share * self.num_train_timesteps).float()

    def corrupt(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = (time / self.num_train_timesteps).view(-1, *(1,) * (clean.ndim - 1)).to(clean.dtype)
        return (1 - t) * clean + t * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return noise - clean

    def error(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return LOSSES[self.loss](predicted, target, reduction="none")

    def sampling_scheduler(self) -> Any:
        return FlowMatchEulerDiscreteScheduler(self.num_train_timesteps)


def gaussian_nll(mean: torch.Tensor, log_variance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """exp(−log σ)·error² + log σ, the published loss with a learned variance."""
    log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
    return torch.exp(-log_variance) * (mean - target).square() + log_variance


class NoiseAndImage(Objective):
    """PRDiT's process: the model predicts the noise and the clean image at once; the loss is the sum of both MSEs.

    Args:
        num_train_timesteps: number of time steps from image to noise.
        noise_scale: standard deviation of the noise; images are in [-1, 1].
        solver: solver for sampling; hot is a stochastic predictor-corrector method.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_scale: float = 0.5,
        solver: Literal["hot", "euler"] = "hot",
    ) -> None:
        super().__init__(num_train_timesteps)
        self.model_config = {"num_train_timesteps": num_train_timesteps, "noise_scale": noise_scale}
        self.scheduler = NoiseAndImageScheduler(num_train_timesteps, noise_scale, solver)

    def corrupt(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(clean, noise, time)

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """`(B, 2·C, *size)`: the noise, then the clean image."""
        return self.scheduler.targets(clean, noise)

    def error(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 2 * (predicted - target).square()  # the sum of two means over half of the channels each

    def sampling_scheduler(self) -> NoiseAndImageScheduler:
        return self.scheduler


# The objectives that a config of a latent denoiser can choose (`diffusion.objective`); the first is the default.
LATENT_OBJECTIVES: dict[str, type[Objective]] = {"denoising": Denoising, "flow_matching": FlowMatching}


# --- Samples with their noise and time ---


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
    """

    source: Source
    subjects: Sequence[str]
    labels: Sequence[int] | None = None
    conditions: Source | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        item: Batch = {"sample": self.source[index], "subject": self.subjects[index]}
        if self.labels is not None:
            item["label"] = torch.tensor(self.labels[index])
        if self.conditions is not None:
            item["condition"] = self.conditions[index]
        return item

    def shuffled(self, seed: int) -> "ShuffledSamples":
        return ShuffledSamples(self, SampleOrder(len(self), seed))


@dataclass(frozen=True)
class ShuffledSamples:
    """Samples by visit number, each once per epoch."""

    samples: LabelledSamples
    order: SampleOrder

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
    """

    objective: Objective
    seed: int
    shape: tuple[int, ...] | None = None
    null_label: int | None = None
    label_dropout: float | None = None

    def noise_for(self, sample: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(sample.shape if self.shape is None else self.shape, generator=generator)


class NoisyDataset(Dataset):
    """Training samples by visit number, each with its noise and time."""

    def __init__(
        self, samples: SamplesByVisit, noising: Noising, augmentation: LatentAugmentation | None = None
    ) -> None:
        self.samples = samples
        self.noising = noising
        self.augmentation = None if augmentation is None or augmentation.is_none else augmentation
        self.seed = seed_for(noising.seed, "noise")

    def __getitem__(self, visit: int) -> Batch:
        item, noising = self.samples[visit], self.noising
        generator = generator_for(self.seed, visit)
        item["timestep"] = noising.objective.draw_time(generator)
        if noising.label_dropout is not None:
            is_dropped = torch.rand((), generator=generator) < noising.label_dropout
            if "label" in item and noising.null_label is not None and is_dropped:
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
