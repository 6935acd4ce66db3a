"""Open and build pipelines of any system."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from cardiodit._util.foreign_files import read_object
from cardiodit.hub.bundled_models import find_pipeline
from cardiodit.hub.registration import class_name_of
from cardiodit.systems import load, system_of, system_of_pipeline


def make_pipeline(vae: Any, denoiser: Any, scheduler: Any, adapter: Any = None) -> Any:
    """Build the pipeline of the system that a denoiser belongs to; `vae` is None for models on voxels."""
    return system_of(denoiser=denoiser).make_pipeline(denoiser, scheduler, vae, adapter)


def open_pipeline(name: str | Path, **kwargs: Any) -> Any:
    """Open a pipeline folder, a training run, a Hub repository or a bundled model as a pipeline of its own class.

    Args:
        name: folder of a pipeline or of a finished training run, `org/name` on the Hub, or the name of a bundled model.
        kwargs: further arguments of `from_pretrained`.
    """
    model = find_pipeline(name)
    is_local = Path(model).is_dir()
    index = read_object(Path(model) / "model_index.json") if is_local else DiffusionPipeline.load_config(str(model))
    kind = class_name_of(index, model)
    system = system_of_pipeline(kind)
    return load(system.pipelines[kind]).from_pretrained(model, **kwargs)
