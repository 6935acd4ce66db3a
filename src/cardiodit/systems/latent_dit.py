"""Card texts that CardioDiT and VolDiT share: both denoise the latents of a VQ-GAN with a transformer."""

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cardiodit.systems.registry import CardTexts, Rows, Stage

if TYPE_CHECKING:
    from cardiodit.hub.card.model_facts import Model

SETTINGS = "cardiodit.training.settings"
STAGES = (
    Stage("train_vqgan", "Stage 1, the autoencoder", "vae", f"{SETTINGS}:VQGANSettings", names_model=False),
    Stage(
        "train_dit",
        "Stage 2, the denoiser",
        "transformer",
        f"{SETTINGS}:DiTSettings",
        open_checkpoint="cardiodit.training.checkpoint_gallery:open_latent_checkpoint",
    ),
    Stage(
        "train_tgca",
        "The adapter for masks",
        "adapter",
        f"{SETTINGS}:TGCASettings",
        open_checkpoint="cardiodit.training.checkpoint_gallery:open_adapter_checkpoint",
    ),
)
LIMITS = (
    "Detail below the voxel size, and detail that the codebook cannot represent, is invented or missing: inspect the "
    "autoencoder's reconstructions (`cardiodit reconstruct`) before you measure small structures."
)


def card_texts(publication: str, axes: str) -> CardTexts:
    """Return the card texts of a latent diffusion transformer.

    Args:
        publication: title and authors of the publication that the model follows.
        axes: order of the latents' axes, in words.
    """
    return CardTexts(
        method=partial(_method, publication=publication),
        architecture=partial(_architecture, axes=axes),
        sampler=_sampler,
        limits=LIMITS,
        tags=("latent-diffusion",),
    )


def blocks(transformer: Mapping[str, Any]) -> str:
    """Describe the blocks of a transformer: "12 blocks, 12 heads of 64"."""
    return (
        f"{transformer['num_layers']} blocks, {transformer['num_attention_heads']} heads of "
        f"{transformer['attention_head_dim']}"
    )


def _method(model: "Model", publication: str) -> str:
    return (
        "An autoencoder with a codebook encodes volumes as latents, and a diffusion transformer generates latents from "
        f"noise.\nThe model follows {publication}."
    )


def _architecture(model: "Model", axes: str) -> Rows:
    from cardiodit.hub.card.model_words import times

    vae, transformer = model.networks["vae"], model.networks["transformer"]
    tokens = math.prod(n // p for n, p in zip(transformer["sample_size"], transformer["patch_size"], strict=True))
    return {
        "Codebook": f"{vae['num_embeddings']} codes of {vae['embedding_dim']} channels",
        "Latents": f"{times(transformer['sample_size'])} ({axes}), {transformer['in_channels']} channels",
        "Transformer": f"{blocks(transformer)}, patches of {times(transformer['patch_size'])}, {tokens} tokens",
    }


def _sampler(model: "Model") -> Rows:
    config = model.scheduler
    schedule = "exact values, in `trained_betas`" if config.get("trained_betas") else f"`{config.get('beta_schedule')}`"
    return {
        "Solver": f"`{config['_class_name']}`{_solver_settings(config)}",
        "Noise schedule": f"{config['num_train_timesteps']} steps, {schedule}",
        "Prediction": f"`{config.get('prediction_type')}`",
        "Steps": f"{model.default_steps} by default, spacing `{config.get('timestep_spacing')}`",
        "Guidance": "`guidance_scale` 1 (none) by default" if model.labels else "none",
        "Scaling factor of the latents": f"{model.networks['vae'].get('scaling_factor', 1.0):.6g}",
    }


def _solver_settings(config: Mapping[str, Any]) -> str:
    names = ("algorithm_type", "solver_type", "solver_order", "variance_type")
    settings = [f"{name.replace('_', ' ')} {config[name]}" for name in names if config.get(name) is not None]
    return f" ({', '.join(settings)})" if settings else ""
