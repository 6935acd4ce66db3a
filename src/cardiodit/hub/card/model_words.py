"""A model in words and tables, for its card."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cardiodit.hub.card.model_facts import DEFAULT_STEPS, Model

NAMES = {"vae": "Autoencoder", "transformer": "Denoiser", "adapter": "Adapter for masks"}


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
    return f"Generates synthetic {what} of {_size(model)}{labels}, with a latent diffusion model."


def call(model: Model) -> str:
    """The arguments of the card's example."""
    label = f", class_labels={json.dumps(model.labels[0])}" if model.labels else ""
    mask = "mask, " if model.adapter else ""
    return f"{mask}num_samples=4, num_inference_steps={DEFAULT_STEPS}, seed=0{label}"


def architecture(model: Model) -> str:
    vae, transformer = model.vae, model.transformer
    rows = {
        f"{NAMES[name]} (`{name}`)": f"`{config['_class_name']}`, {_millions(model.parameters(name))} parameters, "
        f"stored as {model.precision(name)}"
        for name, config in (("vae", vae), ("transformer", transformer), ("adapter", model.adapter))
        if config is not None
    }
    rows["Codebook"] = f"{vae['num_embeddings']} codes of {vae['embedding_dim']} channels"
    axes = "slices × H × W × frames" if model.is_cine else "H × W × D"
    rows["Latents"] = f"{times(transformer['sample_size'])} ({axes}), {transformer['in_channels']} channels"
    tokens = math.prod(n // p for n, p in zip(transformer["sample_size"], transformer["patch_size"], strict=True))
    rows["Transformer"] = (
        f"{transformer['num_layers']} blocks, {transformer['num_attention_heads']} heads of "
        f"{transformer['attention_head_dim']}, patches of {times(transformer['patch_size'])}, {tokens} tokens"
    )
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


def geometry(model: Model) -> str:
    spacing, frame_time, steps = model.vae.get("spacing"), model.vae.get("frame_time"), model.preprocessing
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
    config = model.scheduler
    schedule = "exact values, in `trained_betas`" if config.get("trained_betas") else f"`{config.get('beta_schedule')}`"
    rows = {
        "Solver": f"`{config['_class_name']}`" + _solver_settings(config),
        "Noise schedule": f"{config['num_train_timesteps']} steps, {schedule}",
        "Prediction": f"`{config.get('prediction_type')}`",
        "Steps": f"{DEFAULT_STEPS} unless said otherwise, spacing `{config.get('timestep_spacing')}`",
        "Guidance": "`guidance_scale` 1 (none) unless said otherwise" if model.labels else "none",
        "Scaling factor of the latents": f"{model.vae.get('scaling_factor', 1.0):.6g}",
    }
    return table(rows)


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
