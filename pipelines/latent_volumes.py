"""What pipelines of a VQ model and a diffusion transformer share: latents are denoised, and decoded a few at a time."""

from collections.abc import Sequence
from typing import Any

import torch

from cardiodit.errors import CardioDiTError
from cardiodit.pipelines.base_pipeline import VolumePipeline


class LatentVolumePipeline(VolumePipeline):
    """A pipeline of `vae`, `transformer` and `scheduler`. Subclasses say how their latents become volumes."""

    model_cpu_offload_seq = "transformer->vae"

    def _register(self, **components: Any) -> None:
        vae, transformer = components["vae"], components["transformer"]
        if vae.config.embedding_dim != transformer.config.in_channels:
            raise CardioDiTError(
                f"The autoencoder makes latents of {vae.config.embedding_dim} channels, the transformer takes "
                f"{transformer.config.in_channels}: they do not belong together."
            )
        self.register_modules(**components)

    @property
    def facts(self) -> Any:
        return self.vae.config

    @property
    def voxels_a_latent(self) -> tuple[int, ...]:
        factors = tuple(self.vae.scale_factors)
        return (1,) * (len(self.transformer.axis_names) - len(factors)) + factors

    def _voxels(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        return self._decode_batches((latents / self.vae.config.scaling_factor).to(self.vae.dtype), batch_size)

    def pieces_of(self, size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """How many pieces a latent of this size is decoded in, and the size of each."""
        raise NotImplementedError

    def _decode_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """(B, C, *size) → (B, 1, *voxels), float32."""
        raise NotImplementedError
