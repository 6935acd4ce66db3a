"""Describe a model and its preprocessing in words and tables; what is specific to a system comes from its record."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cardiodit.hub.card.model_facts import Model
from cardiodit.imaging.intensity import parse_percentile
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.clinical_conditions import ClinicalCondition

NAMES = {
    "vae": "Autoencoder",
    "transformer": "Denoiser",
    "unet": "Denoiser",
    "adapter": "Adapter for masks",
    "controlnet": "ControlNet for masks",
}


def table(rows: Mapping[str, Any]) -> str:
    """Return a Markdown table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def times(values: Sequence[Any], unit: str = "") -> str:
    """Join numbers as in "256 × 256 × 6"."""
    return " × ".join(f"{value:g}" for value in values) + (unit and f" {unit}")


def summary(model: Model) -> str:
    """Return the first sentence of the card."""
    kind = "4D cardiac cine MRI (short-axis stacks over one heartbeat)" if model.is_cine else "3D volumes"
    labels = f", of the classes {_listed(model.labels)}" if model.labels else ""
    asked = f", conditioned on {_listed(list(model.conditions))}" if model.conditions else ""
    method = "a latent diffusion model" if model.vae else "a diffusion model on voxels"
    return f"Generates synthetic {kind} of {_size(model)}{labels}{asked}, with {method}."


def call(model: Model) -> str:
    """Return the arguments of the card's code example."""
    label = f", class_labels={json.dumps(model.labels[0])}" if model.labels else ""
    if model.conditions:
        row = {name: each.values[0] if each.values else each.middle for name, each in model.conditions.items()}
        label += f", conditions={json.dumps(row)}"
    mask = "mask, " if model.adapter else ""
    return f"{mask}num_samples=4, num_inference_steps={model.default_steps}, seed=0{label}"


def method(model: Model) -> str:
    return model.system.card.method(model)


def architecture(model: Model) -> str:
    rows = {
        f"{NAMES[component]} (`{component}`)": f"`{config['_class_name']}`, {_millions(model.parameters(component))} "
        f"parameters, stored as {model.precision(component)}"
        for component, config in model.networks.items()
    }
    rows |= model.system.card.architecture(model)
    if model.adapter:
        rows["Masks"] = _masks(model.adapter)
    if model.vae and model.vae.get("mask_labels"):
        rows["Masks of samples"] = "decoded with every sample: right ventricle 1, myocardium 2, left ventricle 3"
    is_steered = bool(model.adapter or model.conditions)
    rows["Class labels"] = _listed(model.labels) or ("none" if is_steered else "none; generation cannot be steered")
    if model.labels:
        dropped = model.denoiser.get("class_dropout_prob") or 0
        rows["Guidance"] = (
            f"classifier-free; {dropped:.0%} of the labels were dropped in training"
            if dropped
            else "not supported: no labels were dropped in training"
        )
    if model.conditions:
        rows["Clinical conditions"] = "; ".join(_condition(each) for each in model.conditions.values())
        each, alone = (model.denoiser.get(name) or 0 for name in ("condition_dropout_prob", "unconditional_prob"))
        rows["Guidance by conditions"] = (
            f"classifier-free, over all or some; in training {each:.0%} of each and {alone:.0%} of all together were "
            "dropped, so that any of them can be left out"
        )
    return table(rows)


def _condition(condition: ClinicalCondition) -> str:
    known = "" if condition.known is None else f", known for {condition.known} training volumes"
    return f"`{condition.name}` ({condition.range}{known})"


def geometry(model: Model) -> str:
    spacing, frame_time, steps = model.facts.get("spacing"), model.facts.get("frame_time"), model.preprocessing
    rows = {
        "Volume": _size(model),
        "Voxel size": times(spacing, "mm (H × W × D)")
        if spacing
        else "unknown: files carry no voxel size, so volumes in mL cannot be computed from them",
    }
    if model.is_cine:
        rows["Time between frames"] = (
            f"{1000 * frame_time:g} ms" if frame_time else "unknown: beats were resampled to one length"
        )
        rows["Order"] = (
            "slices from base to apex, frame 0 is end-diastole, one heartbeat per cycle"
            if steps is not None and steps.orient
            else "slices and frames as in the training files"
        )
    limits = None if steps is None else steps.intensity.units
    rows["Intensities"] = "[-1, 1]" + (
        f"; in files -1 becomes {limits[0]:g} and 1 becomes {limits[1]:g}, in the units of the training files"
        if limits
        else "; the units of the training files are unknown"
    )
    return table(rows)


def sampler(model: Model) -> str:
    return table(model.system.card.sampler(model))


def _size(model: Model) -> str:
    axes = "H × W × slices × frames" if model.is_cine else "H × W × D"
    return f"{times(model.size)} voxels ({axes})"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _masks(adapter: Mapping[str, Any]) -> str:
    keys, labels = adapter.get("condition_keys") or [], adapter.get("condition_labels")
    described = [
        f"`{key}`" + (f" (labels {', '.join(map(str, labels[i]))})" if labels else "") for i, key in enumerate(keys)
    ]
    listed = ", ".join(described) or f"{adapter['condition_channels']} channels"
    return f"{listed}: label maps of the generated size specify where structures lie"


def _listed(labels: Sequence[Any]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def preprocessing(steps: Preprocessing, is_cine: bool) -> str:
    """Return a numbered list of the preprocessing steps of the training volumes."""
    source = "volume's field of view" if steps.limits_of == "view" else "volume"
    low, high = (_limit(value, source) for value in (steps.intensity.low, steps.intensity.high))
    lines = [
        _orientation(steps, is_cine),
        _spacing(steps),
        _fit(steps),
        _beat(steps),
        f"Intensities: {low} becomes -1, {high} becomes 1, linear in between; values outside are clipped.",
        f"Averaged over cubes of {steps.pool} voxels along each axis." if steps.pool > 1 else "",
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(filter(None, lines), start=1))


def _limit(value: float | str, source: str) -> str:
    if not isinstance(value, str):
        return f"{value:g} in the source's units"
    if not value.startswith("p"):
        return f"the {value} of each {source}"
    percentile, most = parse_percentile(value)
    return f"percentile {percentile:g} of each {source}" + ("" if most is None else f", or {most:g} if that is less,")


def _orientation(steps: Preprocessing, is_cine: bool) -> str:
    if not steps.orient:
        return "Axes left as stored."
    return "Reoriented to one axis order" + (": slices from base to apex, end-diastole first." if is_cine else ".")


def _spacing(steps: Preprocessing) -> str:
    known = {axis: s for axis, s in zip("HWD", steps.spacing, strict=True) if s is not None}
    if not known:
        return "" if steps.fit == "resize" else "Voxel size left as in the file."
    kept = [axis for axis in "HWD" if axis not in known]
    listed = ", ".join(f"{axis} {value:g} mm" for axis, value in known.items())
    return f"Resampled to {listed}" + (f"; {' and '.join(kept)} as in the file." if kept else ".")


def _fit(steps: Preprocessing) -> str:
    sizes = {axis: n for axis, n in zip("HWD", steps.size, strict=True) if n is not None}
    if not sizes:
        return ""
    how = "Resized as a whole" if steps.fit == "resize" else "Cropped or padded around the centre"
    return f"{how} to {', '.join(f'{axis} {n}' for axis, n in sizes.items())} voxels."


def _beat(steps: Preprocessing) -> str:
    if not steps.frames or steps.frames == 1:
        return ""
    if steps.cycle == "repeat":
        return f"The beat's frames repeated and cut to {steps.frames}."
    if steps.cycle != "resample":
        return f"One beat aligned to {steps.frames} frames ({steps.cycle})."
    return f"One beat resampled periodically to {steps.frames} frames."
