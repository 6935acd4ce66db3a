"""MedLoRD: latent diffusion of large CT volumes with a 3D U-Net, and a ControlNet that steers it by masks."""

from collections.abc import Mapping
from typing import Any

from cardiodit.systems.latent_dit import GALLERY, SETTINGS, STAGES, card_texts
from cardiodit.systems.registry import Publication, PublicModel, Rows, Stage, System

PUBLICATION = Publication(
    "MedLoRD: A Medical Low-Resource Diffusion Model for High-Resolution 3D CT Image Synthesis",
    "Seyfarth et al., 2025",
    "https://arxiv.org/abs/2503.13211",
)


def unet_row(unet: Mapping[str, Any]) -> Rows:
    widths, attention = unet["block_out_channels"], unet["attention_levels"]
    attending = [str(width) for width, on in zip(widths, attention, strict=True) if on]
    where = f"levels of {' and '.join(attending)} channels" if attending else "middle only"
    return {"U-Net": f"levels of {', '.join(map(str, widths))} channels, attention: {where}"}


SYSTEM = System(
    name="medlord",
    title="MedLoRD",
    summary="CT, 3D, up to 512 × 512 × 256 voxels: a VQ-GAN and a U-Net, and a ControlNet that steers it by masks.",
    dimensions=3,
    pipeline="cardiodit.pipelines.pipeline_medlord:MedLoRDPipeline",
    control_pipeline="cardiodit.pipelines.pipeline_medlord:MedLoRDControlPipeline",
    denoiser="cardiodit.models.unet_medlord:MedLoRDUNetModel",
    component="unet",
    autoencoder="cardiodit.models.autoencoder_vq:VQModel3D",
    adapter="cardiodit.models.controlnet_medlord:MedLoRDControlNetModel",
    adapter_component="controlnet",
    scheduler="diffusers:DPMSolverMultistepScheduler",
    stages=(
        STAGES[0],
        Stage(
            "train_unet",
            "Stage 2, the denoiser",
            "unet",
            f"{SETTINGS}:UNetSettings",
            open_checkpoint=f"{GALLERY}:open_latent_checkpoint",
        ),
        Stage(
            "train_controlnet",
            "Stage 3, the ControlNet for masks",
            "controlnet",
            f"{SETTINGS}:ControlNetSettings",
            open_checkpoint=f"{GALLERY}:open_adapter_checkpoint",
        ),
    ),
    card=card_texts(
        PUBLICATION,
        axes="H × W × D",
        network="3D U-Net",
        network_row=unet_row,
    ),
    publication=PUBLICATION,
    converter="cardiodit.convert.medlord:convert_medlord",
    models=(
        PublicModel(
            "AICM-HD/medlord",
            training_set="LUNA16, chest CT",
            licence="as its repository states",
            paper=PUBLICATION.link,
            scale_factor=1.11,
            is_authors=True,
            files="vqgan_luna_ds8.pth, ldm_luna_ds8.pth",
            config="read from the weights; the autoencoder is configs/medlord/vqgan_ds8_new.yaml",
        ),
    ),
)
