"""Solvers of flow matching that call the model several times per step or renew noise, which diffusers lacks.

diffusers' FlowMatchEulerDiscreteScheduler is the Euler solver. Its FlowMatchHeunDiscreteScheduler ends with an Euler
step and with other times, so it does not compute what the published models do.
"""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from cardiodit.errors import CardioDiTError

# Prediction types of models that are trained by flow matching: the velocity from data (t = 0) to noise (t = 1), as
# CardioDiT and VolDiT, or from noise (t = 0) to data (t = 1), as PRDiT.
FLOW, FLOW_TO_DATA = FLOWS = ("flow", "flow_to_data")
# Where in a step each solver calls the model.
FLOW_SOLVERS = {"heun": (0.0, 1.0), "rk4": (0.0, 0.5, 0.5, 1.0), "pc": (0.0,), "pc_heun": (0.0, 1.0)}
RENEWING = ("pc", "pc_heun")


class FlowScheduler(SchedulerMixin, ConfigMixin):
    """Scheduler for models trained by flow matching; a step of the solver takes `order` model calls.

    Args:
        num_train_timesteps: largest time, as the model sees it.
        solver: heun (second order), rk4 (the classical Runge-Kutta method, fourth order), or a predictor-corrector
            method, which splits a sample into data and noise and can renew a share of the noise (`eta`): pc, or
            pc_heun, which renews less where the step was accurate.
        prediction_type: flow, the velocity from data (t = 0) to noise (t = 1), or flow_to_data, from noise (t = 0) to
            data (t = 1).
        error_target: relative error of a step at which pc_heun renews the full share; larger values renew less.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        solver: str = "heun",
        prediction_type: str = FLOW,
        error_target: float = 1.0,
    ) -> None:
        if solver not in FLOW_SOLVERS:
            raise CardioDiTError(
                f"There is no solver {solver!r} for a FlowScheduler; choose one of {', '.join(FLOW_SOLVERS)}."
            )
        if prediction_type not in FLOWS:
            raise CardioDiTError(f"prediction_type={prediction_type!r}: this scheduler needs {' or '.join(FLOWS)}.")
        if not error_target > 0:
            raise CardioDiTError(f"error_target={error_target} must be a positive number.")
        self.init_noise_sigma = 1.0
        self.set_timesteps(num_train_timesteps)

    @property
    def order(self) -> int:
        """Model calls per step."""
        return len(FLOW_SOLVERS[self.config.solver])

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the time of each model call, with steps of equal length."""
        self.num_inference_steps = num_inference_steps
        calls = [
            (k + part) / num_inference_steps
            for k in range(num_inference_steps)
            for part in FLOW_SOLVERS[self.config.solver]
        ]
        progress = torch.tensor(calls, dtype=torch.float64).clamp(max=1.0)  # from noise, 0, to data, 1
        times = progress if self.config.prediction_type == FLOW_TO_DATA else 1 - progress
        self.timesteps = (times * self.config.num_train_timesteps).to(device, torch.float32)
        self._call = 0
        self._velocities: list[torch.Tensor] = []

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """Return the sample unchanged, as flow matching does not scale model inputs."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Use the next of the model calls, which must be made in the order of `timesteps`.

        Args:
            model_output: predicted velocity (B, C, ...).
            timestep: time of the prediction, one of `timesteps`.
            sample: input of the model (B, C, ...).
            eta: share of the noise that pc and pc_heun renew in a step, 0 to 1.
            generator: random generator of the renewed noise, or one for each sample.
            return_dict: return an output with `prev_sample` (default) or a tuple.
        """
        if eta and self.config.solver not in RENEWING:
            raise CardioDiTError(
                f"eta={eta}: the solver {self.config.solver} renews no noise; {' and '.join(RENEWING)} do."
            )
        velocity = model_output.to(sample.dtype)
        if self.config.prediction_type == FLOW:
            velocity = -velocity  # towards the data
        number, stage = divmod(self._call, self.order)
        self._call += 1
        if stage == 0:
            self._start, self._velocities = sample, []
        self._velocities.append(velocity)
        start = number / self.num_inference_steps
        end = min(start + 1 / self.num_inference_steps, 1.0)
        fresh = None
        if eta and stage == self.order - 1:
            fresh = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        following = getattr(self, f"_{self.config.solver}")(start, end, eta, fresh)
        return SchedulerOutput(following) if return_dict else (following,)

    def _heun(self, start: float, end: float, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
        length = 1 / self.num_inference_steps
        if len(self._velocities) == 1:
            return self._start + length * self._velocities[0]
        return self._start + length / 2 * (self._velocities[0] + self._velocities[1])

    def _rk4(self, start: float, end: float, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
        length = 1 / self.num_inference_steps
        if len(self._velocities) < self.order:
            share = (0.5, 0.5, 1.0)[len(self._velocities) - 1]
            return self._start + share * length * self._velocities[-1]
        first, second, third, last = self._velocities
        return self._start + length / 6 * (first + 2 * second + 2 * third + last)

    def _pc(self, start: float, end: float, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
        return _rejoined(self._start, self._velocities[0], start, end, eta, fresh)

    def _pc_heun(self, start: float, end: float, eta: float, fresh: torch.Tensor | None) -> torch.Tensor:
        length, corrected = 1 / self.num_inference_steps, self._heun(start, end, eta, fresh)
        if len(self._velocities) == 1 or fresh is None:
            return corrected
        euler = self._start + length * self._velocities[0]
        error = _rms(corrected - euler) / (_rms(corrected) + 1e-6) / length**2 / self.config.error_target
        share = eta * error.clamp(max=1) * (1 - end)
        return _rejoined(corrected, self._velocities[1], end, end, share, fresh)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _rejoined(
    sample: torch.Tensor,
    velocity: torch.Tensor,
    time: float,
    end: float,
    eta: float | torch.Tensor,
    fresh: torch.Tensor | None,
) -> torch.Tensor:
    """Split a sample at a time into data and noise, renew a share of the noise, and join them again at another time."""
    data, noise = sample + (1 - time) * velocity, sample - time * velocity
    if fresh is not None:
        kept = (1 - torch.as_tensor(eta, device=sample.device).square()).sqrt()
        noise = kept * noise + eta * fresh
    return end * data + (1 - end) * noise


def _rms(values: torch.Tensor) -> torch.Tensor:
    """Root mean square of each sample, (B, 1, ...)."""
    return values.square().mean(dim=tuple(range(1, values.ndim)), keepdim=True).sqrt()
