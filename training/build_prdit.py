"""The PRDiT model that is trained: a new one, or one that begins with what another has learned."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import torch

from cardiodit._util.hashing import add_weights
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.load import open_voxel_transformer
from cardiodit.imaging.preprocessing import Preprocessing, without_typical
from cardiodit.models.transformer_prdit import PROCESS, REFINER, PRDiTTransformerModel
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.settings import PRDiTSettings
from cardiodit.training.volumes import preprocessing_of

# What a part that was trained before depends on: its shape, the process, and how grey values and axes came to it. Size,
# voxels and averaging are free, so that a low resolution can start a high one.
SHAPE = ("patch_size", "in_channels", "num_attention_heads", "attention_head_dim")
SEEN = ("intensity", "limits_of", "orient")


def tuned_model(request: Request[PRDiTSettings]) -> PRDiTTransformerModel | None:
    """The model of `--init_from`, of whatever size its volumes were; None where the option was not given."""
    name = request.options.init_from
    if name is None:
        return None
    model = open_voxel_transformer(name).train()
    problems = Problems(f"The model {name} cannot be fine-tuned with this config")
    for key, value in (request.plain.get("model") or {}).items():
        if value != model.config[key]:
            problems.add(f"{key} is {value} in the config and {model.config[key]} in the model")
    problems.raise_if_any(
        "Leave these keys out: the model brings its own. A refiner (num_layers) on top of a local denoiser is stage 2: "
        "give the denoiser as --stage1."
    )
    check_process_and_preparation(model, name, request, preprocessing_of(request, model))
    return model


def model_for(
    request: Request[PRDiTSettings], tuned: PRDiTTransformerModel | None, size: Sequence[int], steps: Preprocessing
) -> PRDiTTransformerModel:
    """What is trained on volumes of a size, prepared by these steps, with what stage 2 does not train frozen."""
    settings, stage1 = request.settings, request.options.stage1
    if tuned is None:
        torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
        process = {key: getattr(settings.process, key) for key in PROCESS}
        model = PRDiTTransformerModel(sample_size=size, **asdict(settings.model), **process)
    else:
        model = tuned
        model.grid_of(size)
        model.register_to_config(sample_size=tuple(size))
    if not model.has_refiner:
        if stage1 is not None:
            raise CardioDiTError(
                "--stage1 is for stage 2, but this model has no refiner (num_layers is 0). To go on with a local "
                "denoiser give it as --init_from."
            )
        return model
    if stage1 is not None:
        other = open_voxel_transformer(stage1)
        check_process_and_preparation(other, stage1, request, steps)
        take_local_part(model, other, stage1)
    elif tuned is None:
        raise CardioDiTError(
            "Stage 2 trains the refiner of a local denoiser that was trained before: name its run with --stage1 (or a "
            "whole model with --init_from)."
        )
    freeze_local_part(model)
    return model


def check_process_and_preparation(
    other: PRDiTTransformerModel, name: str, request: Request[PRDiTSettings], steps: Preprocessing
) -> None:
    """What was trained before must meet the noise, the grey values and the axes that it knows."""
    problems = Problems(f"The model {name} was trained on other noise or other volumes than this config's")
    for key in PROCESS:
        if (here := getattr(request.settings.process, key)) != other.config[key]:
            problems.add(f"process.{key} is {here} here and {other.config[key]} there")
    if other.config.preprocessing is not None:
        both = (steps, Preprocessing.from_dict(other.config.preprocessing))
        known = [without_typical(each).to_dict() for each in both]
        for key in SEEN:
            here, there = (each.get(key) for each in known)
            if here != there:
                problems.add(f"data.preprocessing.{key} is {here} here and {there} there")
    problems.raise_if_any("Take the same values in both trainings.")


def take_local_part(model: PRDiTTransformerModel, other: PRDiTTransformerModel, name: str) -> None:
    """Everything but the refiner, from a model of stage 1 or one that is whole."""
    problems = Problems(f"The local denoiser of {name} does not belong to this model")
    for key in SHAPE:
        if model.config[key] != other.config[key]:
            problems.add(f"{key} is {model.config[key]} here and {other.config[key]} there")
    problems.raise_if_any("Take the same values in both stages.")
    weights = {key: value for key, value in other.state_dict().items() if not is_refined(key)}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or (strangers := [key for key in missing if not is_refined(key)]):
        raise CardioDiTError(f"{name} and this model differ in {', '.join([*unknown, *strangers][:4])}.")


def freeze_local_part(model: PRDiTTransformerModel) -> None:
    model.requires_grad_(False)
    for part in model.refiner_parts():
        part.requires_grad_(True)


def is_refined(key: str) -> bool:
    """Whether stage 2 trains this weight."""
    return key.split(".")[0] in REFINER


def identity_of_local(model: PRDiTTransformerModel) -> str | None:
    """A hash of the weights that stage 2 leaves as they are; None of stage 1, which leaves none."""
    if not model.has_refiner:
        return None
    digest = hashlib.sha256()
    add_weights(digest, {key: value for key, value in model.state_dict().items() if not is_refined(key)})
    return f"sha256:{digest.hexdigest()[:16]}"
