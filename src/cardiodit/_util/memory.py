"""Estimate the memory that a computation needs without running it.

The computation runs on tensors without content, and the sizes of all live tensors are added up. The estimate covers the
model's own tensors; buffers inside kernels are not included.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from cardiodit._compat import FakeTensorMode, TorchDispatchMode, require, tree_leaves
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import AXES

if TYPE_CHECKING:
    from cardiodit.models.autoencoder_vq import VQModel

TILING = ("auto", "on", "off")
TILED_ABOVE = 4 * 2**30  # bytes
_TOOLS = {"FakeTensorMode": FakeTensorMode, "TorchDispatchMode": TorchDispatchMode, "tree_leaves": tree_leaves}
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # bytes for decoding, by VQ model, shape and dtype


class LiveMemory(TorchDispatchMode or object):  # type: ignore[misc]
    """Adds up the storages that operations allocate until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._allocated(leaf.untyped_storage())
        return result

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live -= size


def peak_bytes(computation: Callable[[], Any]) -> int:
    """Return the peak memory that a computation allocates; its inputs are not counted."""
    require("An estimate of the memory needed", **_TOOLS)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
        result = computation()
        del result
    return memory.peak


def weight_bytes(*models: torch.nn.Module) -> int:
    """Return the size of the parameters and buffers of models."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)


def set_tiling(vae: "VQModel", shape: Sequence[int], mode: str = "auto", batch_size: int = 1) -> bool:
    """Switch tiling of a VQ model on or off for volumes of a size, and return whether it is on.

    Args:
        vae: VQ model.
        shape: size of a volume in voxels, `(H, W, D)` or `(H, W, D, T)`; a cine is coded slice by slice.
        mode: "on", "off", or "auto": on if coding in one piece would need more than 4 GiB in addition to the weights.
        batch_size: slices or volumes in a batch.
    """
    if mode not in TILING:
        raise CardioDiTError(f"tiling={mode!r} must be one of {', '.join(TILING)}.")
    if mode == "auto" and None in _TOOLS.values():
        warnings.warn("This version of torch cannot estimate memory, so tiling='auto' does not tile.", stacklevel=2)
        mode = "off"
    if mode == "auto":
        sizes = dict(zip(AXES, shape, strict=False))
        piece = [max(1, sizes.get(name, 1) // n) for name, n in zip(vae.axis_names, vae.scale_factors, strict=True)]
        mode = "on" if _decoding_bytes(vae, (batch_size, vae.config.embedding_dim, *piece)) > TILED_ABOVE else "off"
    if mode == "on":
        vae.enable_tiling()
    else:
        vae.disable_tiling()
    return mode == "on"


@torch.no_grad()
def _decoding_bytes(vae: "VQModel", latents: tuple[int, ...]) -> int:
    """Return the bytes for decoding latents of a shape without tiles, cached by model, shape and dtype."""
    known, key = _KNOWN.setdefault(vae, {}), (latents, vae.dtype)
    if key not in known:
        vae.disable_tiling()
        empty = torch.empty(latents, device=vae.device, dtype=vae.dtype)
        known[key] = peak_bytes(lambda: vae.decode(empty, force_not_quantize=True).sample)
    return known[key]


def estimate_memory(
    model: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    optimizer_states: int = 2,
    ema: bool = True,
    autocast: torch.dtype | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> dict[str, int]:
    """Estimate the bytes that one training step of a model needs, by purpose.

    Args:
        model: model in training mode, with gradient checkpointing if training will use it.
        inputs: inputs of the forward pass with the sizes of training; their values do not matter.
        optimizer_states: tensors that the optimizer keeps for each weight: 2 for Adam and AdamW, 1 for SGD with
            momentum.
        ema: whether training keeps a moving average of the weights.
        autocast: dtype of mixed precision, if any.
        loss: scalar loss of the model's output; default: the mean square of its sample.
    """
    loss = loss or (lambda output: output.sample.float().square().mean())
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise CardioDiTError("No weight of the model requires a gradient, so there is nothing to train.")
    device = next(model.parameters()).device.type

    def step() -> None:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            output = model(**inputs)
            value = loss(output)
        torch.autograd.grad(value, trainable, allow_unused=True)

    working = peak_bytes(step)
    of_trainable = sum(p.numel() * p.element_size() for p in trainable)
    parts = {
        "weights": weight_bytes(model),
        "optimizer": optimizer_states * of_trainable,
        "ema": of_trainable if ema else 0,
        "activations and gradients": working,
    }
    return {**parts, "total": sum(parts.values())}
