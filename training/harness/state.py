"""Contents of a checkpoint: networks, their moving averages and optimizers, each as whole tensors in safetensors.

Tensors that are sharded over processes (FSDP2) are gathered on saving and distributed again on loading, so that a
checkpoint does not depend on the number of processes that wrote it.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from diffusers.utils import CONFIG_NAME
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from cardiodit.errors import CardioDiTError

Tensors = dict[str, torch.Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"
UPDATES = "updates.txt"  # number of updates of an average, on which its decay depends


class Checkpointable(Protocol):
    """Something that training changes and a checkpoint restores."""

    name: str

    def gather(self) -> Tensors:
        """Return whole tensors on the CPU; every process must call it."""
        ...

    def write(self, tensors: Tensors, folder: Path) -> None:
        """Write into a checkpoint's folder; one process calls it, in a thread beside the training."""
        ...

    def load(self, folder: Path) -> None:
        """Restore from a checkpoint's folder; every process calls it."""
        ...


class Network:
    """A model's weights and buffers, in diffusers' format: `from_pretrained(checkpoint / name)` opens it.

    With `adapter_only`, only the trained weights of a frozen model (LoRA), in one file.
    """

    def __init__(self, name: str, model: torch.nn.Module, adapter_only: bool = False) -> None:
        self.name = name
        self.model: Any = model
        self.adapter_only = adapter_only

    def gather(self) -> Tensors:
        return whole(self._tensors())

    def write(self, tensors: Tensors, folder: Path) -> None:
        write_tensors(tensors, folder / self.name, None if self.adapter_only else self.model)

    def load(self, folder: Path) -> None:
        fill(self._tensors(), load_file(folder / self.name / WEIGHTS))

    def _tensors(self) -> Tensors:
        return trained(self.model) if self.adapter_only else self.model.state_dict()


class Average:
    """The moving average of a model's trained weights, saved as a whole model."""

    def __init__(self, name: str, model: torch.nn.Module, ema: EMAModel, adapter_only: bool = False) -> None:
        self.name = name
        self.model: Any = model
        self.ema = ema
        self.adapter_only = adapter_only
        self._updates = 0  # of the gathered average, which is written while training goes on

    def gather(self) -> Tensors:
        self._updates = self.ema.optimization_step
        rest = {} if self.adapter_only else self.model.state_dict()
        return whole({**rest, **self._shadow()})

    def write(self, tensors: Tensors, folder: Path) -> None:
        write_tensors(tensors, folder / self.name, None if self.adapter_only else self.model)
        (folder / self.name / UPDATES).write_text(str(self._updates))

    def load(self, folder: Path) -> None:
        saved, shadow = load_file(folder / self.name / WEIGHTS), self._shadow()
        fill(shadow, {name: saved[name] for name in shadow if name in saved})
        self.ema.optimization_step = int((folder / self.name / UPDATES).read_text())

    def _shadow(self) -> Tensors:
        return dict(zip(trained(self.model), self.ema.shadow_params, strict=True))


class Optimizer:
    """Adam's moments by the names of the weights. Learning rates come from the settings."""

    def __init__(self, name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.name = name
        self.model = model
        self.optimizer: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it

    def gather(self) -> Tensors:
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return whole(moments)

    def write(self, tensors: Tensors, folder: Path) -> None:
        save_file(tensors, folder / f"{self.name}.safetensors")

    def load(self, folder: Path) -> None:
        self.optimizer.state.clear()
        for parameter, moment, values in self.saved(folder):
            state = self.optimizer.state[parameter]
            if moment == "step":
                is_fused = self.optimizer.defaults.get("fused")  # such a kernel counts on the device
                state[moment] = values.to(parameter.device if is_fused else "cpu", copy=True)
                continue
            state[moment] = torch.empty_like(parameter, dtype=values.dtype)  # fused kernels need the same layout
            state[moment].copy_(spread(values, parameter))

    def saved(self, folder: Path) -> Iterator[tuple[torch.Tensor, str, torch.Tensor]]:
        """Yield each weight with the name and the whole value of each of its moments."""
        parameters = dict(self.model.named_parameters())
        for key, values in load_file(folder / f"{self.name}.safetensors").items():
            name, _, moment = key.rpartition("/")
            if name not in parameters:
                raise CardioDiTError(
                    f"The checkpoint {folder} has optimizer state for {name!r}, which this model does not have."
                )
            yield parameters[name], moment, values


def trained(model: torch.nn.Module) -> Tensors:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def whole(tensors: Tensors) -> Tensors:
    """Copy tensors to the CPU, gathering sharded ones."""
    return {name: _whole(tensor.detach()) for name, tensor in tensors.items()}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.to("cpu", copy=True).contiguous()


def reshard(model: torch.nn.Module) -> None:
    """Free the weights that FSDP2 gathered for a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return values on the device of another tensor, sharded like it."""
    values = values.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(values, like.device_mesh, like.placements)
    return values


@torch.no_grad()
def fill(held: Tensors, saved: Tensors) -> None:
    """Copy saved values into the tensors of the same names and shapes."""
    if set(held) != set(saved):
        different = sorted(set(held) ^ set(saved))
        raise CardioDiTError(
            f"The checkpoint belongs to another model: {different[0]!r} and {len(different) - 1} other names differ."
        )
    for name, tensor in held.items():
        if tensor.shape != saved[name].shape:
            raise CardioDiTError(
                f"The checkpoint's {name} has the shape {tuple(saved[name].shape)}, the model's {tuple(tensor.shape)}."
            )
        tensor.detach().copy_(spread(saved[name], tensor))


def write_tensors(tensors: Tensors, folder: Path, model: Any = None) -> None:
    """Write weights in diffusers' format, with the model's config if a model is given."""
    folder.mkdir()
    if model is not None:
        config = json.loads(model.to_json_string())
        config["_class_name"] = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule)).__name__
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices with weight decay; biases, norms and embeddings without."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    still = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    groups: Iterable[tuple[list, float]] = ((decay, weight_decay), (still, 0.0))
    return [{"params": params, "weight_decay": rate} for params, rate in groups if params]
