"""What a pipeline folder says of its model: its parts, sizes, geometry, preprocessing and sampler."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.weight_files import Header, read_weight_header
from cardiodit.imaging.preprocessing import Preprocessing

INDEX = "model_index.json"
TRANSFORMER = "transformer"  # which every pipeline has
NETWORKS = ("vae", TRANSFORMER, "adapter")  # the adapter is that of models that masks steer
RUNNING_SUMS = ("quantizer.ema_sums", "quantizer.ema_counts", "quantizer.num_updates")  # kept, not trained
DEFAULT_STEPS, DEFAULT_VOXEL_STEPS = 25, 100


@dataclass(frozen=True)
class Model:
    """A pipeline folder, as its configs and the headers of its weights describe it.

    Args:
        networks: the config of each network, by the name of its folder.
        scheduler: its config.
        weights: the headers of each network's weight files.
        pipeline: name of its class.
    """

    networks: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    weights: dict[str, list[Header]]
    pipeline: str

    @property
    def transformer(self) -> dict[str, Any]:
        return self.networks[TRANSFORMER]

    @property
    def vae(self) -> dict[str, Any] | None:
        return self.networks.get("vae")

    @property
    def adapter(self) -> dict[str, Any] | None:
        return self.networks.get("adapter")

    @property
    def facts(self) -> dict[str, Any]:
        """The config that knows how training volumes were prepared, and their geometry."""
        return self.vae or self.transformer

    @property
    def is_cine(self) -> bool:
        return "4D" in self.transformer["_class_name"]

    @property
    def default_steps(self) -> int:
        """Of the sampler, unless said otherwise."""
        return DEFAULT_STEPS if self.vae else DEFAULT_VOXEL_STEPS

    @property
    def size(self) -> tuple[int, ...]:
        """Of a volume as trained: H, W, D and, of a cine, T."""
        if self.vae is None:
            return tuple(self.transformer["sample_size"])
        from cardiodit.models.autoencoder_vq import along, per_level

        levels = per_level(self.vae["downsample_parameters"], len(self.vae["channels"]), numbers=4)
        factors = [math.prod(along(level[0], axis) for level in levels) for axis in range(3)]
        latents = self.transformer["sample_size"]
        if not self.is_cine:
            return tuple(n * factor for n, factor in zip(latents, factors, strict=True))
        depth, height, width, frames = latents
        return height * factors[0], width * factors[1], depth, frames * factors[2]

    @property
    def labels(self) -> list[str]:
        return list(self.transformer.get("class_names") or range(self.transformer.get("num_classes") or 0))

    @property
    def preprocessing(self) -> Preprocessing | None:
        steps = self.facts.get("preprocessing")
        return None if steps is None else Preprocessing.from_dict(steps)

    def parameters(self, network: str) -> int:
        return sum(header.count(without=RUNNING_SUMS) for header in self.weights[network])

    def precision(self, network: str) -> str:
        return " and ".join(sorted({name for header in self.weights[network] for name in header.precisions}))


def read_model(folder: Path) -> Model:
    """Reads configs and headers of weights; the model itself is not opened."""
    files = find_weights(folder)
    configs = {name: _config(folder / name / "config.json") for name in files}
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    weights = {name: [read_weight_header(file) for file in found] for name, found in files.items()}
    kind = _config(folder / INDEX)["_class_name"]
    pipeline = kind[-1] if isinstance(kind, list) else kind  # one that travels with its code names its file, too
    return Model(configs, scheduler, weights, pipeline)


def find_weights(folder: Path) -> dict[str, list[Path]]:
    """The weight files of each network of a pipeline folder."""
    if not (folder / INDEX).is_file():
        raise CardioDiTError(
            f"{folder} holds no {INDEX}, so it is no pipeline folder. Training, `cardiodit convert` and "
            "pipe.save_pretrained make one."
        )
    parts = _config(folder / INDEX)
    names = [name for name in NETWORKS if name == TRANSFORMER or any(parts.get(name) or [])]
    files = {name: sorted((folder / name).glob("*.safetensors")) for name in names}
    for name, found in files.items():
        if not found:
            raise CardioDiTError(f"{folder / name} holds no weights (*.safetensors). Save or copy the folder again.")
    return files


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["_class_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CardioDiTError(f"{path} cannot be read as a config. Save or copy the pipeline folder again.") from error
    return config
