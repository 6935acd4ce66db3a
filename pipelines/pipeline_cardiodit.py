"""CardioDiT: generate beating hearts from noise, with or without masks."""

from collections.abc import Sequence

import torch
from diffusers import SchedulerMixin

from cardiodit.models.autoencoder_vq import VQModel4D, slices_of, stack_slices
from cardiodit.models.transformer_dit import DiT4DTransformerModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline
from cardiodit.pipelines.mask_control import MaskControlMixin


class CardioDiTPipeline(LatentVolumePipeline):
    """Generates 4D cardiac cine volumes.

    Args:
        vae: autoencoder of cine slices; its config holds the scaling factor and the geometry.
        transformer: denoiser of latents `(B, C, D, H, W, T)`.
        scheduler: any diffusers scheduler with the prediction type that the transformer was trained for.
    """

    vae_class = VQModel4D
    denoiser_class = DiT4DTransformerModel

    def __init__(self, vae: VQModel4D, transformer: DiT4DTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler)

    def decoding_batches(self, size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        return size[0], tuple(size[1:])  # slices

    def _decode_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        decoded = super()._decode_batches(slices_of(latents), batch_size)  # (B·D, C, h, w, t) → (B·D, 1, H, W, T)
        return stack_slices(decoded, latents.shape[2])  # (B, 1, D, H, W, T)

    def _label_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        return stack_slices(super()._label_batches(slices_of(latents), batch_size), latents.shape[2])

    def _to_file_order(self, volumes: torch.Tensor) -> torch.Tensor:
        return volumes.movedim(1, 3)  # (B, D, H, W, T) → (B, H, W, D, T)


class CardioDiTControlPipeline(MaskControlMixin, CardioDiTPipeline):
    """Generates cine volumes in which the heart moves as a segmentation specifies."""
