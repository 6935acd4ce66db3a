"""A model in words and tables, for its card."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cardiodit.hub.card.model_facts import Model

NAMES = {"vae": "Autoencoder", "transformer": "Denoiser", "adapter": "Adapter for masks"}
METHODS = {
    "cine": "*CardioDiT: Latent Diffusion Transformers for 4D Cardiac Cine MRI Synthesis* (Seyfarth and others, 2026)",
    "volumes": "*VolDiT*, a latent diffusion transformer for volumes, as its authors published it",
    "voxels": "*PRDiT*, a pixel-level residual diffusion transformer for 3D CT, as its authors published it",
}
TILE = 8  # voxels along each side of what PRDiT predicts of a patch
SAMPLERS = {"hot": "a stochastic predictor-corrector", "euler": "Euler steps"}
BELOW_VOXELS = "Detail below the voxel size is invented or missing."


def table(rows: Mapping[str, Any]) -> str:
    """A table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def times(values: Sequence[Any], unit: str = "") -> str:
    """256 × 256 × 6."""
    return " × ".join(f"{value:g}" for value in values) + (unit and f" {unit}")


def summary(model: Model) -> str:
    """The first sentence of a card."""
    what = "4D cardiac cine MRI (short-axis stacks over one heart beat)" if model.is_cine else "3D volumes"
    labels = f", of the classes {_listed(model.labels)}" if model.labels else ""
    how = "a latent diffusion model" if model.vae else "a diffusion model on voxels"
    return f"Generates synthetic {what} of {_size(model)}{labels}, with {how}."


def call(model: Model) -> str:
    """The arguments of the card's example."""
    label = f", class_labels={json.dumps(model.labels[0])}" if model.labels else ""
    mask = "mask, " if model.adapter else ""
    return f"{mask}num_samples=4, num_inference_steps={model.default_steps}, seed=0{label}"


def method(model: Model) -> str:
    """How it works, and after whom."""
    if model.vae:
        works = (
            "An autoencoder with a codebook turns volumes into latents, and a diffusion transformer draws latents from "
            "noise."
        )
    elif model.transformer["num_layers"]:
        works = (
            "There is no autoencoder: noise becomes a volume voxel by voxel. A local denoiser looks at overlapping "
            "patches one by one, and a transformer, the refiner, adds what only the whole volume tells. Both predict "
            "noise and clean volume at once, and their predictions are summed."
        )
    else:
        works = (
            "There is no autoencoder: noise becomes a volume voxel by voxel. This is the local denoiser alone "
            "(stage 1), which looks at overlapping patches one by one; the refiner, which knows the whole volume, is "
            "not part of it, so distant parts of a sample need not agree."
        )
    kind = "cine" if model.is_cine else "volumes" if model.vae else "voxels"
    return f"{works}\nAfter {METHODS[kind]}."


def architecture(model: Model) -> str:
    transformer = model.transformer
    rows = {
        f"{name} (`{part}`)": f"`{model.networks[part]['_class_name']}`, {_millions(model.parameters(part))} "
        f"parameters, stored as {model.precision(part)}"
        for part, name in NAMES.items()
        if part in model.networks
    }
    rows |= _of_latents(model.vae, transformer, model.is_cine) if model.vae else _of_patches(transformer)
    if model.adapter:
        rows["Masks"] = _masks(model.adapter)
    rows["Class labels"] = _listed(model.labels) or ("none" if model.adapter else "none; generation cannot be steered")
    if model.labels:
        dropped = transformer.get("class_dropout_prob") or 0
        rows["Guidance"] = (
            f"classifier-free; {dropped:.0%} of the labels were dropped in training"
            if dropped
            else "none was trained for"
        )
    return table(rows)


def _of_latents(vae: Mapping[str, Any], transformer: Mapping[str, Any], is_cine: bool) -> dict[str, str]:
    axes = "slices × H × W × frames" if is_cine else "H × W × D"
    tokens = math.prod(n // p for n, p in zip(transformer["sample_size"], transformer["patch_size"], strict=True))
    return {
        "Codebook": f"{vae['num_embeddings']} codes of {vae['embedding_dim']} channels",
        "Latents": f"{times(transformer['sample_size'])} ({axes}), {transformer['in_channels']} channels",
        "Transformer": f"{_blocks(transformer)}, patches of {times(transformer['patch_size'])}, {tokens} tokens",
    }


def _of_patches(transformer: Mapping[str, Any]) -> dict[str, str]:
    patch, tokens = transformer["patch_size"], math.prod(n // TILE for n in transformer["sample_size"])
    overlap = f"neighbours overlap by {patch - TILE} voxels" if patch > TILE else "without overlap"
    refiner = f"{_blocks(transformer)}, {tokens} tokens" if transformer["num_layers"] else "none (stage 1)"
    return {
        "Patches": f"{times([patch] * 3)} voxels, {overlap}; of each the middle {times([TILE] * 3)} are predicted",
        "Local denoiser": "gated MLPs on each patch by itself",
        "Refiner": refiner,
    }


def _blocks(transformer: Mapping[str, Any]) -> str:
    return (
        f"{transformer['num_layers']} blocks, {transformer['num_attention_heads']} heads of "
        f"{transformer['attention_head_dim']}"
    )


def geometry(model: Model) -> str:
    spacing, frame_time, steps = model.facts.get("spacing"), model.facts.get("frame_time"), model.preprocessing
    rows = {
        "Volume": _size(model),
        "Voxel size": times(spacing, "mm (H × W × D)")
        if spacing
        else "unknown: files carry no scanner space, and no volume in mL may be computed from them",
    }
    if model.is_cine:
        rows["Time between frames"] = (
            f"{1000 * frame_time:g} ms" if frame_time else "unknown: beats were brought to one length"
        )
        rows["Order"] = (
            "slices from base to apex, frame 0 is end-diastole, one heart beat a cycle"
            if steps is not None and steps.orient
            else "of slices and frames as in the training files"
        )
    limits = None if steps is None else steps.intensity.units
    rows["Intensities"] = "[-1, 1]" + (
        f"; in files -1 becomes {limits[0]:g} and 1 {limits[1]:g}, in the units of the training files"
        if limits
        else "; the source's units are not known"
    )
    return table(rows)


def sampler(model: Model) -> str:
    return table(_latent_sampler(model, model.vae) if model.vae else _voxel_sampler(model))


def _latent_sampler(model: Model, vae: Mapping[str, Any]) -> dict[str, str]:
    config = model.scheduler
    schedule = "exact values, in `trained_betas`" if config.get("trained_betas") else f"`{config.get('beta_schedule')}`"
    return {
        "Solver": f"`{config['_class_name']}`" + _solver_settings(config),
        "Noise schedule": f"{config['num_train_timesteps']} steps, {schedule}",
        "Prediction": f"`{config.get('prediction_type')}`",
        "Steps": f"{model.default_steps} unless said otherwise, spacing `{config.get('timestep_spacing')}`",
        "Guidance": "`guidance_scale` 1 (none) unless said otherwise" if model.labels else "none",
        "Scaling factor of the latents": f"{vae.get('scaling_factor', 1.0):.6g}",
    }


def _voxel_sampler(model: Model) -> dict[str, str]:
    config = model.scheduler
    solver = config["solver"]
    others = ", ".join(f"`{name}` ({words})" for name, words in SAMPLERS.items() if name != solver)
    return {
        "Solver": f"`{solver}` of `{config['_class_name']}` ({SAMPLERS[solver]}); there is also {others}",
        "Process": f"between noise and image, {config['num_train_timesteps']} steps, noise of standard deviation "
        f"{config['noise_scale']:g}",
        "Prediction": "noise and clean volume at once",
        "Steps": f"{model.default_steps} unless said otherwise",
        "Guidance": "none",
    }


def detail(model: Model) -> str:
    """What cannot be told from fine detail."""
    if model.vae is None:
        return BELOW_VOXELS
    return (
        "Detail below the voxel size, and what the codebook does not hold, is invented or missing: judge the "
        "autoencoder's reconstructions (`cardiodit reconstruct`) before small structures are measured."
    )


def _size(model: Model) -> str:
    axes = "H × W × slices × frames" if model.is_cine else "H × W × D"
    return f"{times(model.size)} voxels ({axes})"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _masks(adapter: Mapping[str, Any]) -> str:
    """Which, and which of their labels."""
    keys, labels = adapter.get("condition_keys") or [], adapter.get("condition_labels")
    said = [
        f"`{key}`" + (f" (labels {', '.join(map(str, labels[i]))})" if labels else "") for i, key in enumerate(keys)
    ]
    listed = ", ".join(said) or f"{adapter['condition_channels']} channels"
    return f"{listed}: label maps of the generated size say where structures lie"


def _listed(labels: Sequence[Any]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _solver_settings(config: Mapping[str, Any]) -> str:
    names = ("algorithm_type", "solver_type", "solver_order", "variance_type")
    said = [f"{name.replace('_', ' ')} {config[name]}" for name in names if config.get(name) is not None]
    return f" ({', '.join(said)})" if said else ""
