"""What the model draws while it learns, and the pipeline folder it becomes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cardiodit._util.randomness import generator_for
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.pictures import write_gif, write_slices
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline, VolumePipeline
from cardiodit.pipelines.load import make_pipeline
from cardiodit.schedulers import make_scheduler
from cardiodit.training.build_transformer import ADAPTER
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.state import Average, Network, Tensors
from cardiodit.training.objectives import Denoising
from cardiodit.training.settings import PreviewedTraining

PREVIEW_SEED = 0


def sampler_of(denoising: Denoising) -> Any:
    """Our default solver for the schedule that the model was trained with."""
    return make_scheduler(
        "dpm++", denoising.settings.num_train_timesteps, denoising.betas, denoising.settings.prediction_type
    )


def whole_copy(build: Callable[[], Any], tensors: Tensors, device: torch.device) -> Any:
    """A model of its own, outside of all wrappers, with these weights."""
    copy = build()
    copy.load_state_dict(tensors)
    return copy.to(device).eval().requires_grad_(False)


def preview(
    run: Run,
    weights: Average | Network,
    build: Callable[[], Any],
    as_pipeline: Callable[[Any], VolumePipeline],
    training: PreviewedTraining,
) -> None:
    """Samples a few volumes, the same noise every time, into `previews/` and the tracker."""
    tensors = weights.gather()  # every process must take part where weights are sharded
    if run.is_main:
        pipe = as_pipeline(whole_copy(build, tensors, run.accelerator.device))
        pipe.set_progress_bar_config(disable=True)
        classes = pipe.transformer.config.get("num_classes")
        count = training.preview_samples
        output = pipe(
            num_samples=count,
            num_inference_steps=min(training.preview_inference_steps, pipe.scheduler.config.num_train_timesteps),
            guidance_scale=training.preview_guidance_scale if classes and pipe.transformer.null_label else 1.0,
            class_labels=[i % classes for i in range(count)] if classes else None,
            generator=[generator_for(PREVIEW_SEED, i) for i in range(count)],
            output_type="np",
        )
        folder = run.folder / "previews"
        folder.mkdir(exist_ok=True)
        path = write_preview(folder / f"step-{run.step + 1}", np.asarray(output.volumes), pipe.geometry)
        run.metrics.picture("preview", path, run.step + 1)
    run.accelerator.wait_for_everyone()


def write_preview(stem: Path, volumes: np.ndarray, geometry: Geometry) -> Path:
    """Volumes under each other in one picture: a GIF of cines `(B, H, W, D, T)`, a PNG of volumes `(B, H, W, D)`."""
    stacked = np.concatenate(list(volumes[:, :, ::-1]), axis=1)[:, ::-1]  # the second axis runs upwards in pictures
    path = stem.with_suffix(".gif" if volumes.ndim == 5 else ".png")
    if volumes.ndim == 5:
        write_gif(path, stacked, geometry, rows=len(volumes))
    else:
        write_slices(path, stacked)
    return path


def write_pipeline(
    folder: Path, transformer: DiTTransformerModel, vae: Any, denoising: Denoising, rank: int = 0
) -> LatentVolumePipeline:
    """Writes a pipeline folder; an adapter is also written alone, beside it, and merged into the pipeline's weights."""
    if rank:
        write_adapter(folder.parent / "lora", transformer)
        transformer.fuse_lora()
        transformer.unload_lora()
    pipe = make_pipeline(vae, transformer, sampler_of(denoising))
    pipe.save_pretrained(folder)
    return pipe


def write_adapter(folder: Path, transformer: DiTTransformerModel) -> None:
    from peft import get_peft_model_state_dict

    shutil.rmtree(folder, ignore_errors=True)
    LatentVolumePipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=ADAPTER),
        transformer_lora_adapter_metadata=transformer.peft_config[ADAPTER].to_dict(),
    )
