"""CardioDiT: from noise to a beating heart."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin

from cardiodit.models.autoencoder_vq import VQModel4D, slices_of, stack_slices
from cardiodit.models.transformer_dit import DiT4DTransformerModel
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline


class CardioDiTPipeline(LatentVolumePipeline):
    """Generates 4D cardiac cine volumes.

    Args:
        vae: autoencoder between cine slices and latents; its config holds the scaling factor and the geometry.
        transformer: denoises latents `(B, C, D, H, W, T)`.
        scheduler: any diffusers scheduler with the prediction type that the transformer was trained for.
    """

    def __init__(self, vae: VQModel4D, transformer: DiT4DTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler)

    def pieces_of(self, size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        return size[0], tuple(size[1:])  # slices

    def _decode_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Slice by slice."""
        parts = slices_of(latents).split(batch_size)  # (B·D, C, h, w, t)
        decoded = torch.cat([self.vae.decode(part).sample.float() for part in parts])
        return stack_slices(decoded, latents.shape[2])  # (B, 1, D, H, W, T)

    def _as_stored(self, volumes: torch.Tensor) -> torch.Tensor:
        return volumes.movedim(1, 3)  # (B, D, H, W, T) → (B, H, W, D, T)
