"""diffusers' solvers with the settings that our models need, written out.

`timestep_spacing="trailing"` because "leading" never visits the last timestep; `clip_sample=False` because
latents are not images. diffusers drops settings that were left at a default when one solver is made from
another's config, so nothing here is left at a default.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from cardiodit.errors import CardioDiTError
from cardiodit.schedulers.prdit_scheduler import NOISE_AND_IMAGE_SOLVERS, NoiseAndImageScheduler

SOLVERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": (DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "dpm++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
    ),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero"}),
}


def make_scheduler(
    solver: str = "dpm++",
    num_train_timesteps: int = 300,
    betas: Sequence[float] | None = None,
    prediction_type: str = "v_prediction",
) -> SchedulerMixin:
    """A diffusers scheduler for the squared-cosine schedule, or for exact `betas`."""
    if solver not in SOLVERS:
        raise CardioDiTError(f"There is no solver {solver!r}; choose one of {', '.join(SOLVERS)}.")
    scheduler_class, settings = SOLVERS[solver]
    return scheduler_class(
        num_train_timesteps=num_train_timesteps,
        trained_betas=None if betas is None else list(betas),
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        **settings,
    )


def change_solver(scheduler: SchedulerMixin, solver: str) -> SchedulerMixin:
    """Another solver for the same noise schedule: `pipe.scheduler = change_solver(pipe.scheduler, "ddim")`."""
    if isinstance(scheduler, NoiseAndImageScheduler):
        return NoiseAndImageScheduler.from_config(scheduler.config, solver=solver)
    if solver in NOISE_AND_IMAGE_SOLVERS:
        raise CardioDiTError(f"The solver {solver!r} is PRDiT's; this model has a {type(scheduler).__name__}.")
    config = scheduler.config
    betas, schedule = config.get("trained_betas"), config.get("beta_schedule")
    if betas is None and schedule != "squaredcos_cap_v2":
        raise CardioDiTError(
            f"change_solver knows the squared-cosine schedule and explicit betas; this {type(scheduler).__name__} "
            f"has the schedule {schedule!r}."
        )
    return make_scheduler(solver, config.num_train_timesteps, betas, config.prediction_type)
