"""Sample the checkpoints of a training run from the same noise, to see the model learn."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.foreign_files import read_object
from cardiodit._util.typed_yaml import read_yaml
from cardiodit.errors import CardioDiTError
from cardiodit.hub.load import open_transformer, open_vae, open_voxel_transformer
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.pictures import MODEL_WINDOW, write_captioned, write_gif
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.load import make_pipeline, open_pipeline
from cardiodit.systems import Stage, load, stages_by_script, system_of
from cardiodit.training.build_transformer import objective_from
from cardiodit.training.objectives import VOXEL_OBJECTIVES

FRAMES_SHOWN = 2  # of each checkpoint's cine, the first and the middle one
SLICES_SHOWN = 8  # of each checkpoint's volume


def checkpoints_of(run: Path, first: int, last: int, step: int) -> list[tuple[int, Path | None]]:
    """Return the checkpoints `first`, `first + step`, … up to `last`, with None for each that does not exist."""
    if step < 1 or last < first:
        raise CardioDiTError(
            f"--checkpoints {first} {last} {step}: expected first, last and step, such as 500 5000 500."
        )
    numbers = [(number, Path(run) / f"checkpoint-{number}") for number in range(first, last + 1, step)]
    found = [(number, folder if folder.is_dir() else None) for number, folder in numbers]
    if all(folder is None for _, folder in found):
        existing = sorted(int(p.name.removeprefix("checkpoint-")) for p in Path(run).glob("checkpoint-*"))
        raise CardioDiTError(
            f"{run} has none of the checkpoints {first} to {last}; it has {', '.join(map(str, existing)) or 'none'}. "
            "A run keeps as many as its checkpoints_total_limit allows."
        )
    return found


def open_checkpoint(
    run: Path, folder: Path, vae: str | Path | None = None, base: str | Path | None = None
) -> VolumePipeline:
    """Open a checkpoint as the pipeline that it would become, with averaged weights if there are any.

    Args:
        run: run folder of a stage that trains something which can be sampled.
        folder: folder of the checkpoint.
        vae: VQ model of a latent denoiser; not needed once the run has a `pipeline`.
        base: pipeline that an adapter steers; not needed once the run has a `pipeline`.
    """
    script = _script_of(run)
    openers = [stage.open_checkpoint for _, stage in stages_by_script(script) if stage.open_checkpoint is not None]
    if not openers:
        raise CardioDiTError(f"{run} is a run of {script}, whose checkpoints cannot be sampled.")
    return load(openers[0])(run, folder, vae, base)


def open_latent_checkpoint(run: Path, folder: Path, vae: str | Path | None, base: str | Path | None) -> VolumePipeline:
    _refuse(run, base=base)
    if vae is None and not (run / "pipeline").is_dir():
        raise CardioDiTError(f"{run} has no pipeline yet, so the VQ model must be given: --vae MODEL.")
    scheduler = objective_from(_settings_of(run)["diffusion"]).sampling_scheduler()
    return make_pipeline(
        open_vae(vae or run / "pipeline"), open_transformer(_weights(folder, _stage_of(run).component)), scheduler
    )


def open_prdit_checkpoint(run: Path, folder: Path, vae: str | Path | None, base: str | Path | None) -> VolumePipeline:
    _refuse(run, vae=vae, base=base)
    scheduler = objective_from(_settings_of(run)["process"], classes=VOXEL_OBJECTIVES).sampling_scheduler()
    return make_pipeline(None, open_voxel_transformer(_weights(folder, "transformer")), scheduler)


def open_adapter_checkpoint(run: Path, folder: Path, vae: str | Path | None, base: str | Path | None) -> VolumePipeline:
    """Open an adapter with the checkpoint's transformer if blocks of it were trained, else with that of the base."""
    _refuse(run, vae=vae)
    if base is None and not (run / "pipeline").is_dir():
        raise CardioDiTError(f"{run} has no pipeline yet, so the model that it steers must be given: --base MODEL.")
    pipe = open_pipeline(base or run / "pipeline")
    if preprocessing := _read_record(run).get("data", {}).get("preprocessing"):  # where it differs from the base's
        pipe.vae.register_to_config(preprocessing=preprocessing)
    system = system_of(denoiser=pipe.denoiser)
    assert system.adapter is not None  # it has a stage that trains one
    trained = _find_weights(folder, system.component)
    denoiser = pipe.denoiser if trained is None else open_transformer(trained)
    adapter = load(system.adapter).from_pretrained(_weights(folder, system.adapter_component)).eval()
    return make_pipeline(pipe.vae, denoiser, pipe.scheduler, adapter)


def _refuse(run: Path, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise CardioDiTError(f"--{name}: {run} is a run of {_script_of(run)}, which does not use it. Leave it out.")


def _script_of(run: Path) -> str:
    record = _read_record(run)
    if "stage" not in record:
        raise CardioDiTError(f"{run} contains no run.json, so it is not a training run.")
    return str(record["stage"])


def _stage_of(run: Path) -> Stage:
    return stages_by_script(_script_of(run))[0][1]


def _read_record(run: Path) -> dict[str, Any]:
    record = run / "run.json"
    return read_object(record) if record.is_file() else {}


def _settings_of(run: Path) -> dict[str, Any]:
    return read_yaml(run / "config.yaml")


def _find_weights(folder: Path, component: str) -> Path | None:
    """Return where a checkpoint holds a model's averaged weights or, without them, its weights."""
    places = (folder / f"{component}_ema", folder / component)
    return next((place for place in places if (place / "config.json").is_file()), None)


def _weights(folder: Path, component: str) -> Path:
    return _find_weights(folder, component) or folder / component


def write_gallery(folder: Path, volumes: Sequence[tuple[int, np.ndarray]], geometry: Geometry) -> list[Path]:
    """Write a captioned sheet and, for cine, a GIF of what each checkpoint made of the same noise.

    Args:
        folder: folder of `checkpoints.png` and `checkpoints.gif`.
        volumes: number of each checkpoint and its volume `(H, W, D, T)` or `(H, W, D)` in [-1, 1].
        geometry: geometry of the volumes, for the speed of the GIF.
    """
    sheet, gif = folder / "checkpoints.png", folder / "checkpoints.gif"
    write_captioned(sheet, list(_rows(volumes)), MODEL_WINDOW)
    if volumes[0][1].ndim == 3:
        return [sheet]
    upwards = np.concatenate([volume for _, volume in reversed(volumes)], axis=1)  # the second axis runs upwards
    write_gif(gif, upwards, geometry, rows=len(volumes))
    return [sheet, gif]


def _rows(volumes: Sequence[tuple[int, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    for number, volume in volumes:
        if volume.ndim == 3:
            depths = np.linspace(0, volume.shape[2] - 1, SLICES_SHOWN + 2).round().astype(int)[1:-1]
            yield f"{number}", volume[:, :, np.unique(depths)]
            continue
        frames = np.linspace(0, volume.shape[3] // 2, FRAMES_SHOWN).round().astype(int)
        yield f"{number}", np.concatenate([volume[..., frame] for frame in frames], axis=2)
