"""Build the transformer or U-Net that stage 2 trains: a new one, one to fine-tune, or one with a LoRA adapter."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import USE_PEFT_BACKEND

from cardiodit._util.randomness import generator_for
from cardiodit._util.typed_yaml import Section, to_yaml
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.load import open_transformer
from cardiodit.models.clinical_conditions import ClinicalConditions
from cardiodit.models.loading import bounded_model
from cardiodit.systems import load, system_of
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.latent_data import Cohort
from cardiodit.training.objectives import LATENT_OBJECTIVES, Objective
from cardiodit.training.settings import DiTSettings, DiTTraining, UNetSettings

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]  # attention and MLP of every block
ADAPTER = "default"
DROPOUTS = ("condition_dropout_prob", "unconditional_prob")  # of clinical conditions, in training
Settings = DiTSettings | UNetSettings


def objective_from(
    section: Mapping[str, Any] | Section,
    tuned: Any = None,
    classes: Mapping[str, type[Objective]] = LATENT_OBJECTIVES,
) -> Objective:
    """Return the objective that a `diffusion` or `process` section describes; one of an earlier version names none.

    A model that is fine-tuned keeps predicting what it was trained to predict.
    """
    keys = dict(section.items())
    kind = classes[keys.pop("objective", next(iter(classes)))]
    objective = kind(**{**keys, **({} if tuned is None else kind.kept_from(tuned.config))})
    if tuned is not None and (conflicts := objective.conflicts(tuned.config)):
        raise CardioDiTError(
            f"The model was trained with another objective: {'; '.join(conflicts)}. Choose the model's own objective "
            "in the config's section `diffusion`."
        )
    return objective


def new_transformer(settings: Settings, cohort: Cohort, objective: Objective, script: str = "train_dit") -> Any:
    """Make the configured model of a script's system for the size, the channels and the labels of the data."""
    section = dict(settings.model)
    in_channels, sample_size = section.pop("in_channels"), section.pop("sample_size")
    shape = cohort.shape
    axes = len(shape) - 1
    if settings.dimensions not in (None, axes):
        raise CardioDiTError(
            f"dimensions is {settings.dimensions}, but the latents of this VQ model have {axes} axes. Omit the key, "
            "or give the VQ model of the other system."
        )
    if in_channels not in (None, shape[0]):
        raise CardioDiTError(f"model.in_channels is {in_channels}, but the latents have {shape[0]} channels.")
    if sample_size is not None and tuple(sample_size) != shape[1:]:
        raise CardioDiTError(
            f"model.sample_size is {list(sample_size)}, but the latents are {list(shape[1:])}. Omit the key, or encode "
            "volumes of another size."
        )
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    classes: dict[str, Any] = {}
    if "class_dropout_prob" in section:
        classes = {"num_classes": len(cohort.classes), "class_names": list(cohort.classes) or None}
        section["class_dropout_prob"] *= bool(cohort.classes)
    if cohort.conditions is not None:
        classes["conditions"] = cohort.conditions.to_config()
    elif DROPOUTS[0] in section:
        section |= dict.fromkeys(DROPOUTS, 0.0)
    kind = load(system_of(script, dimensions=axes).denoiser)
    with bounded_model():
        return kind(sample_size=shape[1:], in_channels=shape[0], **section, **classes, **objective.model_config)


def transformer_to_tune(name: str, settings: Settings, given: Mapping[str, Any], script: str = "train_dit") -> Any:
    """Open a trained model of a script's system; raise for keys of the user's config that contradict the model's."""
    model: Any = open_transformer(name).train()
    system_of(script, denoiser=model)  # raises an error for a model of another script
    config = model.config
    problems = Problems(f"The model {name} cannot be fine-tuned with this config")
    if settings.dimensions not in (None, len(model.axis_names)):
        problems.add(f"dimensions is {settings.dimensions}, the model has {len(model.axis_names)}")
    keys: dict[str, Any] = dict(given.get("model") or {})
    keys.pop("sample_size", None)  # the size may differ from the trained one at any call
    if "prediction_type" in (given.get("diffusion") or {}):
        keys["prediction_type"] = settings.diffusion.prediction_type
    if not config.get("conditions"):  # they may be added
        keys = {key: value for key, value in keys.items() if key not in DROPOUTS}
    for key, value in keys.items():
        if value is not None and value != to_yaml(config[key]):
            problems.add(f"{key} is {value} in the config and {to_yaml(config[key])} in the model")
    problems.raise_if_any("Omit these keys: the model has its own.")
    return model


def with_conditions(model: Any, conditions: ClinicalConditions | None, settings: Settings) -> Any:
    """Return a model to fine-tune that also takes clinical conditions, if it had none; they start without effect."""
    if conditions is None or getattr(model, "conditions", None) is not None:
        return model
    if settings.training.lora_rank:
        raise CardioDiTError(
            "The model has no clinical conditions, and a LoRA adapter cannot add them: set lora_rank to 0."
        )
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    drops = {name: settings.model[name] for name in DROPOUTS}
    made = type(model).from_config({**config, **drops, "conditions": conditions.to_config()})
    made.load_state_dict(model.state_dict(), strict=False)  # only the new embedding is missing
    made.condition_embed.silence()
    return made.train()


def check_fits(model: Any, cohort: Cohort) -> None:
    """Raise an error if the model does not take these latents."""
    if model.config.in_channels != cohort.shape[0]:
        raise CardioDiTError(
            f"The model takes latents of {model.config.in_channels} channels, these have {cohort.shape[0]}: "
            "they come from another VQ model than the one that it was trained with."
        )
    for shape in {cohort.shape, *(cohort.shapes or ())}:
        model.grid_of(shape[1:])  # raises an error for an axis that the patch does not divide


def add_adapter(model: Any, training: DiTTraining) -> None:
    """Add a LoRA adapter (Hu et al., arXiv:2106.09685) to attention and MLP, and freeze all other weights."""
    if not USE_PEFT_BACKEND:
        raise CardioDiTError("LoRA needs peft: pip install 'cardiodit[lora]', or set lora_rank to 0.")
    from peft import LoraConfig

    torch.manual_seed(generator_for(seed_for(training.seed, "adapter"), 0).initial_seed())
    model.requires_grad_(False)
    alpha = training.lora_rank if training.lora_alpha is None else training.lora_alpha
    config: Any = LoraConfig(r=training.lora_rank, lora_alpha=alpha, target_modules=LORA_LAYERS)  # type: ignore[arg-type]
    model.add_adapter(config, ADAPTER)


def write_adapter(folder: Path, model: Any) -> None:
    """Write a LoRA adapter in diffusers' format."""
    from peft import get_peft_model_state_dict

    shutil.rmtree(folder, ignore_errors=True)
    system = system_of(denoiser=model)
    layers = {
        f"{system.component}_lora_layers": get_peft_model_state_dict(model, adapter_name=ADAPTER),
        f"{system.component}_lora_adapter_metadata": model.peft_config[ADAPTER].to_dict(),
    }
    load(system.pipeline).save_lora_weights(folder, **layers)
