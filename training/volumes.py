"""The image volumes of two manifests, prepared and checked against each other before the first step."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cardiodit.errors import try_all
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.manifest import Case, check_disjoint, read_manifest
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.run import Run


def preprocessing_of(request: Request, model: Any = None) -> Preprocessing:
    """The config's, or where it says nothing that of the model which is fine-tuned."""
    said: Mapping[str, Any] = request.plain.get("data") or {}
    if model is not None and not said.get("preprocessing") and model.config.preprocessing is not None:
        return Preprocessing.from_dict(model.config.preprocessing)
    return request.settings.data.preprocessing.build()


def read_volumes(run: Run, request: Request, steps: Preprocessing) -> tuple[PreparedVolumes, PreparedVolumes]:
    """For training and validation; by the main process first where they are kept on disk."""
    data, options = request.settings.data, request.options
    training, validation = try_all(
        partial(read_manifest, options.training_ids), partial(read_manifest, options.validation_ids)
    )
    folder = Path(data.cache_dir or options.output_dir / "cache") if data.cache == "disk" else None

    def read(cases: list[Case]) -> PreparedVolumes:
        return PreparedVolumes(cases, steps, data.cache, folder, data.workers)

    works = (
        partial(check_disjoint, training=training, validation=validation),
        partial(read, training),
        partial(read, validation),
    )
    if folder is not None and run.accelerator.num_processes > 1:
        run.main_first(lambda: try_all(*works))
    return tuple(try_all(*works)[1:])


def facts_of(volumes: PreparedVolumes) -> dict[str, Any]:
    """What a model's config keeps of its data, from where samples get their geometry and units."""
    steps = volumes.steps
    if not steps.intensity.is_fixed:
        steps = replace(steps, intensity=replace(steps.intensity, typical=volumes.typical()))
    return {"preprocessing": steps.to_dict(), "spacing": volumes.spacing()}
