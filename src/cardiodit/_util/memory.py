"""Estimate the memory that a computation needs without running it.

The computation runs on tensors without content, and the sizes of all live tensors are added up. Buffers inside kernels
are included on request, and on a CPU only, where they were measured.
"""

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from cardiodit._compat import FakeTensorMode, TorchDispatchMode, require, tree_leaves, tree_map
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import AXES

if TYPE_CHECKING:
    from cardiodit.models.autoencoder_vq import VQModel

TILING = ("auto", "on", "off")
TILED_ABOVE = 4 * 2**30  # bytes
TILES, OVERLAP = (128, 96, 64, 40, 24), 16  # latents
SMALL_INPUT = 20480  # values along the first four axes, up to which torch does not use oneDNN for a single volume
_TOOLS = {
    "FakeTensorMode": FakeTensorMode,
    "TorchDispatchMode": TorchDispatchMode,
    "tree_leaves": tree_leaves,
    "tree_map": tree_map,
}
_KNOWN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # bytes for decoding, by VQ model, shape and dtype


class LiveMemory(TorchDispatchMode or object):  # type: ignore[misc]
    """Adds up the storages that operations allocate until they are freed.

    Args:
        fakes: the mode in which everything runs, if it computes without content.
        kernels: also count buffers inside kernels.
    """

    def __init__(self, fakes: Any = None, kernels: bool = False) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._fakes, self._kernels = fakes, kernels
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(self._given, args), tree_map(self._given, kwargs or {})
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._allocated(leaf.untyped_storage())
        if self._kernels:
            self.peak = max(self.peak, self.live + kernel_bytes(func, args, result))
        return result

    def _given(self, value: Any) -> Any:
        """Note that the storage of an input exists already, so that a view of it is no allocation."""
        if not isinstance(value, torch.Tensor):
            return value
        if self._fakes is not None and getattr(value, "fake_mode", None) is None:
            value = self._fakes.from_tensor(value)
        self._known.setdefault(value.untyped_storage(), 0)
        return value

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


def kernel_bytes(function: Any, arguments: Any, result: Any) -> int:
    """Return the memory that a kernel needs beside its inputs and its result: measured on a CPU, elsewhere 0.

    A convolution rearranges input and weights, and then its result; in half precision, and if it is transposed, the
    result exists twice more. In float32, that of a small volume copies the surroundings of every voxel, and that with a
    kernel of one voxel needs nothing.
    """
    if not isinstance(result, torch.Tensor) or result.device.type != "cpu":
        return 0
    if function == torch.ops.aten.convolution.default:
        image, weights, _, _, _, _, is_transposed, *_ = arguments
        is_half = result.dtype in (torch.bfloat16, torch.float16)
        taps = weights[0, 0].numel()
        if not (is_half or is_transposed):
            if taps == 1:
                return 0
            if image.shape[:4].numel() <= SMALL_INPUT and len(image) == 1 and max(weights.shape[2:]) <= 3:
                return result[0, 0].nbytes * image.shape[1] * taps
        return max(image.nbytes + weights.nbytes, result.nbytes * (2 if is_half or is_transposed else 1))
    return 0


def peak_bytes(computation: Callable[[], Any], kernels: bool = False) -> int:
    """Return the peak memory that a computation allocates; its inputs are not counted.

    Args:
        kernels: also count buffers inside kernels, as `kernel_bytes` knows them.
    """
    require("An estimate of the memory needed", **_TOOLS)
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, LiveMemory(fakes, kernels) as memory:
        result = computation()
        del result
    return memory.peak


def weight_bytes(*models: torch.nn.Module) -> int:
    """Return the size of the parameters and buffers of models."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)


def set_tiling(
    vae: "VQModel", shape: Sequence[int], mode: str = "auto", batch_size: int = 1, free: int | None = None
) -> bool:
    """Switch tiling of a VQ model on or off for volumes of a size, and return whether it is on.

    Args:
        vae: VQ model.
        shape: size of a volume in voxels, `(H, W, D)` or `(H, W, D, T)`; a cine is coded slice by slice.
        mode: "on", "off", or "auto": on if coding in one piece would need more than 4 GiB in addition to the weights.
        batch_size: slices or volumes in a batch.
        free: bytes of memory that are free, with which "auto" tiles only what would need more than half of them, in the
            largest tiles that need less. Results with other tiles are the same up to rounding.
    """
    if mode not in TILING:
        raise CardioDiTError(f"tiling={mode!r} must be one of {', '.join(TILING)}.")
    if mode == "auto" and None in _TOOLS.values():
        warnings.warn("This version of torch cannot estimate memory, so tiling='auto' does not tile.", stacklevel=2)
        mode = "off"
    tile = None
    if mode == "auto":
        sizes = dict(zip(AXES, shape, strict=False))
        piece = [max(1, sizes.get(name, 1) // n) for name, n in zip(vae.axis_names, vae.scale_factors, strict=True)]

        def needed(latents: Sequence[int], batch: int) -> int:
            return _decoding_bytes(vae, (batch, vae.config.embedding_dim, *latents))

        limit = TILED_ABOVE if free is None else free // 2
        mode = "on" if needed(piece, batch_size) > limit else "off"
        if mode == "on" and free is not None:
            fitting = (n for n in TILES if needed(_tile_of(vae, piece, n), 1) <= limit)
            tile = next(fitting, TILES[-1])
    if mode == "on":
        vae.enable_tiling(**({} if tile is None else _tile_sizes(vae, tile)))
    else:
        vae.disable_tiling()
    return mode == "on"


def _tile_of(vae: "VQModel", piece: Sequence[int], tile: int) -> list[int]:
    """Return the size in latents of a tile of a piece."""
    return [min(tile, n) if axis in vae.tiled_axes else n for axis, n in zip(vae.axis_names, piece, strict=True)]


def _tile_sizes(vae: "VQModel", tile: int) -> dict[str, int]:
    """Return the arguments of `enable_tiling` for tiles of so many latents, which overlap as the default ones do."""
    factors = {axis: n for axis, n in zip(vae.axis_names, vae.scale_factors, strict=True) if axis in vae.tiled_axes}
    sizes = {f"tile_sample_min_{axis}": tile * n for axis, n in factors.items()}
    return sizes | {f"tile_sample_stride_{axis}": (tile - OVERLAP) * n for axis, n in factors.items()}


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
