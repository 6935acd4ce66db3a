"""How GPUs compute: TF32, kernels, memory layout, precision, free memory, and copies that do not wait.

Training, encoding and sampling all take their policy from here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from cardiodit._util.foreign_files import available_memory

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}  # accelerate's names


def set_kernels(tf32: bool = True, benchmark: bool = False) -> None:
    """Set how NVIDIA GPUs multiply matrices and convolve in float32.

    Args:
        tf32: round inputs to TF32, which is faster; codes of a VQ model are always searched in full float32.
        benchmark: try cuDNN's kernels for each new size and keep the fastest, for training on one size. The choice may
            differ from run to run, and results with it by rounding.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark


@contextmanager
def fixed_kernels() -> Iterator[None]:
    """Use the default policy and deterministic kernels within a block, whatever the process has configured."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, deterministic = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark), cudnn.deterministic
    set_kernels()
    cudnn.deterministic = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        cudnn.deterministic = deterministic


def channels_last(*modules: torch.nn.Module, device: torch.device) -> None:
    """Lay out the weights of 3D convolutions for tensor cores, which keep channels last, if the device is a GPU."""
    if device.type == "cuda":
        for module in modules:
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to a device without waiting until the device has done its work."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def default_dtype(trained_in: str | None, device: torch.device) -> str:
    """Return the precision in which to sample: bfloat16 on a GPU that has it, if the model was trained in it."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bf16 and trained_in == "bfloat16" else "float32"


def free_memory(device: torch.device) -> int:
    """Return the bytes that a computation on a device may use, including those that torch keeps for reuse."""
    if device.type != "cuda":
        return available_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in the tensors' own precision within a block."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
