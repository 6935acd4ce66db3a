"""MedLoRD: generate large 3D volumes with a U-Net, with or without masks."""

from diffusers import SchedulerMixin

from cardiodit.models.autoencoder_vq import VQModel3D
from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
from cardiodit.models.unet_medlord import MedLoRDUNetModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline
from cardiodit.pipelines.mask_control import MaskControlMixin


class MedLoRDPipeline(LatentVolumePipeline):
    """Generates 3D volumes, such as CT of 512 × 512 × 256 voxels.

    Args:
        vae: autoencoder of volumes; its config holds the scaling factor and the geometry.
        unet: denoiser of latents `(B, C, H, W, D)`.
        scheduler: any diffusers scheduler with the prediction type that the U-Net was trained for.
    """

    model_cpu_offload_seq = "unet->vae"
    denoiser_name = "unet"
    _lora_loadable_modules = ["unet"]

    def __init__(self, vae: VQModel3D, unet: MedLoRDUNetModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self._register(vae=vae, unet=unet, scheduler=scheduler)


class MedLoRDControlPipeline(MaskControlMixin, MedLoRDPipeline):
    """Generates 3D volumes whose structures lie where the masks specify.

    Args:
        vae: autoencoder, as in the pipeline without masks.
        unet: denoiser, as in the pipeline without masks.
        controlnet: ControlNet that was trained for this U-Net.
        scheduler: scheduler, as in the pipeline without masks.
    """

    model_cpu_offload_seq = "controlnet->unet->vae"
    adapter_name = "controlnet"

    def __init__(
        self,
        vae: VQModel3D,
        unet: MedLoRDUNetModel,
        controlnet: MedLoRDControlNetModel,
        scheduler: SchedulerMixin,
    ) -> None:
        MedLoRDPipeline.__init__(self, vae, unet, scheduler)
        self.register_modules(controlnet=controlnet)
        controlnet.check_base(unet)
