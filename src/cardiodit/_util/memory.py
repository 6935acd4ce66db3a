"""How much memory a computation will need, found without doing it.

The computation runs on tensors that have a shape and no content; what is alive at any moment is added up. That is the
arithmetic of the model itself, whatever its size; buffers that kernels use inside are not in it.
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
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of each VQ model, what decoding takes by shapes


class LiveMemory(TorchDispatchMode or object):  # type: ignore[misc]
    """Adds up the storages that operations make, from their birth to their death."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._born(leaf.untyped_storage())
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.live -= size


def peak_bytes(computation: Callable[[], Any]) -> int:
    """The most that a computation holds at a time of what it makes; its inputs are not counted."""
    require("An estimate of the memory needed", **_TOOLS)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
        result = computation()
        del result
    return memory.peak


def weight_bytes(*models: torch.nn.Module) -> int:
    """What the parameters and buffers of models hold."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)


def set_tiling(vae: "VQModel", shape: Sequence[int], wanted: str = "auto", at_once: int = 1) -> bool:
    """Tiles the coding of large volumes, and tells whether it does.

    Args:
        vae: its tiling is set.
        shape: of a volume in voxels, `(H, W, D)` or `(H, W, D, T)`; a cine is coded slice by slice.
        wanted: "on", "off", or "auto": where coding in one piece would need more than 4 GiB beside the weights.
        at_once: slices or volumes in one batch.
    """
    if wanted not in TILING:
        raise CardioDiTError(f"tiling={wanted!r} must be one of {', '.join(TILING)}.")
    if wanted == "auto" and None in _TOOLS.values():
        warnings.warn("This version of torch cannot estimate memory, so tiling='auto' does not tile.", stacklevel=2)
        wanted = "off"
    if wanted == "auto":
        sizes = dict(zip(AXES, shape, strict=False))
        piece = [max(1, sizes.get(name, 1) // n) for name, n in zip(vae.axis_names, vae.scale_factors, strict=True)]
        wanted = "on" if _decoding_in_one(vae, (at_once, vae.config.embedding_dim, *piece)) > TILED_ABOVE else "off"
    if wanted == "on":
        vae.enable_tiling()
    else:
        vae.disable_tiling()
    return wanted == "on"


@torch.no_grad()
def _decoding_in_one(vae: "VQModel", latents: tuple[int, ...]) -> int:
    """Bytes that decoding latents of a shape takes without tiles; looked up where it was found out before."""
    known, asked = _KNOWN.setdefault(vae, {}), (latents, vae.dtype)
    if asked not in known:
        vae.disable_tiling()
        empty = torch.empty(latents, device=vae.device, dtype=vae.dtype)
        known[asked] = peak_bytes(lambda: vae.decode(empty, force_not_quantize=True).sample)
    return known[asked]


def estimate_memory(
    model: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    optimizer_states: int = 2,
    ema: bool = True,
    autocast: torch.dtype | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> dict[str, int]:
    """Bytes that one training step of a model needs, by what they are for, without training.

    Args:
        model: in training mode; with gradient checkpointing where that will be used.
        inputs: of the forward pass, in the sizes of training; their content does not matter.
        optimizer_states: tensors that the optimizer keeps for each weight: 2 for Adam and AdamW, 1 for SGD with
            momentum.
        ema: whether a moving average of the weights is kept.
        autocast: the type of mixed precision, if any.
        loss: from the model's output to a scalar; by default the mean square of its sample.
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
