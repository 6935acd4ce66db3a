"""Build the autoencoder and the discriminator that stage 1 trains: new ones, or ones to fine-tune."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit._util.typed_yaml import to_yaml
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.load import open_vae
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.models.loading import bounded_model
from cardiodit.systems import load, system_of
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.settings import VQGANSettings


def model_class(dimensions: int) -> type[VQModel]:
    """Return the VQ model of the system with this number of dimensions that stage 1 trains."""
    return load(system_of("train_vqgan", dimensions=dimensions).autoencoder or VQModel)


def model_to_tune(name: str, settings: VQGANSettings, given: Mapping[str, Any]) -> VQModel:
    """Open a trained VQ model; raise an error for keys of the user's config that contradict the model's."""
    model = open_vae(name)
    problems = Problems(f"The VQ model {name} cannot be fine-tuned with this config")
    if not isinstance(model, model_class(settings.dimensions)):
        problems.add(f"dimensions is {settings.dimensions}, the model is a {type(model).__name__}")
    for key, value in (given.get("model") or {}).items():
        if value != to_yaml(model.config[key]):
            problems.add(f"{key} is {value} in the config and {to_yaml(model.config[key])} in the model")
    problems.raise_if_any("Omit these keys: the model has its own.")
    return model


def new_model(settings: VQGANSettings) -> VQModel:
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    with bounded_model():
        return model_class(settings.dimensions)(**settings.model)


def check_sizes(model: VQModel, volumes: PreparedVolumes, crop: tuple[int, ...] | None) -> None:
    """Raise an error unless the sizes of volumes and boxes are multiples of the model's downsampling factors."""
    if crop is not None and len(crop) != 3:
        raise CardioDiTError(f"data.crop {list(crop)} must have three numbers, for {', '.join(model.axis_names)}.")
    problems = Problems("The VQ model cannot encode these volumes")
    prepared = volumes.shapes[0][-3:]
    for what, size in [("data.preprocessing", prepared), ("data.crop", crop or prepared)]:
        for axis, length, factor, most in zip(model.axis_names, size, model.scale_factors, prepared):
            if length > most:
                problems.add(f"{what} makes {axis} {length}, more than the available {most}")
            if length % factor:
                below, above = length // factor * factor, (length // factor + 1) * factor
                nearest = below or above
                problems.add(f"{what} makes {axis} {length}; it must be a multiple of {factor}, such as {nearest}")
    problems.raise_if_any()


def new_discriminator(settings: VQGANSettings) -> PatchDiscriminator:
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "discriminator"), 0).initial_seed())
    with bounded_model():
        return PatchDiscriminator(spatial_dims=3, **settings.discriminator)


def discriminator_beside(name: str) -> PatchDiscriminator | None:
    """Open the discriminator that was trained with a VQ model, if it is in the same run folder."""
    for folder in (Path(name) / "best", Path(name), Path(name).parent):
        if (folder / "discriminator" / "config.json").is_file():
            return PatchDiscriminator.from_pretrained(folder / "discriminator")
    return None
