"""The noise schedules, samplers and diffusion processes of the published models, as diffusers schedulers."""

from cardiodit.schedulers.flow_scheduler import FlowScheduler
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler
from cardiodit.schedulers.solvers import SOLVERS, change_solver, cosine_betas, make_scheduler

__all__ = ["SOLVERS", "FlowScheduler", "NoiseAndImageScheduler", "change_solver", "cosine_betas", "make_scheduler"]
