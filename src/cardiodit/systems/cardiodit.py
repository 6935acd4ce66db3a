"""CardioDiT (Seyfarth et al., 2026): a VQ-GAN on 2D+t slices, then a 4D diffusion transformer."""

from cardiodit.systems.latent_dit import STAGES, card_texts
from cardiodit.systems.registry import Publication, PublicModel, System

PUBLICATION = Publication(
    "CardioDiT: Latent Diffusion Transformers for 4D Cardiac MRI Synthesis",
    "Seyfarth et al., 2026",
    "https://arxiv.org/abs/2603.25194",
)

SYSTEM = System(
    name="cardiodit",
    title="CardioDiT",
    summary="Cine MRI, 4D: a VQ-GAN encodes 2D+t slices, and a transformer over all four axes generates them together.",
    dimensions=4,
    pipeline="cardiodit.pipelines.pipeline_cardiodit:CardioDiTPipeline",
    control_pipeline="cardiodit.pipelines.pipeline_cardiodit:CardioDiTControlPipeline",
    denoiser="cardiodit.models.transformer_dit:DiT4DTransformerModel",
    autoencoder="cardiodit.models.autoencoder_vq:VQModel4D",
    adapter="cardiodit.models.adapter_tgca:TGCAAdapterModel",
    scheduler="diffusers:DPMSolverMultistepScheduler",
    stages=STAGES,
    card=card_texts(PUBLICATION, axes="slices × H × W × frames"),
    publication=PUBLICATION,
    converter="cardiodit.convert.cardiodit:convert_cardiodit",
    models=(
        PublicModel(
            "cardiodit-phantom",
            training_set="synthetic beating hearts of four groups (phantoms)",
            licence="Apache 2.0",
            paper="none; bundled with this package",
            files="a pipeline folder",
            config="configs/phantom/vqgan.yaml, configs/phantom/dit.yaml",
        ),
    ),
)
