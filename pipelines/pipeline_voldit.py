"""VolDiT: generate 3D volumes from noise, with or without masks."""

from diffusers import SchedulerMixin

from cardiodit.models.autoencoder_vq import VQModel3D
from cardiodit.models.transformer_dit import DiT3DTransformerModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline
from cardiodit.pipelines.mask_control import MaskControlMixin


class VolDiTPipeline(LatentVolumePipeline):
    """Generates 3D volumes, such as CT.

    Args:
        vae: autoencoder of volumes; its config holds the scaling factor and the geometry.
        transformer: denoiser of latents `(B, C, H, W, D)`.
        scheduler: any diffusers scheduler with the prediction type that the transformer was trained for.
    """

    vae_class = VQModel3D
    denoiser_class = DiT3DTransformerModel

    def __init__(self, vae: VQModel3D, transformer: DiT3DTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler)


class VolDiTControlPipeline(MaskControlMixin, VolDiTPipeline):
    """Generates 3D volumes whose structures lie where the masks specify."""
