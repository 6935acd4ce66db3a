"""PRDiT: a diffusion model on voxels, a local denoiser refined by a transformer."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cardiodit.systems.latent_dit import blocks, flow_rows
from cardiodit.systems.registry import CardTexts, Publication, Rows, Stage, System

if TYPE_CHECKING:
    from cardiodit.hub.card.model_facts import Model

PUBLICATION = Publication(
    "Pixel-Level Residual Diffusion Transformer: Scalable 3D CT Volume Generation",
    "ICLR 2026",
    "https://openreview.net/forum?id=bWtRZQ1rm2",
)
SOLVERS = {"hot": "a stochastic predictor-corrector", "euler": "Euler steps"}
SETTINGS = "cardiodit.training.settings:PRDiTSettings"
OPEN = "cardiodit.training.checkpoint_gallery:open_prdit_checkpoint"


def has_refiner(config: Mapping[str, Any]) -> bool:
    return bool(config.get("num_layers"))


def is_super_resolution(config: Mapping[str, Any]) -> bool:
    return (config.get("super_resolution") or 1) > 1


def has_no_refiner(config: Mapping[str, Any]) -> bool:
    return not has_refiner(config) and not is_super_resolution(config)


def method(model: "Model") -> str:
    if is_super_resolution(model.denoiser):
        parts = (
            "A whole model denoises the volume at a lower resolution, and a local denoiser on patches at full "
            "resolution corrects its enlarged prediction."
        )
    elif has_refiner(model.denoiser):
        parts = (
            "A local denoiser processes overlapping patches independently, and a transformer, the refiner, adds what "
            "depends on the whole volume. Their predictions are summed."
        )
    else:
        parts = (
            "This is the local denoiser alone (stage 1), which processes overlapping patches independently; it has no "
            "refiner, so distant parts of a sample need not be consistent."
        )
    return (
        f"There is no autoencoder: noise is turned into a volume voxel by voxel. {parts}\n"
        f"The model follows *PRDiT*: {PUBLICATION}."
    )


def architecture(model: "Model") -> Rows:
    from cardiodit.hub.card.model_words import times

    config = model.denoiser
    patch, tile = config["patch_size"], config.get("tile_size", 8)
    tokens = math.prod(n // tile for n in config["sample_size"])
    overlap = f"neighbours overlap by {patch - tile} voxels" if patch > tile else "without overlap"
    return {
        "Patches": f"{times([patch] * 3)} voxels, {overlap}; the central {times([tile] * 3)} of each are predicted",
        "Local denoiser": "gated MLPs on each patch independently",
        "Refiner": f"{blocks(config)}, {tokens} tokens" if has_refiner(config) else "none (stage 1)",
    }


def sampler(model: "Model") -> Rows:
    config = model.scheduler
    if "noise_scale" not in config:
        return {**flow_rows(config), "Steps": f"{model.default_steps} by default", "Guidance": "none"}
    solver = config["solver"]
    others = ", ".join(f"`{name}` ({words})" for name, words in SOLVERS.items() if name != solver)
    return {
        "Solver": f"`{solver}` of `{config['_class_name']}` ({SOLVERS[solver]}); also available: {others}",
        "Process": f"between noise and image, {config['num_train_timesteps']} steps, noise of standard deviation "
        f"{config['noise_scale']:g}",
        "Prediction": "noise and clean volume at once",
        "Steps": f"{model.default_steps} by default",
        "Guidance": "none",
    }


SYSTEM = System(
    name="prdit",
    title="PRDiT",
    summary="CT, 3D, voxel by voxel without an autoencoder: a local denoiser on overlapping patches, refined by a "
    "transformer.",
    dimensions=3,
    pipeline="cardiodit.pipelines.pipeline_prdit:PRDiTPipeline",
    denoiser="cardiodit.models.transformer_prdit:PRDiTTransformerModel",
    scheduler="cardiodit.schedulers.prdit_scheduler:NoiseAndImageScheduler",
    default_steps=100,
    stages=(
        Stage("train_prdit", "Stage 1, the local denoiser", "transformer", SETTINGS, True, has_no_refiner, OPEN),
        Stage("train_prdit", "Stage 2, the refiner", "transformer", SETTINGS, True, has_refiner, OPEN),
        Stage("train_prdit", "Stage 3, super-resolution", "transformer", SETTINGS, True, is_super_resolution, OPEN),
    ),
    card=CardTexts(
        method=method,
        architecture=architecture,
        sampler=sampler,
        limits="Detail below the voxel size is invented or missing.",
        tags=("pixel-space-diffusion",),
    ),
    publication=PUBLICATION,
    converter="cardiodit.convert.prdit:convert_prdit",
)
