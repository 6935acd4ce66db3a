"""Stages and card texts that latent diffusion models share; CardioDiT and VolDiT denoise with a transformer."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cardiodit.systems.registry import CardTexts, Publication, Rows, Stage

if TYPE_CHECKING:
    from cardiodit.hub.card.model_facts import Model

SETTINGS = "cardiodit.training.settings"
GALLERY = "cardiodit.training.checkpoint_gallery"
STAGES = (
    Stage("train_vqgan", "Stage 1, the autoencoder", "vae", f"{SETTINGS}:VQGANSettings", names_model=False),
    Stage(
        "train_dit",
        "Stage 2, the denoiser",
        "transformer",
        f"{SETTINGS}:DiTSettings",
        open_checkpoint=f"{GALLERY}:open_latent_checkpoint",
    ),
    Stage(
        "train_tgca",
        "The adapter for masks",
        "adapter",
        f"{SETTINGS}:TGCASettings",
        open_checkpoint=f"{GALLERY}:open_adapter_checkpoint",
    ),
)
LIMITS = (
    "Detail below the voxel size, and detail that the codebook cannot represent, is invented or missing: inspect the "
    "autoencoder's reconstructions (`cardiodit reconstruct`) before you measure small structures."
)


def transformer_row(transformer: Mapping[str, Any]) -> Rows:
    from cardiodit.hub.card.model_words import times

    tokens = math.prod(n // p for n, p in zip(transformer["sample_size"], transformer["patch_size"], strict=True))
    return {"Transformer": f"{blocks(transformer)}, patches of {times(transformer['patch_size'])}, {tokens} tokens"}


def card_texts(
    publication: Publication,
    axes: str,
    network: str = "diffusion transformer",
    network_row: Callable[[Mapping[str, Any]], Rows] = transformer_row,
) -> CardTexts:
    """Return the card texts of a latent diffusion model.

    Args:
        publication: what the model follows.
        axes: order of the latents' axes, in words.
        network: the denoiser, in words.
        network_row: makes the table row that describes the denoiser from its config.
    """
    return CardTexts(
        method=partial(_method, publication=publication, network=network),
        architecture=partial(_architecture, axes=axes, network_row=network_row),
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


def _method(model: "Model", publication: Publication, network: str) -> str:
    return (
        f"An autoencoder with a codebook encodes volumes as latents, and a {network} generates latents from "
        f"noise.\nThe model follows {publication}."
    )


def _architecture(model: "Model", axes: str, network_row: Callable[[Mapping[str, Any]], Rows]) -> Rows:
    from cardiodit.hub.card.model_words import times

    vae, denoiser = model.networks["vae"], model.denoiser
    return {
        "Codebook": f"{vae['num_embeddings']} codes of {vae['embedding_dim']} channels",
        "Latents": f"{times(denoiser['sample_size'])} ({axes}), {denoiser['in_channels']} channels",
        **network_row(denoiser),
    }


def _sampler(model: "Model") -> Rows:
    config = model.scheduler
    process = _noise_schedule(config) if "beta_schedule" in config else flow_rows(config)
    spacing = f", spacing `{config['timestep_spacing']}`" if "timestep_spacing" in config else ""
    return {
        "Solver": f"`{config['_class_name']}`{_solver_settings(config)}",
        **process,
        "Steps": f"{model.default_steps} by default{spacing}",
        "Guidance": "`guidance_scale` 1 (none) by default" if model.labels else "none",
        "Scaling factor of the latents": _scaling(model.networks["vae"]),
    }


def _scaling(vae: Mapping[str, Any]) -> str:
    normalised = " after normalisation of each channel" if vae.get("latents_mean") else ""
    return f"{vae.get('scaling_factor', 1.0):.6g}{normalised}"


def _noise_schedule(config: Mapping[str, Any]) -> Rows:
    schedule = "exact values, in `trained_betas`" if config.get("trained_betas") else f"`{config.get('beta_schedule')}`"
    return {
        "Noise schedule": f"{config['num_train_timesteps']} steps, {schedule}",
        "Prediction": f"`{config.get('prediction_type')}`",
    }


def flow_rows(config: Mapping[str, Any]) -> Rows:
    """Return the rows of a scheduler of flow matching, diffusers' or ours."""
    ends_in_data = config.get("invert_sigmas") or config.get("prediction_type") == "flow_to_data"
    return {
        "Solver": f"`{config['_class_name']}`{_solver_settings(config)}",
        "Process": f"flow matching, times from 0 to {config['num_train_timesteps']}",
        "Prediction": "the velocity from noise to data" if ends_in_data else "`flow`, the velocity from data to noise",
    }


def _solver_settings(config: Mapping[str, Any]) -> str:
    names = ("solver", "algorithm_type", "solver_type", "solver_order", "variance_type")
    settings = [f"{name.replace('_', ' ')} {config[name]}" for name in names if config.get(name) is not None]
    return f" ({', '.join(settings)})" if settings else ""
