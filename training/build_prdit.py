"""Build the PRDiT model to train: a new one, or one that starts with trained weights."""

import hashlib
from collections.abc import Sequence

import torch

from cardiodit._util.hashing import add_weights
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.load import open_voxel_transformer
from cardiodit.imaging.preprocessing import Preprocessing, without_typical
from cardiodit.models.loading import bounded_model
from cardiodit.models.transformer_prdit import REFINER, PRDiTTransformerModel, plain_config
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.image_data import preprocessing_of
from cardiodit.training.objectives import Objective
from cardiodit.training.settings import PRDiTSettings

# What trained weights depend on, besides the objective. Size, spacing and averaging may differ, so that a model of
# low resolution can start one of a high resolution.
SHAPE_KEYS = ("patch_size", "tile_size", "in_channels", "num_attention_heads", "attention_head_dim")
PREPROCESSING_KEYS = ("intensity", "limits_of", "orient")


def tuned_model(request: Request[PRDiTSettings], objective: Objective) -> PRDiTTransformerModel | None:
    """Return the model of `--init_from`, trained on volumes of any size; None without that option."""
    name = request.options.init_from
    if name is None:
        return None
    model = open_voxel_transformer(name).train()
    problems = Problems(f"The model {name} cannot be fine-tuned with this config")
    for key, value in (request.given.get("model") or {}).items():
        if value != model.config[key]:
            problems.add(f"{key} is {value} in the config and {model.config[key]} in the model")
    problems.raise_if_any(
        "Omit these keys: the model has its own. A refiner (num_layers) on top of a local denoiser is stage 2: "
        "give the denoiser as --stage1."
    )
    check_compatible(model, name, objective, preprocessing_of(request, model))
    return model


def model_for(
    request: Request[PRDiTSettings],
    objective: Objective,
    tuned: PRDiTTransformerModel | None,
    size: Sequence[int],
    steps: Preprocessing,
) -> PRDiTTransformerModel:
    """Return the model to train on volumes of this size and preprocessing; in stage 2 its local part is frozen."""
    settings, stage1 = request.settings, request.options.stage1
    if tuned is None:
        torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
        with bounded_model():
            model = new_model(request, objective, size, steps)
    else:
        model = tuned
        model.grid_of(size)
        model.register_to_config(sample_size=tuple(size))
    if model.base is not None:
        model.base.requires_grad_(settings.training.train_base)
    elif settings.training.train_base:
        raise CardioDiTError(
            "train_base is for super-resolution (model.super_resolution above 1), and this model has no base."
        )
    if not model.has_refiner:
        if stage1 is not None:
            raise CardioDiTError(
                "--stage1 is for stage 2, but this model has no refiner (num_layers is 0). To continue the "
                "training of a local denoiser, give it as --init_from."
            )
        return model
    if stage1 is not None:
        other = open_voxel_transformer(stage1)
        check_compatible(other, stage1, objective, steps)
        take_local_part(model, other, stage1)
    elif tuned is None:
        raise CardioDiTError(
            "Stage 2 trains the refiner on top of a trained local denoiser: give its run as --stage1, or a whole model "
            "as --init_from."
        )
    freeze_local_part(model)
    return model


def new_model(
    request: Request[PRDiTSettings], objective: Objective, size: Sequence[int], steps: Preprocessing
) -> PRDiTTransformerModel:
    """Make the configured model; one of super-resolution contains the model of the lower resolution (`--base`)."""
    section, name = dict(request.settings.model), request.options.base
    if (section["super_resolution"] > 1) != (name is not None):
        raise CardioDiTError(
            "Super-resolution needs both model.super_resolution above 1, by which the volumes are larger, and --base, "
            "the model of the smaller volumes."
        )
    if name is None:
        return PRDiTTransformerModel(sample_size=size, **section, **objective.model_config)
    base = open_voxel_transformer(name)
    check_compatible(base, name, objective, steps)
    config = {**plain_config(base), "sample_size": [length // section["super_resolution"] for length in size]}
    model = PRDiTTransformerModel(sample_size=size, base_config=config, **section, **objective.model_config)
    model.base.load_state_dict(base.state_dict())
    return model


def check_compatible(other: PRDiTTransformerModel, name: str, objective: Objective, steps: Preprocessing) -> None:
    """Raise an error if a model was trained with other noise, grey values or axes."""
    problems = Problems(f"The model {name} was trained with other noise or other volumes than this config's")
    for conflict in objective.conflicts(other.config):
        problems.add(f"process.{conflict}")
    if other.config.preprocessing is not None:
        both = (steps, Preprocessing.from_dict(other.config.preprocessing))
        known = [without_typical(each).to_dict() for each in both]
        for key in PREPROCESSING_KEYS:
            here, there = (each.get(key) for each in known)
            if here != there:
                problems.add(f"data.preprocessing.{key} is {here} here and {there} there")
    problems.raise_if_any("Use the same values in both trainings.")


def take_local_part(model: PRDiTTransformerModel, other: PRDiTTransformerModel, name: str) -> None:
    """Copy all weights but the refiner's from a model of stage 1 or a whole model."""
    problems = Problems(f"The local denoiser of {name} does not fit this model")
    for key in SHAPE_KEYS:
        if model.config[key] != other.config[key]:
            problems.add(f"{key} is {model.config[key]} here and {other.config[key]} there")
    problems.raise_if_any("Use the same values in both stages.")
    weights = {key: value for key, value in other.state_dict().items() if not is_refined(key)}
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or (lacking := [key for key in missing if not is_refined(key)]):
        raise CardioDiTError(f"{name} and this model differ in {', '.join([*unknown, *lacking][:4])}.")


def freeze_local_part(model: PRDiTTransformerModel) -> None:
    model.requires_grad_(False)
    for part in model.refiner_parts():
        part.requires_grad_(True)


def is_refined(key: str) -> bool:
    """Return whether stage 2 trains this weight."""
    return key.split(".")[0] in REFINER


def identity_of_local(model: PRDiTTransformerModel) -> str | None:
    """Return a hash of the weights that stages 2 and 3 do not train; None for a model that is trained whole."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    if not frozen:
        return None
    digest = hashlib.sha256()
    add_weights(digest, {key: value for key, value in model.state_dict().items() if key in frozen})
    return f"sha256:{digest.hexdigest()[:16]}"
