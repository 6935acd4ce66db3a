"""Checks and corrections of diffusers' schedulers that every pipeline needs."""

import inspect
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from cardiodit._util.foreign_files import read_object
from cardiodit._util.gpu import upload
from cardiodit.errors import CardioDiTError, reading
from cardiodit.models.loading import check_config
from cardiodit.schedulers.flow_scheduler import FLOWS
from cardiodit.schedulers.solvers import (
    MOST_TIMESTEPS,
    SOLVERS,
    avoid_zero_signal,
    ddim_step,
    prediction_of,
    use_exact_betas,
)

SCHEDULER_CONFIG = "scheduler_config.json"
DRAWING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")

logger = logging.get_logger(__name__)


def check_scheduler_folder(folder: Path) -> None:
    """Raise an error if a scheduler's config asks for an absurd number of training steps."""
    if not (folder / SCHEDULER_CONFIG).is_file():
        return
    config = read_object(folder / SCHEDULER_CONFIG)
    steps = config.get("num_train_timesteps", 1)
    if not isinstance(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
        raise CardioDiTError(
            f"{folder / SCHEDULER_CONFIG}: num_train_timesteps must be an integer from 1 to {MOST_TIMESTEPS}, found "
            f"{str(steps)[:40]!r}."
        )
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if isinstance(kind, type):
        check_config(config, kind, str(folder / SCHEDULER_CONFIG))


def check_scheduler(scheduler: SchedulerMixin, prediction_type: str) -> None:
    """Check that the scheduler expects what the model was trained to predict."""
    name = type(scheduler).__name__
    found = prediction_of(scheduler)
    if found is None:
        raise CardioDiTError(
            f"{name} has no prediction_type, so it cannot sample a model trained for {prediction_type}. "
            f"Use cardiodit.change_solver(pipe.scheduler, ...) to choose one of {', '.join(SOLVERS)}."
        )
    if found != prediction_type and not {found, prediction_type}.isdisjoint(FLOWS):
        raise CardioDiTError(
            f"The scheduler ({name}) is for models that predict {found}, but this one was trained for "
            f"{prediction_type}. Models trained by flow matching need diffusers' FlowMatchEulerDiscreteScheduler, "
            f"others one of {', '.join(SOLVERS)}."
        )
    if found != prediction_type:
        raise CardioDiTError(
            f"The scheduler ({name}) is set to prediction_type={found!r}, but the model was trained for "
            f"{prediction_type!r}: the result would be noise. Set prediction_type={prediction_type!r}."
        )
    if scheduler.config.get("timestep_spacing", "trailing") != "trailing":
        logger.warning(
            f"{name} uses timestep_spacing={scheduler.config.timestep_spacing!r}, which does not start from pure "
            'noise at every number of steps. "trailing" does.'
        )


def set_timesteps(scheduler: SchedulerMixin, steps: int) -> None:
    """Call `scheduler.set_timesteps`, whose timesteps stay on the CPU, and correct its rounding error.

    For some numbers of steps (7, 14, 28, … of 300), diffusers' trailing spacing adds one step too many, at a timestep
    of -1 that no model was trained for.
    """
    advice = "Correct its config, or choose another solver."
    with reading(f"{type(scheduler).__name__}'s noise schedule", advice=advice):
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            # from 1 to 1/K as published; diffusers' own sigmas end at 1/T
            scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)], device="cpu")
            return
        use_exact_betas(scheduler)
        avoid_zero_signal(scheduler)
        scheduler.set_timesteps(steps, device="cpu")
    if scheduler.timesteps[-1] >= 0:
        return
    scheduler.timesteps = scheduler.timesteps[:steps]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])


class SchedulerStep:
    """The scheduler's step, with the extra arguments that its class accepts."""

    def __init__(
        self,
        scheduler: SchedulerMixin,
        eta: float,
        generators: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        if not 0 <= eta <= 1:
            raise CardioDiTError(f"eta={eta} must be a number from 0 to 1.")
        self.scheduler = scheduler
        self.eta = eta
        self.generators = generators
        accepted = inspect.signature(scheduler.step).parameters
        if eta and "eta" not in accepted:
            raise CardioDiTError(
                f"eta={eta} was given, but {type(scheduler).__name__} has no eta; only DDIM has. Leave it out, or use "
                'pipe.scheduler = change_solver(pipe.scheduler, "ddim").'
            )
        offered: dict[str, Any] = {"eta": eta, "generator": generators}
        self.arguments = {key: value for key, value in offered.items() if key in accepted}
        self.draws_noise = getattr(scheduler, "draws_noise", None) if generators is not None else None
        self._noise: Future[torch.Tensor] | None = None
        total = scheduler.config.num_train_timesteps
        self.is_uneven_ddim = isinstance(scheduler, DDIMScheduler) and total % len(scheduler.timesteps) != 0

    def start(self, timestep: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Return the sample as the model sees it; schedulers of flow matching scale nothing.

        If the scheduler adds noise in this step, it is drawn on the CPU while the model runs.
        """
        if self.draws_noise is not None and self.draws_noise(int(timestep)):
            self._noise = DRAWING.submit(self._draw, sample.shape, sample.dtype, sample.device)
        scale = getattr(self.scheduler, "scale_model_input", None)
        return sample if scale is None else scale(sample, timestep)

    def __call__(
        self, model_output: torch.Tensor, index: int, timestep: torch.Tensor, sample: torch.Tensor
    ) -> torch.Tensor:
        """Step from `timesteps[index]` to the next timestep."""
        if not self.is_uneven_ddim:
            arguments = self.arguments
            if self._noise is not None:
                drawn, self._noise = self._noise.result(), None
                arguments = {**arguments, "variance_noise": upload(drawn, sample.device)}
            return self.scheduler.step(model_output, timestep, sample, **arguments, return_dict=False)[0]
        following = self.scheduler.timesteps[index + 1 :]
        previous = int(following[0]) if len(following) else -1
        return ddim_step(
            self.scheduler, model_output, int(timestep), previous, sample, eta=self.eta, generator=self.generators
        )

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Draw the noise of a step from the samples' generators, in memory from which it is copied to a GPU at once."""
        some = self.generators[0] if isinstance(self.generators, list) else self.generators
        noise = randn_tensor(shape, self.generators, some.device, dtype)  # type: ignore[union-attr]
        return noise.pin_memory() if device.type == "cuda" and noise.device.type == "cpu" else noise
