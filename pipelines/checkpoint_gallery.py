"""A training run, checkpoint by checkpoint: the same noise through each of them, so that one sees the model learn."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cardiodit.errors import CardioDiTError
from cardiodit.hub.load import open_transformer, open_vae, open_voxel_transformer
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.pictures import MODEL_WINDOW, write_captioned, write_gif
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline
from cardiodit.pipelines.load import make_pipeline, open_pipeline
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.schedulers import NoiseAndImageScheduler, cosine_betas, make_scheduler

FRAMES_SHOWN = 2  # of each checkpoint's cine, the first and the middle one
SLICES_SHOWN = 8  # of each checkpoint's volume


def checkpoints_of(run: Path, first: int, last: int, step: int) -> list[tuple[int, Path | None]]:
    """The checkpoints `first`, `first + step`, … up to `last`, and None for one that is not there (any more)."""
    if step < 1 or last < first:
        raise CardioDiTError(
            f"--checkpoints {first} {last} {step}: expected first, last and step, such as 500 5000 500."
        )
    wanted = [(number, Path(run) / f"checkpoint-{number}") for number in range(first, last + 1, step)]
    found = [(number, folder if folder.is_dir() else None) for number, folder in wanted]
    if all(folder is None for _, folder in found):
        there = sorted(int(p.name.removeprefix("checkpoint-")) for p in Path(run).glob("checkpoint-*"))
        raise CardioDiTError(
            f"{run} has none of the checkpoints {first} to {last}; it has {', '.join(map(str, there)) or 'none'}. "
            "A run keeps as many as its checkpoints_total_limit says."
        )
    return found


def open_checkpoint(
    run: Path, folder: Path, vae: str | Path | None = None, base: str | Path | None = None
) -> VolumePipeline:
    """The pipeline that a run would become with this checkpoint's averaged weights (or its weights, without any).

    Args:
        run: folder of a run of stage 2, of PRDiT, or of an adapter.
        folder: of the checkpoint.
        vae: the VQ model of stage 2; not needed once the run has a `pipeline`.
        base: the pipeline that an adapter steers; not needed once the run has a `pipeline`.
    """
    adapter = _weights_in(folder, "adapter")
    if adapter is not None:
        if vae is not None:
            raise CardioDiTError(f"--vae: {run} is a run of an adapter, which takes its VQ model from --base.")
        return _open_steered(run, folder, adapter, base)
    if base is not None:
        raise CardioDiTError(f"--base: {run} is no run of an adapter. Leave the option out.")
    settings = yaml.safe_load((Path(run) / "config.yaml").read_text())
    if "process" in settings:
        return _open_prdit(run, folder, vae, settings["process"])
    process = settings.get("diffusion")
    if process is None:
        raise CardioDiTError(f"{run} is neither a run of stage 2 nor one of an adapter: nothing in it can be sampled.")
    if vae is None and not (Path(run) / "pipeline").is_dir():
        raise CardioDiTError(f"{run} has no pipeline yet, so the VQ model must be named: --vae MODEL.")
    steps = process["num_train_timesteps"]
    scheduler = make_scheduler("dpm++", steps, cosine_betas(steps), process["prediction_type"])
    weights = _weights_in(folder, "transformer") or folder / "transformer"
    return make_pipeline(open_vae(vae or Path(run) / "pipeline"), open_transformer(weights), scheduler)


def _open_prdit(run: Path, folder: Path, vae: str | Path | None, process: dict[str, Any]) -> VolumePipeline:
    if vae is not None:
        raise CardioDiTError(f"--vae: {run} is a run of PRDiT, which needs no VQ model. Leave the option out.")
    weights = _weights_in(folder, "transformer") or folder / "transformer"
    return PRDiTPipeline(open_voxel_transformer(weights), NoiseAndImageScheduler(**process))


def _open_steered(run: Path, folder: Path, adapter: Path, base: str | Path | None) -> LatentVolumePipeline:
    """With the transformer of the checkpoint where blocks of it were freed, else with that of the base."""
    if base is None and not (Path(run) / "pipeline").is_dir():
        raise CardioDiTError(f"{run} has no pipeline yet, so what its adapter steers must be named: --base MODEL.")
    pipe = open_pipeline(base or Path(run) / "pipeline")
    if steps := _preparation_of(Path(run)):
        pipe.vae.register_to_config(preprocessing=steps)
    freed = _weights_in(folder, "transformer")
    transformer = pipe.transformer if freed is None else open_transformer(freed)
    return make_pipeline(pipe.vae, transformer, pipe.scheduler, TGCAAdapterModel.from_pretrained(adapter).eval())


def _preparation_of(run: Path) -> dict[str, Any] | None:
    """How the run's masks were prepared, where that is not as its base says."""
    record = run / "run.json"
    return json.loads(record.read_text())["data"].get("preprocessing") if record.is_file() else None


def _weights_in(folder: Path, name: str) -> Path | None:
    """A checkpoint's average of a model, or its weights without any; None where it has no such model."""
    places = (folder / f"{name}_ema", folder / name)
    return next((place for place in places if (place / "config.json").is_file()), None)


def write_course(folder: Path, course: Sequence[tuple[int, np.ndarray]], geometry: Geometry) -> list[Path]:
    """What each checkpoint made of the same noise, under each other: a sheet with captions, and of cines a GIF.

    Args:
        folder: where `checkpoints.png` and `checkpoints.gif` are written.
        course: number of the checkpoint and its volume `(H, W, D, T)` or `(H, W, D)` in [-1, 1].
        geometry: for the pace of the GIF.
    """
    sheet, gif = folder / "checkpoints.png", folder / "checkpoints.gif"
    write_captioned(sheet, list(_rows(course)), MODEL_WINDOW)
    if course[0][1].ndim == 3:
        return [sheet]
    upwards = np.concatenate([volume for _, volume in reversed(course)], axis=1)  # the second axis runs upwards
    write_gif(gif, upwards, geometry, rows=len(course))
    return [sheet, gif]


def _rows(course: Sequence[tuple[int, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    for number, volume in course:
        if volume.ndim == 3:
            depths = np.linspace(0, volume.shape[2] - 1, SLICES_SHOWN + 2).round().astype(int)[1:-1]
            yield f"{number}", volume[:, :, np.unique(depths)]
            continue
        frames = np.linspace(0, volume.shape[3] // 2, FRAMES_SHOWN).round().astype(int)
        yield f"{number}", np.concatenate([volume[..., frame] for frame in frames], axis=2)
