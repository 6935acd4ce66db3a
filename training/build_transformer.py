"""The transformer that stage 2 trains: a new one, one to be fine-tuned, or one with an adapter."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import USE_PEFT_BACKEND

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.load import open_transformer
from cardiodit.models import DiT3DTransformerModel, DiT4DTransformerModel
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.latent_data import Cohort
from cardiodit.training.settings import DiTSettings, DiTTraining

KINDS: dict[int, type[DiTTransformerModel]] = {3: DiT3DTransformerModel, 4: DiT4DTransformerModel}
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]  # attention and MLP of every block
ADAPTER = "default"


def new_transformer(settings: DiTSettings, cohort: Cohort) -> DiTTransformerModel:
    """As the config says, with what only the data know: size and channels of the latents, and the labels."""
    said = settings.model
    shape = cohort.shape
    axes = len(shape) - 1
    if settings.dimensions not in (None, axes):
        raise CardioDiTError(
            f"dimensions is {settings.dimensions}, but the latents of this VQ model have {axes} axes. Leave the key "
            "out to take theirs, or give the VQ model of the other system."
        )
    if said.in_channels not in (None, shape[0]):
        raise CardioDiTError(f"model.in_channels is {said.in_channels}, but the latents have {shape[0]} channels.")
    if said.sample_size is not None and tuple(said.sample_size) != shape[1:]:
        raise CardioDiTError(
            f"model.sample_size is {list(said.sample_size)}, but the latents are {list(shape[1:])}. Leave the key out "
            "to take theirs, or encode volumes of another size."
        )
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    return KINDS[axes](
        sample_size=shape[1:],
        patch_size=said.patch_size,
        in_channels=shape[0],
        num_layers=said.num_layers,
        num_attention_heads=said.num_attention_heads,
        attention_head_dim=said.attention_head_dim,
        mlp_ratio=said.mlp_ratio,
        num_classes=len(cohort.classes),
        class_dropout_prob=said.class_dropout_prob if cohort.classes else 0.0,
        class_names=list(cohort.classes) or None,
        learn_sigma=said.learn_sigma,
        dropout=said.dropout,
        prediction_type=settings.diffusion.prediction_type,
    )


def transformer_to_tune(name: str, settings: DiTSettings, plain: Mapping[str, Any]) -> DiTTransformerModel:
    """A trained transformer with its own config; what the user's config says otherwise is an error."""
    model = open_transformer(name).train()
    config = model.config
    problems = Problems(f"The model {name} cannot be fine-tuned with this config")
    if settings.dimensions not in (None, len(model.axis_names)):
        problems.add(f"dimensions is {settings.dimensions}, the model has {len(model.axis_names)}")
    said: dict[str, Any] = dict(plain.get("model") or {})
    said.pop("sample_size", None)  # another size than trained may be given at any call
    if "prediction_type" in (plain.get("diffusion") or {}):
        said["prediction_type"] = settings.diffusion.prediction_type
    for key, value in said.items():
        held = config[key]
        held = list(held) if isinstance(held, tuple) else held
        if value is not None and value != held:
            problems.add(f"{key} is {value} in the config and {held} in the model")
    problems.raise_if_any("Leave these keys out: the model brings its own.")
    return model


def check_fits(model: DiTTransformerModel, cohort: Cohort) -> None:
    """A model that is fine-tuned must take these latents."""
    if model.config.in_channels != cohort.shape[0]:
        raise CardioDiTError(
            f"The transformer takes latents of {model.config.in_channels} channels, these have {cohort.shape[0]}: "
            "they come from another VQ model than the one it was trained with."
        )
    model.grid_of(cohort.shape[1:])  # an axis that the patch does not divide is an error


def add_adapter(model: DiTTransformerModel, training: DiTTraining) -> None:
    """A LoRA adapter (Hu et al., arXiv:2106.09685) on attention and MLP; all else is frozen."""
    if not USE_PEFT_BACKEND:
        raise CardioDiTError("LoRA needs peft: pip install 'cardiodit[lora]', or lora_rank 0.")
    from peft import LoraConfig

    torch.manual_seed(generator_for(seed_for(training.seed, "adapter"), 0).initial_seed())
    model.requires_grad_(False)
    alpha = training.lora_rank if training.lora_alpha is None else training.lora_alpha
    config: Any = LoraConfig(r=training.lora_rank, lora_alpha=alpha, target_modules=ADAPTED)  # type: ignore[arg-type]
    model.add_adapter(config, ADAPTER)
