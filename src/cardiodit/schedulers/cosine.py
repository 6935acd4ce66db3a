"""The squared-cosine noise schedule (Nichol and Dhariwal, arXiv:2102.09672, equation 17)."""

import math

import torch

OFFSET = 0.008


def cosine_betas(num_train_timesteps: int = 300, max_beta: float = 0.9999) -> list[float]:
    """Exact betas of the published models: computed in float64, stored as float32.

    diffusers' `squaredcos_cap_v2` clips at 0.999 instead, so its last beta differs: hand these to a scheduler
    as `trained_betas` for a converted model.
    """

    def alpha_bar(t: float) -> float:
        return math.cos((t + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2

    n = num_train_timesteps
    betas = [min(1 - alpha_bar((t + 1) / n) / alpha_bar(t / n), max_beta) for t in range(n)]
    return torch.tensor(betas, dtype=torch.float64).float().tolist()
