"""PRDiT's process: between noise and image on a quarter of a circle, x_t = cos β·x0 + sin β·ε with β = πt/2T."""

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
    """`prev_sample` is what the next step begins with, `pred_original_sample` the clean volume as predicted now."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


class NoiseAndImageScheduler(SchedulerMixin, ConfigMixin):
    """For models that predict noise and clean image at once, as twice the channels: noise first.

    Args:
        num_train_timesteps: T.
        noise_scale: standard deviation of ε.
        solver: "euler", or "hot": the stochastic predictor-corrector, which steps twice as far and adds noise again.
        prediction_type: there is only "noise_and_image".
    """

    order = 1

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
            raise CardioDiTError(f"There is no solver {solver!r} between noise and image; choose one of {known}.")
        if prediction_type != "noise_and_image":
            raise CardioDiTError(f"prediction_type={prediction_type!r}: this process needs 'noise_and_image'.")
        self.init_noise_sigma = noise_scale
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """The published timesteps, T // N apart: for N that do not divide T there are a few more than N.

        The last one, 0, is left out: there is nothing left to do, and a model would be asked in vain.
        """
        total = self.config.num_train_timesteps
        if not 1 < num_inference_steps <= total:
            raise CardioDiTError(f"num_inference_steps={num_inference_steps} must be from 2 to {total}.")
        self.num_inference_steps = num_inference_steps
        self.step_length = total // num_inference_steps
        if (taken := math.ceil(total / self.step_length)) != num_inference_steps:
            logger.warning(
                f"{num_inference_steps} does not divide {total}: with timesteps {self.step_length} apart, as "
                f"published, {taken} steps are taken."
            )
        self.timesteps = torch.arange(self.step_length, total, self.step_length, device=device).flip(0)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | int | None = None) -> torch.Tensor:
        """Models take samples as they are."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int
    ) -> torch.Tensor:
        """x_t of clean samples and standard normal noise, at one timestep or one for each sample."""
        angle = self._angle(timesteps, original_samples)
        noisy = angle.cos() * original_samples + angle.sin() * self.config.noise_scale * noise
        return noisy.to(original_samples.dtype)

    def targets(self, original_samples: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What a model is to predict, (B, 2·C, ...): ε, then x0."""
        return torch.cat([self.config.noise_scale * noise, original_samples], dim=1)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> NoiseAndImageSchedulerOutput | tuple[torch.Tensor]:
        """From one timestep to the next.

        Args:
            model_output: (B, 2·C, ...), noise and clean image.
            timestep: at which it was predicted.
            sample: (B, C, ...), x_t.
            generator: of the noise that "hot" adds.
            return_dict: an output object (default) or a tuple.
        """
        if model_output.shape[1] != 2 * sample.shape[1]:
            raise CardioDiTError(
                f"The model predicted {model_output.shape[1]} channels for samples of {sample.shape[1]}; noise and "
                "image, twice as many, were expected."
            )
        noise, image = model_output.to(sample.dtype).chunk(2, dim=1)
        now, length = int(timestep), self.step_length
        angle = self._angle(now, sample)
        direction = math.pi / 2 / self.config.num_train_timesteps * (angle.sin() * image - angle.cos() * noise)
        is_hot = self.config.solver == "hot" and now - 2 * length > 0
        previous = sample + (2 * length if is_hot else length) * direction
        if is_hot:
            fresh = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            keep = self._angle(now - length, sample).cos() / self._angle(now - 2 * length, sample).cos()
            previous = keep * previous + (1 - keep.square()).clamp(min=0).sqrt() * self.config.noise_scale * fresh
        return NoiseAndImageSchedulerOutput(previous, image) if return_dict else (previous,)

    def _angle(self, timesteps: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
        """β of each sample, to be multiplied with it; in float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        times = torch.as_tensor(timesteps, device=like.device).to(dtype)
        angle = math.pi / 2 * times / self.config.num_train_timesteps
        return angle.view(-1, *(1,) * (like.ndim - 1)) if angle.ndim else angle

    def __len__(self) -> int:
        return self.config.num_train_timesteps
