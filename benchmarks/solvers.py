"""Measure how far each solver ends from the exact solution, for problems whose denoiser is known in closed form.

    python benchmarks/solvers.py            # prints the tables of docs/solvers.md

Two distributions of latent shape: a Gaussian whose channels have different spreads, and a mixture of four. Their
optimal denoiser E[x0 | xt] is known, so all error comes from the solver. Deterministic solvers should follow the
probability-flow ODE (Song et al., arXiv:2011.13456); its end is known in closed form for the Gaussian, and computed by
4000 steps of Heun's method for the mixture. Stochastic solvers follow no path, and should reproduce the spread.
"""

import argparse
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import DEISMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, SchedulerMixin

from cardiodit import make_scheduler
from cardiodit._util.randomness import generator_for
from cardiodit.pipelines.scheduler_utils import SchedulerStep, set_timesteps
from cardiodit.schedulers import SOLVERS

SHAPE = (8, 2, 8, 8, 2)  # channels, slices, rows, columns, frames of a latent
STEPS = (5, 10, 20, 25, 50, 100, 300)
SAMPLES = 64


@dataclass(frozen=True)
class Problem:
    """A mixture of Gaussians with equal weights: `modes` (K, *SHAPE), and a `spread` per channel (C, 1, 1, 1, 1)."""

    name: str
    modes: torch.Tensor
    spread: torch.Tensor

    def denoise(self, x: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
        """Return E[x0 | x] for x = √ᾱ·x0 + √(1−ᾱ)·ε: the expectation under each mode, weighted by its likelihood."""
        signal, noise = alpha_bar.sqrt(), 1 - alpha_bar
        variance = alpha_bar * self.spread**2 + noise
        residual = x[:, None] - signal * self.modes[None]  # (B, K, *SHAPE)
        likelihood = (-(residual**2) / (2 * variance)).flatten(2).sum(-1).softmax(dim=1)
        expectations = self.modes[None] + signal * self.spread**2 / variance * residual
        return (likelihood[(...,) + (None,) * len(SHAPE)] * expectations).sum(dim=1)


def problems() -> list[Problem]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.3, 1.2, SHAPE[0], dtype=torch.float64).reshape(-1, 1, 1, 1, 1)
    modes = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    return [
        Problem("Gaussian", torch.zeros(1, *SHAPE, dtype=torch.float64), spread),
        Problem("Mixture of four", modes * 0.25, spread * 0.6),
    ]


def exact(problem: Problem, start: torch.Tensor, alpha_bars: torch.Tensor) -> torch.Tensor:
    """Return the end of the probability-flow ODE that starts at `start` with the last ᾱ of the schedule."""
    last = alpha_bars[-1]
    if len(problem.modes) == 1:
        return start * problem.spread / (last * problem.spread**2 + 1 - last).sqrt()
    # In y = x / √ᾱ and σ = √(1/ᾱ − 1) the ODE is dy/dσ = (y − E[x0 | y]) / σ.
    first = (1 / last - 1).sqrt().log().item()
    sigmas = torch.cat(
        [torch.linspace(first, -7, 4000, dtype=torch.float64).exp(), torch.zeros(1, dtype=torch.float64)]
    )
    y = start / last.sqrt()

    def slope(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        bar = 1 / (1 + sigma**2)
        return (y - problem.denoise(y * bar.sqrt(), bar)) / sigma

    for sigma, following in pairwise(sigmas):
        here = slope(y, sigma)
        guess = y + (following - sigma) * here
        if following > 0:
            here = (here + slope(guess, following)) / 2
        y = y + (following - sigma) * here
    return y


def solve(problem: Problem, scheduler: SchedulerMixin, start: torch.Tensor, steps: int) -> torch.Tensor:
    """Sample as the pipelines do, with the perfect denoiser instead of a model."""
    set_timesteps(scheduler, steps)
    stepper = SchedulerStep(scheduler, 0.0, [generator_for(1, i) for i in range(len(start))])
    x = start * scheduler.init_noise_sigma
    bars = scheduler.alphas_cumprod.double()
    for index, timestep in enumerate(scheduler.timesteps):
        bar = bars[int(timestep)]
        seen = scheduler.scale_model_input(x, timestep)
        x0 = problem.denoise(seen, bar)
        noise = (seen - bar.sqrt() * x0) / (1 - bar).sqrt()
        x = stepper(bar.sqrt() * noise - (1 - bar).sqrt() * x0, index, timestep, x)
    return x


def solvers() -> dict[str, SchedulerMixin]:
    """Return the solvers with presets, and three others of diffusers with the same schedule."""
    shared = dict(make_scheduler("ddim").config)
    rest = {key: shared[key] for key in ("num_train_timesteps", "beta_schedule", "prediction_type", "timestep_spacing")}
    return {
        **{name: make_scheduler(name) for name in reversed(SOLVERS)},
        "Euler": EulerDiscreteScheduler(**rest),
        "Heun (two calls per step)": HeunDiscreteScheduler(**rest),
        "DEIS": DEISMultistepScheduler(**rest, solver_order=2),
    }


def errors(problem: Problem, x: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the distance to the exact end over the spread, and the error of the spread within a mode, in percent."""
    distance = ((x - expected) / problem.spread).square().mean().sqrt()
    nearest = (x[:, None] - problem.modes[None]).flatten(2).square().sum(-1).argmin(dim=1)
    spread = ((x - problem.modes[nearest]) / problem.spread).square().mean().sqrt()
    return 100 * float(distance), 100 * (float(spread) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    start = torch.stack(
        [torch.randn(SHAPE, generator=generator_for(0, i), dtype=torch.float64) for i in range(arguments.samples)]
    )
    for problem in problems():
        expected = exact(problem, start, make_scheduler("ddim").alphas_cumprod.double())
        print(f"\n### {problem.name}\n\n| solver | {' | '.join(f'{steps} steps' for steps in STEPS)} |")
        print("|---" * (len(STEPS) + 1) + "|")
        for name, scheduler in solvers().items():
            cells = []
            for steps in STEPS:
                distance, spread = errors(problem, solve(problem, scheduler, start, steps), expected)
                path = "" if name == "ddpm" else f"{distance:.1f} / "
                cells.append(f"{path}{spread:+.1f}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
