"""VolDiT: from noise to a 3D volume."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin

from cardiodit.models.autoencoder_vq import VQModel3D
from cardiodit.models.transformer_dit import DiT3DTransformerModel
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline


class VolDiTPipeline(LatentVolumePipeline):
    """Generates 3D volumes, such as CT.

    Args:
        vae: autoencoder between volumes and latents; its config holds the scaling factor and the geometry.
        transformer: denoises latents `(B, C, H, W, D)`.
        scheduler: any diffusers scheduler with the prediction type that the transformer was trained for.
    """

    def __init__(self, vae: VQModel3D, transformer: DiT3DTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler)

    def pieces_of(self, size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        return 1, tuple(size)

    def _decode_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        return torch.cat([self.vae.decode(part).sample.float() for part in latents.split(batch_size)])
