"""Opens and makes pipelines of any of our kinds."""

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import find_model
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline
from cardiodit.pipelines.pipeline_cardiodit_control import CardioDiTControlPipeline
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.pipelines.pipeline_voldit import VolDiTPipeline
from cardiodit.pipelines.pipeline_voldit_control import VolDiTControlPipeline
from cardiodit.pipelines.provenance import check_is_pipeline_folder

LATENT = (CardioDiTPipeline, CardioDiTControlPipeline, VolDiTPipeline, VolDiTControlPipeline)
KINDS: dict[str, type[VolumePipeline]] = {kind.__name__: kind for kind in (*LATENT, PRDiTPipeline)}
BY_AXES: dict[int, Any] = {3: VolDiTPipeline, 4: CardioDiTPipeline}
STEERED_BY_AXES: dict[int, Any] = {3: VolDiTControlPipeline, 4: CardioDiTControlPipeline}


def make_pipeline(
    vae: Any, transformer: DiTTransformerModel, scheduler: Any, adapter: TGCAAdapterModel | None = None
) -> LatentVolumePipeline:
    """The pipeline that a VQ model and a transformer become: of cine with four axes, of volumes with three."""
    axes = len(transformer.axis_names)
    if adapter is None:
        return BY_AXES[axes](vae, transformer, scheduler)
    return STEERED_BY_AXES[axes](vae, transformer, scheduler, adapter)


def open_pipeline(name: str | Path, **kwargs: Any) -> Any:
    """The pipeline of a folder, of the Hub, or one that comes with the package, as its own kind.

    What else is given goes to `from_pretrained`.
    """
    model = find_model(name)
    check_is_pipeline_folder(model)
    kind = DiffusionPipeline.load_config(str(model)).get("_class_name")
    kind = kind[-1] if isinstance(kind, list) else kind  # one that travels with its code names its file, too
    if kind not in KINDS:
        raise CardioDiTError(f"{name} is a {kind}, which is none of {', '.join(KINDS)}.")
    return KINDS[kind].from_pretrained(model, **kwargs)
