"""One DDIM step to any earlier timestep (Song et al., arXiv:2010.02502, equations 12 and 16).

diffusers' DDIMScheduler takes T // N for the length of every step. With trailing spacing and a number of steps
N that does not divide T, its timesteps are not that far apart, and it ends in latents that still hold noise.
"""

import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor


def ddim_step(
    scheduler: DDIMScheduler,
    model_output: torch.Tensor,
    timestep: int,
    previous: int,
    sample: torch.Tensor,
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """From `timestep` to `previous`, or to the clean latent where `previous` is negative."""
    alpha = scheduler.alphas_cumprod[timestep].to(sample.device)
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
    """What a prediction says of the clean latent and of the noise in `sample` = √ᾱ·clean + √(1−ᾱ)·noise."""
    signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
    if prediction_type == "v_prediction":
        return signal * sample - sigma * model_output, signal * model_output + sigma * sample
    if prediction_type == "epsilon":
        return (sample - sigma * model_output) / signal, model_output
    return model_output, (sample - signal * model_output) / sigma
