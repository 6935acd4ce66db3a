"""The samplers of diffusers with the settings that our models need.

`timestep_spacing="trailing"` because "leading" never visits the last timestep; `clip_sample=False` because latents
are not images. Every setting is given explicitly: when diffusers creates one sampler from the config of another, it
drops settings that were left at their defaults.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor

from cardiodit.errors import CardioDiTError
from cardiodit.schedulers.flow_scheduler import FLOW, FLOW_SOLVERS, FLOW_TO_DATA, FLOWS, FlowScheduler

SOLVERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": (DDIMScheduler, {"set_alpha_to_one": True, "clip_sample": False}),
    "dpm++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"},
    ),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero"}),
}
SMALLEST_SIGNAL = 2.0**-24  # ᾱ of pure noise for solvers that divide by it, as in diffusers' own rescaling
COSINE_OFFSET = 0.008

MOST_TIMESTEPS = 100_000  # of a noise schedule; the published ones have 300 and 1000


def make_scheduler(
    solver: str = "dpm++",
    num_train_timesteps: int = 300,
    betas: Sequence[float] | None = None,
    prediction_type: str = "v_prediction",
) -> SchedulerMixin:
    """Create a diffusers scheduler for the squared-cosine noise schedule, or for exact `betas`."""
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
    """Return another solver for the same noise schedule.

    Example: `pipe.scheduler = change_solver(pipe.scheduler, "ddim")`.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if (kind := prediction_of(scheduler)) in FLOWS:
        if solver == "euler":
            return FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, invert_sigmas=kind == FLOW_TO_DATA)
        if solver in FLOW_SOLVERS:
            return FlowScheduler(config.num_train_timesteps, solver, str(kind), config.get("error_target", 1.0))
        raise CardioDiTError(
            f"There is no solver {solver!r} for models trained by flow matching; choose one of euler, "
            f"{', '.join(FLOW_SOLVERS)}."
        )
    own_solvers = getattr(scheduler, "solvers", None)
    if solver not in (known := own_solvers or SOLVERS):
        raise CardioDiTError(f"There is no solver {solver!r} for a {name}; choose one of {', '.join(known)}.")
    if own_solvers:
        return type(scheduler).from_config(config, solver=solver)
    betas, schedule = config.get("trained_betas"), config.get("beta_schedule")
    if betas is None and schedule != "squaredcos_cap_v2":
        raise CardioDiTError(
            f"change_solver supports the squared-cosine schedule and explicit betas; this {name} has the schedule "
            f"{schedule!r}."
        )
    return make_scheduler(solver, config.num_train_timesteps, betas, config.prediction_type)


def prediction_of(scheduler: SchedulerMixin) -> str | None:
    """Return what a scheduler expects the model to predict."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FLOW_TO_DATA if scheduler.config.invert_sigmas else FLOW
    return scheduler.config.get("prediction_type")


def cosine_betas(num_train_timesteps: int = 300, max_beta: float = 0.9999, is_exact: bool = False) -> list[float]:
    """Return the exact betas of the published models (Nichol and Dhariwal, arXiv:2102.09672, equation 17).

    They are computed in float64 and rounded to float32, but not for MedLoRD (`is_exact`). diffusers'
    `squaredcos_cap_v2` clips at 0.999, so that its last beta differs; a converted model needs these as `trained_betas`
    of its scheduler.
    """

    def alpha_bar(t: float) -> float:
        return math.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    n = num_train_timesteps
    betas = [min(1 - alpha_bar((t + 1) / n) / alpha_bar(t / n), max_beta) for t in range(n)]
    return betas if is_exact else torch.tensor(betas, dtype=torch.float64).float().tolist()


def use_exact_betas(scheduler: SchedulerMixin) -> None:
    """Let a scheduler compute in float64 if its `trained_betas` have more digits than float32.

    The published MedLoRD samples so: in float32, 1 − ᾱ of the last steps is wrong by up to 0.04%. With a zero-terminal
    SNR, late ᾱ would be wrong by 2e-6, and samples by 1e-5.
    """
    betas = torch.tensor(scheduler.config.get("trained_betas") or [], dtype=torch.float64)
    if len(betas) and not torch.equal(betas.float().double(), betas):
        scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, (1 - betas).cumprod(0)


def zero_terminal_betas(num_train_timesteps: int) -> list[float]:
    """Return the squared-cosine betas whose last step is pure noise (Lin et al., arXiv:2305.08891, algorithm 1).

    They have more digits than float32, so that schedulers recover the small ᾱ of late steps (`use_exact_betas`).
    """
    betas = torch.tensor(cosine_betas(num_train_timesteps, is_exact=True), dtype=torch.float64)
    signal = (1 - betas).cumprod(0).float().sqrt()  # in float32, in the order of the published code
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal.square().double()
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return (1 - alphas).tolist()


def avoid_zero_signal(scheduler: SchedulerMixin) -> None:
    """Give pure noise a tiny signal where a solver takes the logarithm of the signal."""
    takes_logarithms = isinstance(scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler)
    if takes_logarithms and scheduler.alphas_cumprod[-1] == 0:
        scheduler.alphas_cumprod[-1] = SMALLEST_SIGNAL


def clean_estimate(
    scheduler: SchedulerMixin, prediction: torch.Tensor, timestep: torch.Tensor | float, sample: torch.Tensor
) -> torch.Tensor:
    """Return the clean sample that a prediction at a timestep implies; the timestep stays on the CPU."""
    kind = prediction_of(scheduler)
    if kind in FLOWS:
        time = float(timestep) / scheduler.config.num_train_timesteps
        return sample - time * prediction if kind == FLOW else sample + (1 - time) * prediction
    alpha = scheduler.alphas_cumprod[int(timestep)].to(sample.dtype)
    return split_prediction(str(kind), prediction, sample, alpha)[0]


def ddim_step(
    scheduler: DDIMScheduler,
    model_output: torch.Tensor,
    timestep: int,
    previous: int,
    sample: torch.Tensor,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Take a DDIM step from `timestep` to `previous`, or to the clean sample if `previous` is negative.

    Song et al., arXiv:2010.02502, equations 12 and 16. diffusers' DDIMScheduler takes T // N as the length of every
    step. With trailing spacing and a number of steps N that does not divide T, its timesteps are not that far apart,
    and its final latents still contain noise.
    """
    alpha = scheduler.alphas_cumprod[timestep]  # on the CPU, as in diffusers, so that nothing waits for the device
    alpha_to = (scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod).to(alpha)
    clean, noise = split_prediction(scheduler.config.prediction_type, model_output, sample, alpha)
    if scheduler.config.clip_sample:
        clean = clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    deviation = eta * ((1 - alpha_to) / (1 - alpha) * (1 - alpha / alpha_to)).sqrt()
    sample = alpha_to.sqrt() * clean + (1 - alpha_to - deviation**2).sqrt() * noise
    if eta > 0:
        sample = sample + deviation * randn_tensor(
            sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
        )
    return sample


def split_prediction(
    prediction_type: str, model_output: torch.Tensor, sample: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted clean latent and the predicted noise in `sample` = √ᾱ·clean + √(1−ᾱ)·noise."""
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "v_prediction":
        return signal * sample - sigma * model_output, signal * model_output + sigma * sample
    if prediction_type == "epsilon":
        return (sample - sigma * model_output) / signal, model_output
    return model_output, (sample - signal * model_output) / sigma
