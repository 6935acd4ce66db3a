"""VolDiT with TGCA: CardioDiT's design over three axes, and an adapter that steers it by masks."""

from cardiodit.systems.latent_dit import STAGES, card_texts
from cardiodit.systems.registry import Publication, PublicModel, System

PUBLICATION = Publication(
    "VolDiT: Controllable Volumetric Medical Image Synthesis with Diffusion Transformers",
    "Seyfarth et al., 2026",
    "https://arxiv.org/abs/2603.25181",
)

SYSTEM = System(
    name="voldit",
    title="VolDiT",
    summary="CT, 3D: a VQ-GAN and a transformer over three axes, and an adapter (TGCA) that steers it by masks.",
    dimensions=3,
    pipeline="cardiodit.pipelines.pipeline_voldit:VolDiTPipeline",
    control_pipeline="cardiodit.pipelines.pipeline_voldit:VolDiTControlPipeline",
    denoiser="cardiodit.models.transformer_dit:DiT3DTransformerModel",
    autoencoder="cardiodit.models.autoencoder_vq:VQModel3D",
    adapter="cardiodit.models.adapter_tgca:TGCAAdapterModel",
    scheduler="diffusers:DPMSolverMultistepScheduler",
    stages=STAGES,
    card=card_texts(PUBLICATION, axes="H × W × D"),
    publication=PUBLICATION,
    converter="cardiodit.convert.voldit:convert_voldit",
    models=(
        PublicModel(
            "AICM-HD/voldit",
            training_set="LUNA16, chest CT",
            licence="as its repository states",
            paper=PUBLICATION.link,
            is_authors=True,
            files="those whose names tell their stage; the first use says which",
            config="read from the weights, one of configs/voldit",
        ),
    ),
)
