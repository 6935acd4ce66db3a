"""Facts about a model from its pipeline folder: components, sizes, geometry, preprocessing, sampler and weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cardiodit._util.foreign_files import check_file, read_object
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.hub.registration import class_name_of
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.clinical_conditions import ClinicalConditions
from cardiodit.systems import System, system_of_pipeline

INDEX = "model_index.json"
RUNNING_SUMS = ("quantizer.ema_sums", "quantizer.ema_counts", "quantizer.num_updates")  # stored, but not trained

LENGTH = 8  # bytes at the start of a safetensors file, with the length of its header
LONGEST_HEADER = 100_000_000
METADATA = "__metadata__"
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class WeightHeader:
    """Header of a safetensors file.

    Args:
        tensors: dtype, shape and offsets of each tensor, by name.
        metadata: free text from the program that wrote the file.
    """

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]

    @property
    def precisions(self) -> list[str]:
        """Names of the floating-point types."""
        return sorted({PRECISIONS[t["dtype"]] for t in self.tensors.values() if t["dtype"] in PRECISIONS})

    def count(self, without: tuple[str, ...] = ()) -> int:
        """Count the numbers in all tensors except those whose names end in one of `without`."""
        return sum(math.prod(t["shape"]) for name, t in self.tensors.items() if not name.endswith(without))


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
    weights: dict[str, list[WeightHeader]]
    pipeline: str

    @property
    def denoiser(self) -> dict[str, Any]:
        return self.networks[self.system.component]

    @property
    def vae(self) -> dict[str, Any] | None:
        return self.networks.get("vae")

    @property
    def adapter(self) -> dict[str, Any] | None:
        return self.networks.get(self.system.adapter_component)

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
    def conditions(self) -> ClinicalConditions:
        """The clinical conditions, empty without."""
        return ClinicalConditions.of_config(self.denoiser.get("conditions")) or ClinicalConditions([])

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
    pipeline = class_name_of(_read_config(folder / INDEX), folder)
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
    system = system_of_pipeline(class_name_of(index, folder))
    names = [name for name in system.components if name == system.component or any(_entry(index, name))]
    files = {name: sorted((folder / name).glob("*.safetensors")) for name in names}
    for name, found in files.items():
        if not found:
            raise CardioDiTError(f"{folder / name} contains no weights (*.safetensors). Save or copy the folder again.")
    return files


def _entry(index: dict[str, Any], name: str) -> list[Any]:
    entry = index.get(name)
    return entry if isinstance(entry, list) else []


def _read_config(path: Path) -> dict[str, Any]:
    return read_object(path, ["_class_name"], "Save or copy the pipeline folder again.")


def read_weight_header(path: Path) -> WeightHeader:
    """Read the header of a safetensors file; raise an error if the file is damaged or truncated."""
    check_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            if not 0 < length <= min(LONGEST_HEADER, path.stat().st_size):
                raise ValueError("it does not begin with a header")
            entries = json.loads(file.read(length))
        metadata = entries.pop(METADATA, {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not texts")
        expected = LENGTH + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except Exception as error:  # a header may hold anything
        raise CardioDiTError(
            f"{path} is not a safetensors file: {reason_of(error)}. Copy it again from its source."
        ) from error
    if path.stat().st_size != expected:
        raise CardioDiTError(
            f"{path} is damaged: it has {path.stat().st_size} bytes, but its header describes {expected}. Copy it "
            "again from its source."
        )
    return WeightHeader(entries, metadata)


def contains_weights(whole: Path, part: Path) -> bool:
    """Tell whether a safetensors file contains every tensor of another one, with identical values."""
    with safe_open(whole, "pt") as all_weights, safe_open(part, "pt") as some_weights:
        if not set(some_weights.keys()) <= set(all_weights.keys()):
            return False
        pairs = ((all_weights.get_tensor(name), some_weights.get_tensor(name)) for name in some_weights.keys())  # noqa: SIM118
        return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)
