"""Pipelines that training makes: previews while a model learns, and the pipeline folder that it becomes."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import replace_folder
from cardiodit._util.randomness import generator_for
from cardiodit._util.terminal import say
from cardiodit.errors import CardioDiTError
from cardiodit.hub.audit_gate import missing, write_reason
from cardiodit.hub.client import create_repository, upload
from cardiodit.hub.model_card import write_card
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.pictures import write_gif, write_slices
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.training.denoiser_loop import Denoiser
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.run_record import RECORD
from cardiodit.training.harness.state import Average, Network
from cardiodit.training.settings import PreviewedTraining

PREVIEW_SEED = 0


def make_preview(
    run: Run,
    denoiser: Denoiser,
    model: Any,
    build: Callable[[], Any],
    as_pipeline: Callable[[Any], VolumePipeline],
    conditions: Sequence[Mapping[str, Any]] | None = None,
) -> Callable[[], None] | None:
    """Return a function that samples a few volumes, with the same noise every time, into `previews/` and the trackers.

    Args:
        model: the model inside all wrappers.
        build: makes a model of the same shape.
        as_pipeline: makes a pipeline of such a model.
        conditions: clinical conditions of each volume.
    """
    training: PreviewedTraining = run.settings  # type: ignore[assignment]
    (component,) = denoiser.weights
    ema = denoiser.emas.get(component)
    weights = Average(component, model, ema) if ema else Network(component, model)

    def preview() -> None:
        run.settle()
        tensors = weights.gather()  # on every process, since weights may be sharded
        if run.is_main:
            copy = build()  # outside of all wrappers
            copy.load_state_dict(tensors)
            pipe = as_pipeline(copy.to(run.accelerator.device).eval().requires_grad_(False))
            pipe.set_progress_bar_config(disable=True)
            classes = pipe.denoiser.config.get("num_classes")
            count = training.preview_samples
            with run.accelerator.autocast():
                output = pipe(
                    num_samples=count,
                    num_inference_steps=min(
                        training.preview_inference_steps, pipe.scheduler.config.num_train_timesteps
                    ),
                    guidance_scale=training.preview_guidance_scale
                    if (classes and pipe.denoiser.null_label) or conditions
                    else 1.0,
                    class_labels=[i % classes for i in range(count)] if classes else None,
                    generator=[generator_for(PREVIEW_SEED, i) for i in range(count)],
                    output_type="np",
                    conditions=conditions,
                )
            folder = run.folder / "previews"
            folder.mkdir(exist_ok=True)
            path = write_preview(folder / f"step-{run.step + 1}", np.asarray(output.volumes), pipe.geometry)
            run.metrics.picture("preview", path, run.step + 1)
        run.accelerator.wait_for_everyone()

    return preview if training.preview_samples else None


def write_preview(stem: Path, volumes: np.ndarray, geometry: Geometry) -> Path:
    """Write volumes below each other: a GIF of cines `(B, H, W, D, T)`, a PNG of volumes `(B, H, W, D)`."""
    stacked = np.concatenate(list(volumes[:, :, ::-1]), axis=1)[:, ::-1]  # the second axis runs upwards in pictures
    path = stem.with_suffix(".gif" if volumes.ndim == 5 else ".png")
    if volumes.ndim == 5:
        write_gif(path, stacked, geometry, rows=len(volumes))
    else:
        write_slices(path, stacked)
    return path


def finish_pipeline(
    run: Run,
    upload: "Upload",
    write: Callable[[Path], None],
    earlier_stage: str | None = None,
    try_it: str = "cardiodit sample {} --output_dir samples",
) -> None:
    """Write the pipeline of the best weights to `pipeline/` in the run folder, with its card, and finish the run.

    Args:
        write: writes the pipeline into a folder.
        earlier_stage: name of a model whose training belongs on the card, if it is a run folder.
        try_it: command that uses the pipeline.
    """
    run.record.end("saving", run.step)
    if run.is_main:
        folder = run.folder / "pipeline"
        with replace_folder(folder) as temporary:
            write(temporary)
            runs = [Path(earlier_stage)] if earlier_stage else []
            write_card(temporary, [stage for stage in (*runs, run.folder) if (stage / RECORD).is_file()])
        upload.send(folder)
        run.say(f"The pipeline is {folder}. Try it: {try_it.format(folder)}")
    run.finish()


def add_upload_options(parser: argparse.ArgumentParser) -> None:
    """Add the options by which diffusers' training scripts also upload."""
    parser.add_argument(
        "--push_to_hub", action="store_true", help="upload the pipeline to the Hugging Face Hub at the end"
    )
    parser.add_argument(
        "--hub_model_id",
        metavar="ORG/NAME",
        help="destination repository on the Hub; default: the run's name in your account",
    )
    parser.add_argument("--hub_public", action="store_true", help="make the repository public; default: private")
    parser.add_argument(
        "--without_audit",
        metavar="REASON",
        help="with --push_to_hub: why the model is uploaded before `cardiodit audit` has examined it; written into the "
        "card",
    )


@dataclass(frozen=True)
class Upload:
    """Upload of the finished pipeline. The repository is created before training, so that a missing login shows then.

    Args:
        repo: the repository's URL, or None for no upload.
        without_audit: why the model is uploaded without an audit.
    """

    repo: Any
    without_audit: str | None = None

    @classmethod
    def begin(cls, run: Run, options: argparse.Namespace) -> "Upload":
        """Create the repository if `--push_to_hub` is given; a new model has no audit, which takes a reason."""
        made: list[Any] = []

        def create() -> None:
            try:
                made.append(create_repository(options.hub_model_id or options.run_name, not options.hub_public))
            except CardioDiTError as error:
                raise CardioDiTError(
                    f"--push_to_hub: {error} Or train without it and run `cardiodit publish` later."
                ) from error

        if options.push_to_hub:
            how = "publish the pipeline of the finished run with `cardiodit publish`"
            if problem := missing(None, options.without_audit, how):
                raise CardioDiTError(f"--push_to_hub: {problem}")
            run.main_first(create)
        return cls(made[0] if made else None, options.without_audit)

    def send(self, folder: Path) -> None:
        if self.repo is None:
            return
        if self.without_audit is not None:
            write_reason(folder, self.without_audit)
        upload(self.repo, folder, "Trained with cardiodit")
        say(f"Uploaded to {self.repo}. Its card is incomplete: `cardiodit card {folder}` lists what is missing.")
