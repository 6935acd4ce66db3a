"""The diffusion processes of the published models on diffusers' schedulers."""

from cardiodit.schedulers.cosine import cosine_betas
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler
from cardiodit.schedulers.solvers import SOLVERS, change_solver, make_scheduler

__all__ = ["SOLVERS", "NoiseAndImageScheduler", "change_solver", "cosine_betas", "make_scheduler"]
