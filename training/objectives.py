"""Training objectives: how samples are corrupted, what a model predicts, and how the prediction is compared.

Each objective is one class. It draws the times, corrupts clean samples, states the target and the loss, makes the
scheduler that samples with it, and checks that a trained model belongs to it. The config section `diffusion` (or
`process`) is made from the objective's constructor; in `diffusion`, the key `objective` names one of
`LATENT_OBJECTIVES`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from cardiodit.errors import CardioDiTError
from cardiodit.schedulers import NoiseAndImageScheduler, cosine_betas, make_scheduler
from cardiodit.schedulers.flow_scheduler import FLOW, FLOW_TO_DATA
from cardiodit.schedulers.solvers import MOST_TIMESTEPS, split_prediction, zero_terminal_betas

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
}
Prediction = Literal["v_prediction", "epsilon", "sample"]
Loss = Literal["smooth_l1", "mse", "l1"]
Direction = Literal["data_to_noise", "noise_to_data"]
LOG_VARIANCE_RANGE = (-20.0, 5.0)
SMALLEST_RATIO = 1e-8  # of signal to noise, by which weights are divided
SMALLEST_TIME = 1e-5  # of flow matching, for the same reason

Batch = dict[str, Any]


class Objective:
    """Base of the objectives. Times are integers of a schedule, uniformly drawn, unless a subclass says otherwise.

    Args:
        num_train_timesteps: steps of the schedule.
        noise_power: 1 draws all times equally often; with larger numbers, the share of times up to t is (t / T)^power.
    """

    offset_noise_strength = 0.0  # of noise that is the same in a whole channel
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

    def clean_from(self, predicted: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the clean samples that a prediction implies, for self-conditioning."""
        raise CardioDiTError(f"The objective {type(self).__name__} cannot train self-conditioned models.")

    def weights(self, time: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of each sample's loss `(B,)`; None weights all equally."""
        return None

    def losses(
        self, model: torch.nn.Module, clean: torch.Tensor, batch: Batch, with_estimate: bool = False
    ) -> torch.Tensor:
        """Return the loss of each sample `(B,)`.

        Args:
            model: the model, called like a transformer.
            clean: samples `(B, C, *size)` as the model sees them, latents scaled.
            batch: their noise, times and conditions.
            with_estimate: first let a self-conditioned model estimate the clean samples, and give it the estimate.
        """
        noise, time = batch["noise"], batch["timestep"]
        inputs = {name: batch[key] for name, key in MODEL_INPUTS.items() if key in batch}
        if "condition" in inputs:
            inputs["condition"] = inputs["condition"].float()  # masks are loaded as uint8
        noisy = self.corrupt(clean, noise, time)
        if with_estimate:
            with torch.no_grad():
                first = model(noisy, time, return_dict=False, **inputs)[0].float()
                inputs["self_condition"] = self.clean_from(first, noisy, time)
        predicted = model(noisy, time, return_dict=False, **inputs)[0].float()
        errors = self.error(predicted, self.target(clean, noise, time))
        if "loss_mask" in batch:  # (B, frames): padded frames do not count
            mask = batch["loss_mask"].view(len(errors), *(1,) * (errors.ndim - 2), -1)
            errors = errors * mask / mask.mean(dim=-1, keepdim=True)
        losses = errors.flatten(1).mean(dim=1)
        weights = self.weights(time)
        return losses if weights is None else losses * weights

    def conflicts(self, model_config: Any) -> list[str]:
        """Return a phrase for each entry by which a trained model shows that it had another objective."""
        return [
            f"{key} is {value} here and {model_config[key]} there"
            for key, value in self.model_config.items()
            if value != model_config[key]
        ]


# Argument of the model, key of the batch
MODEL_INPUTS = {
    "class_labels": "label",
    "condition": "condition",
    "phase": "phase",
    "frame_mask": "frame_mask",
    "conditions": "clinical",
}


class Denoising(Objective):
    """Prediction of v, ε or x0 on the squared-cosine schedule, as published for CardioDiT and VolDiT.

    Args:
        num_train_timesteps: number of steps of the squared-cosine noise schedule.
        prediction_type: what the model predicts: the velocity v, the noise or the clean sample.
        loss: loss function between prediction and target.
        noise_power: see `Objective`.
        huber_beta: error at which smooth_l1 changes from quadratic to linear.
        min_snr_gamma: weight steps by their signal-to-noise ratio, limited to this number (Hang et al.,
            arXiv:2303.09556), such as 5; 0 weights all equally.
        offset_noise_strength: standard deviation of noise that is the same everywhere in a channel, added to the noise
            of a training sample, such as 0.1; 0 adds none.
        zero_terminal_snr: let the last step be pure noise, as where sampling starts (Lin et al., arXiv:2305.08891).
    """

    def __init__(
        self,
        num_train_timesteps: int = 300,
        prediction_type: Prediction = "v_prediction",
        loss: Loss = "smooth_l1",
        noise_power: float = 1.0,
        huber_beta: float = 1.0,
        min_snr_gamma: float = 0.0,
        offset_noise_strength: float = 0.0,
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__(num_train_timesteps, noise_power)
        if prediction_type not in get_args(Prediction):  # such as the base of an adapter, trained by flow matching
            raise CardioDiTError(
                f"A model that predicts {prediction_type!r} cannot be trained, or steered by an adapter, with the "
                f"objective `denoising`, which is for {', '.join(get_args(Prediction))}."
            )
        if zero_terminal_snr and prediction_type == "epsilon":
            raise CardioDiTError(
                "zero_terminal_snr does not go with prediction_type epsilon: pure noise, the last step, tells nothing "
                "about the sample. Use v_prediction or sample."
            )
        if zero_terminal_snr and min_snr_gamma:
            raise CardioDiTError(
                "min_snr_gamma does not go with zero_terminal_snr: it weights pure noise, the step at which sampling "
                "starts, with 0, so that it is never learned. Choose one of them."
            )
        check_loss(loss, huber_beta, min_snr_gamma)
        if offset_noise_strength < 0:
            raise CardioDiTError(f"offset_noise_strength={offset_noise_strength} must not be negative.")
        self.prediction_type, self.loss, self.huber_beta = prediction_type, loss, huber_beta
        self.min_snr_gamma, self.offset_noise_strength = min_snr_gamma, offset_noise_strength
        self.model_config = {"prediction_type": prediction_type}
        self.betas = (zero_terminal_betas if zero_terminal_snr else cosine_betas)(num_train_timesteps)
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
        return error_of(self.loss, self.huber_beta, predicted, target)

    def clean_from(self, predicted: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha = self._alphas(time).view(-1, *(1,) * (noisy.ndim - 1)).to(noisy.dtype)
        return split_prediction(self.prediction_type, predicted[:, : noisy.shape[1]], noisy, alpha)[0]

    def weights(self, time: torch.Tensor) -> torch.Tensor | None:
        if not self.min_snr_gamma:
            return None
        alpha = self._alphas(time)
        ratio = alpha / (1 - alpha)
        limited = ratio.clamp(max=self.min_snr_gamma)
        return {
            "v_prediction": limited / (ratio + 1),
            "epsilon": limited / ratio.clamp(min=SMALLEST_RATIO),
            "sample": limited,
        }[self.prediction_type]

    def _alphas(self, time: torch.Tensor) -> torch.Tensor:
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(time.device)
        return self.scheduler.alphas_cumprod[time]

    def sampling_scheduler(self) -> Any:
        return make_scheduler("dpm++", self.num_train_timesteps, self.betas, self.prediction_type)


class FlowMatching(Objective):
    """Prediction of the velocity on the straight line between noise and data, as CardioDiT and VolDiT do now.

    With the direction data_to_noise, x_t = (1 − t)·x0 + t·ε and the velocity is ε − x0; with noise_to_data, as in
    PRDiT, x_t = (1 − t)·ε + t·x0 and it is x0 − ε. The model is given t · num_train_timesteps. Lipman et al.,
    arXiv:2210.02747; times as in Esser et al., arXiv:2403.03206, section 3.1.

    Args:
        num_train_timesteps: largest time, as the model sees it.
        sample_method: distribution of training times; logit_normal trains the middle more often.
        logit_mean, logit_std: mean and standard deviation of logit(t) with logit_normal.
        loss: loss function between prediction and target.
        huber_beta: error at which smooth_l1 changes from quadratic to linear.
        min_snr_gamma: weight times by their signal-to-noise ratio, limited to this number; 0 weights all equally.
        direction: in which direction time runs: data_to_noise, as CardioDiT and VolDiT, or noise_to_data, as PRDiT.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sample_method: Literal["logit_normal", "uniform"] = "logit_normal",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        loss: Loss = "smooth_l1",
        huber_beta: float = 1.0,
        min_snr_gamma: float = 0.0,
        direction: Direction = "data_to_noise",
    ) -> None:
        super().__init__(num_train_timesteps)
        check_loss(loss, huber_beta, min_snr_gamma)
        self.sample_method, self.logit_mean, self.logit_std = sample_method, logit_mean, logit_std
        self.loss, self.huber_beta, self.min_snr_gamma = loss, huber_beta, min_snr_gamma
        self.ends_in_data = direction == "noise_to_data"
        self.model_config = {"prediction_type": FLOW_TO_DATA if self.ends_in_data else FLOW}

    def draw_time(self, generator: torch.Generator) -> torch.Tensor:
        return self.time_at(torch.rand((), generator=generator, dtype=torch.float64))

    def time_at(self, share: torch.Tensor) -> torch.Tensor:
        """Return a time, a fraction of `num_train_timesteps` that need not be whole."""
        if self.sample_method == "logit_normal":
            share = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(share.double()))
        return (share * self.num_train_timesteps).float()

    def corrupt(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = self._share(time, clean)
        first, last = (noise, clean) if self.ends_in_data else (clean, noise)
        return (1 - t) * first + t * last

    def target(self, clean: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return clean - noise if self.ends_in_data else noise - clean

    def error(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return error_of(self.loss, self.huber_beta, predicted, target)

    def clean_from(self, predicted: torch.Tensor, noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = self._share(time, noisy)
        return noisy + (1 - t) * predicted if self.ends_in_data else noisy - t * predicted

    def weights(self, time: torch.Tensor) -> torch.Tensor | None:
        if not self.min_snr_gamma:
            return None
        noise = time / self.num_train_timesteps
        noise = (1 - noise if self.ends_in_data else noise).clamp(min=SMALLEST_TIME)
        ratio = ((1 - noise) / noise).square()
        return ratio.clamp(max=self.min_snr_gamma) / ratio.clamp(min=SMALLEST_RATIO)

    def _share(self, time: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return (time / self.num_train_timesteps).view(-1, *(1,) * (like.ndim - 1)).to(like.dtype)

    def sampling_scheduler(self) -> Any:
        return FlowMatchEulerDiscreteScheduler(self.num_train_timesteps, invert_sigmas=self.ends_in_data)


class VoxelFlowMatching(FlowMatching):
    """Flow matching of voxels as published for PRDiT: from noise to data, at uniform times, with a squared error.

    The arguments are documented in `FlowMatching`.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sample_method: Literal["logit_normal", "uniform"] = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        loss: Loss = "mse",
        huber_beta: float = 1.0,
        min_snr_gamma: float = 0.0,
        direction: Direction = "noise_to_data",
    ) -> None:
        super().__init__(
            num_train_timesteps, sample_method, logit_mean, logit_std, loss, huber_beta, min_snr_gamma, direction
        )


def check_loss(loss: str, huber_beta: float, min_snr_gamma: float) -> None:
    """Raise an error for settings of a loss that contradict each other."""
    if huber_beta <= 0:
        raise CardioDiTError(f"huber_beta={huber_beta} must be a positive number.")
    if huber_beta != 1.0 and loss != "smooth_l1":
        raise CardioDiTError(f"huber_beta={huber_beta} belongs to the loss smooth_l1, and the loss is {loss}.")
    if min_snr_gamma < 0:
        raise CardioDiTError(f"min_snr_gamma={min_snr_gamma} must not be negative; 0 weights all steps equally.")


def error_of(loss: str, huber_beta: float, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the error of each voxel."""
    extra = {"beta": huber_beta} if loss == "smooth_l1" else {}
    return LOSSES[loss](predicted, target, reduction="none", **extra)


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
        self.scheduler = NoiseAndImageScheduler(num_train_timesteps, noise_scale, solver)
        names = ("prediction_type", "num_train_timesteps", "noise_scale")
        self.model_config = {name: self.scheduler.config[name] for name in names}

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
# The same for voxels (`process.objective`).
VOXEL_OBJECTIVES: dict[str, type[Objective]] = {"noise_and_image": NoiseAndImage, "flow_matching": VoxelFlowMatching}
