"""PRDiT's diffusion process on a quarter circle between image and noise: x_t = cos β·x0 + sin β·ε with β = πt/2T."""

import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

from cardiodit.errors import CardioDiTError

NOISE_AND_IMAGE_SOLVERS = ("hot", "euler")

logger = logging.get_logger(__name__)


@dataclass
class NoiseAndImageSchedulerOutput(BaseOutput):
    """Result of a step.

    Args:
        prev_sample: input of the next step.
        pred_original_sample: clean volume as predicted at this step.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class NoiseAndImageScheduler(SchedulerMixin, ConfigMixin):
    """Scheduler for models that predict noise and clean image together, as twice the channels, noise first.

    Args:
        num_train_timesteps: number of timesteps of the process, T.
        noise_scale: standard deviation of the noise ε.
        solver: "euler", or "hot", a stochastic predictor-corrector that steps twice as far and adds noise again.
        prediction_type: training target of the model; only "noise_and_image" is supported.
    """

    order = 1
    solvers = NOISE_AND_IMAGE_SOLVERS

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_scale: float = 0.5,
        solver: str = "hot",
        prediction_type: str = "noise_and_image",
    ) -> None:
        if solver not in NOISE_AND_IMAGE_SOLVERS:
            known = ", ".join(NOISE_AND_IMAGE_SOLVERS)
            raise CardioDiTError(f"There is no solver {solver!r} for a NoiseAndImageScheduler; choose one of {known}.")
        if prediction_type != "noise_and_image":
            raise CardioDiTError(f"prediction_type={prediction_type!r}: this scheduler needs 'noise_and_image'.")
        self.init_noise_sigma = noise_scale
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the published timesteps, T // N apart; if N does not divide T there are a few more than N.

        The last one, 0, is left out because its step changes nothing.
        """
        total = self.config.num_train_timesteps
        if not 1 < num_inference_steps <= total:
            raise CardioDiTError(f"num_inference_steps={num_inference_steps} must be from 2 to {total}.")
        self.num_inference_steps = num_inference_steps
        self.step_length = total // num_inference_steps
        if (actual_steps := math.ceil(total / self.step_length)) != num_inference_steps:
            logger.warning(
                f"{num_inference_steps} does not divide {total}: with timesteps {self.step_length} apart, as "
                f"published, {actual_steps} steps are taken."
            )
        self.timesteps = torch.arange(self.step_length, total, self.step_length, device=device).flip(0)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | int | None = None) -> torch.Tensor:
        """Return the sample unchanged, as this process does not scale model inputs."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int
    ) -> torch.Tensor:
        """Return x_t from clean samples and standard normal noise, at one timestep or one for each sample."""
        angle = self._angle(timesteps, original_samples)
        noisy = angle.cos() * original_samples + angle.sin() * self.config.noise_scale * noise
        return noisy.to(original_samples.dtype)

    def targets(self, original_samples: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the training target (B, 2·C, ...): ε, followed by x0."""
        return torch.cat([self.config.noise_scale * noise, original_samples], dim=1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        variance_noise: torch.Tensor | None = None,
    ) -> NoiseAndImageSchedulerOutput | tuple[torch.Tensor]:
        """Step from one timestep to the next.

        Args:
            model_output: predicted noise and clean image (B, 2·C, ...).
            timestep: timestep of the prediction.
            sample: x_t (B, C, ...).
            generator: random generator of the noise that "hot" adds, or one for each sample.
            return_dict: return a `NoiseAndImageSchedulerOutput` (default) or a tuple.
            variance_noise: standard normal noise for "hot", instead of drawing it.
        """
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise CardioDiTError(
                f"The model predicted {model_output.shape[1]} channels for samples of {sample.shape[1]}; expected "
                "noise and image, which is twice as many."
            )
        noise, image = model_output.to(sample.dtype).chunk(2, dim=1)
        now, length = int(timestep), self.step_length
        angle = self._angle(now, sample)
        direction = math.pi / 2 / self.config.num_train_timesteps * (angle.sin() * image - angle.cos() * noise)
        is_hot = self.draws_noise(now)
        previous = sample + (2 * length if is_hot else length) * direction
        if is_hot:
            fresh_noise = variance_noise
            if fresh_noise is None:
                fresh_noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            keep = self._angle(now - length, sample).cos() / self._angle(now - 2 * length, sample).cos()
            previous = keep * previous + (1 - keep.square()).clamp(min=0).sqrt() * self.config.noise_scale * fresh_noise
        return NoiseAndImageSchedulerOutput(previous, image) if return_dict else (previous,)

    def draws_noise(self, timestep: int) -> bool:
        """Return whether the step from a timestep adds noise."""
        return self.config.solver == "hot" and timestep - 2 * self.step_length > 0

    def _angle(self, timesteps: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
        """Return β of each sample, broadcastable to `like`, in at least float32; of a number, on the CPU."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        times = timesteps.to(like.device) if isinstance(timesteps, torch.Tensor) else torch.tensor(timesteps)
        angle = math.pi / 2 * times.to(dtype) / self.config.num_train_timesteps
        return angle.view(-1, *(1,) * (like.ndim - 1)) if angle.ndim else angle

    def __len__(self) -> int:
        return self.config.num_train_timesteps
