"""What a pipeline folder says about its model: components, sizes, geometry, preprocessing and sampler."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.weight_files import Header, read_weight_header
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.systems import System, system_of_pipeline

INDEX = "model_index.json"
RUNNING_SUMS = ("quantizer.ema_sums", "quantizer.ema_counts", "quantizer.num_updates")  # stored, but not trained


@dataclass(frozen=True)
class Model:
    """A pipeline folder, as described by its configs and the headers of its weight files.

    Args:
        system: the published system that the pipeline belongs to.
        networks: config of each network, by component name.
        scheduler: config of the scheduler.
        weights: headers of each network's weight files.
        pipeline: name of the pipeline class.
    """

    system: System
    networks: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    weights: dict[str, list[Header]]
    pipeline: str

    @property
    def denoiser(self) -> dict[str, Any]:
        return self.networks[self.system.component]

    @property
    def vae(self) -> dict[str, Any] | None:
        return self.networks.get("vae")

    @property
    def adapter(self) -> dict[str, Any] | None:
        return self.networks.get("adapter")

    @property
    def facts(self) -> dict[str, Any]:
        """The config that holds the preprocessing and the geometry of the training volumes."""
        return self.vae or self.denoiser

    @property
    def is_cine(self) -> bool:
        return self.system.is_cine

    @property
    def default_steps(self) -> int:
        return self.system.default_steps

    @property
    def size(self) -> tuple[int, ...]:
        """Size of a volume as trained: H, W, D and, for cine, T."""
        if self.vae is None:
            return tuple(self.denoiser["sample_size"])
        from cardiodit.models.autoencoder_vq import along, per_level

        levels = per_level(self.vae["downsample_parameters"], len(self.vae["channels"]), numbers=4)
        factors = [math.prod(along(level[0], axis) for level in levels) for axis in range(3)]
        latents = self.denoiser["sample_size"]
        if not self.is_cine:
            return tuple(n * factor for n, factor in zip(latents, factors, strict=True))
        depth, height, width, frames = latents
        return height * factors[0], width * factors[1], depth, frames * factors[2]

    @property
    def labels(self) -> list[str]:
        return list(self.denoiser.get("class_names") or range(self.denoiser.get("num_classes") or 0))

    @property
    def preprocessing(self) -> Preprocessing | None:
        steps = self.facts.get("preprocessing")
        return None if steps is None else Preprocessing.from_dict(steps)

    def parameters(self, network: str) -> int:
        return sum(header.count(without=RUNNING_SUMS) for header in self.weights[network])

    def precision(self, network: str) -> str:
        return " and ".join(sorted({name for header in self.weights[network] for name in header.precisions}))


def read_model(folder: Path) -> Model:
    """Read the configs and weight headers of a pipeline folder without loading the model."""
    files = find_weights(folder)
    configs = {name: _read_config(folder / name / "config.json") for name in files}
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json")
    weights = {name: [read_weight_header(file) for file in found] for name, found in files.items()}
    pipeline = _pipeline_class(_read_config(folder / INDEX))
    system = system_of_pipeline(pipeline)
    for component, config in configs.items():
        if config["_class_name"] != (expected := system.components[component]):
            raise CardioDiTError(
                f"{folder / component} contains a {config['_class_name']}, but a {pipeline} needs a {expected}. Save "
                "the pipeline folder again."
            )
    return Model(system, configs, scheduler, weights, pipeline)


def find_weights(folder: Path) -> dict[str, list[Path]]:
    """Return the weight files of each network of a pipeline folder."""
    if not (folder / INDEX).is_file():
        raise CardioDiTError(
            f"{folder} contains no {INDEX}, so it is not a pipeline folder. Training, `cardiodit convert` and "
            "pipe.save_pretrained create one."
        )
    index = _read_config(folder / INDEX)
    system = system_of_pipeline(_pipeline_class(index))
    names = [name for name in system.components if name == system.component or any(index.get(name) or [])]
    files = {name: sorted((folder / name).glob("*.safetensors")) for name in names}
    for name, found in files.items():
        if not found:
            raise CardioDiTError(f"{folder / name} contains no weights (*.safetensors). Save or copy the folder again.")
    return files


def _pipeline_class(index: dict[str, Any]) -> str:
    kind = index["_class_name"]
    return kind[-1] if isinstance(kind, list) else kind  # a folder with its own code also names the file


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["_class_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CardioDiTError(f"{path} cannot be read as a config. Save or copy the pipeline folder again.") from error
    return config
