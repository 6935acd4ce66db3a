"""Any torch module as a feature network: given as an object, or named `python_module:callable`."""

import hashlib

import torch
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import Size
from cardiodit.evaluation.user_code import LOOKED_IN, import_own


class Pooled(nn.Module):
    """A module's features averaged over space, where it gives maps of them: `(N, f, …)` → `(N, f)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        found = self.module(volume)
        return found.flatten(2).mean(2) if isinstance(found, torch.Tensor) and found.ndim > 2 else found


def import_module(reference: str) -> nn.Module:
    """What the callable behind `python_module:callable` returns."""
    place, _, name = reference.partition(":")
    try:
        make = getattr(import_own(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CardioDiTError(
            f"The network {reference} cannot be imported ({error}). Write python_module:callable. {LOOKED_IN}: install "
            "it, set PYTHONPATH, or go to its folder."
        ) from error
    module = make() if callable(make) else make
    if not isinstance(module, nn.Module):
        raise CardioDiTError(f"{reference} returned a {type(module).__name__}; a torch.nn.Module was expected.")
    return module


def probe_width(module: nn.Module, size: Size, name: str) -> int:
    """How many features a module gives of one volume `(1, 1, H, W, D)`."""
    with torch.inference_mode():
        try:
            found = module.eval()(torch.zeros(1, 1, *size))
        except Exception as error:  # it is anybody's code
            raise CardioDiTError(
                f"The network {name} does not take a volume of the shape (1, 1, {', '.join(map(str, size))}): {error}"
            ) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != 1:
        said = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise CardioDiTError(f"The network {name} gave {said} for one volume; a tensor (1, features, …) was expected.")
    return found.shape[1]


def hash_of_module(module: nn.Module, architecture: str = "") -> str:
    """SHA-256 over the names, shapes and bytes of all tensors, and over what is said of the architecture."""
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
