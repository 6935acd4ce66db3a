"""Processes: from accelerate's configuration, and what they tell each other."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)

from cardiodit.errors import CardioDiTError
from cardiodit.training.harness import deepspeed
from cardiodit.training.settings import Training

TRACKERS = ("tensorboard", "wandb", "trackio")


def start_accelerator(settings: Training, cpu: bool, folder: Path) -> Accelerator:
    """As `accelerate launch` or torchrun started this process."""
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated", FutureWarning)  # its successor is not it
    needs_deepspeed = deepspeed.is_asked_for()
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            # Without being told, accelerate makes a run of its own of every CPU process that torchrun started.
            cpu=cpu or not torch.accelerator.is_available(),
            # The codebook keeps itself in step; a critic that judges twice before its backward pass must not have its
            # running statistics overwritten in between.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with=trackers_of(settings.report_to) or None,
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
        )
    except ValueError as error:  # such as fp16 on a CPU
        raise CardioDiTError(f"mixed_precision {settings.mixed_precision}: {' '.join(str(error).split())}") from error
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _shard_on_cpu(accelerator)
    if accelerator.distributed_type == DistributedType.MULTI_CPU and needs_deepspeed:
        deepspeed.try_on_cpu(accelerator)
    if accelerator.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = settings.allow_tf32
        torch.backends.cudnn.allow_tf32 = settings.allow_tf32
    return accelerator


def trackers_of(report_to: str) -> list[str]:
    """The trackers asked for; an error where one is unknown or not installed."""
    names = [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise CardioDiTError(f"report_to {name!r} is not one of {', '.join(TRACKERS)}, none.")
        if importlib.util.find_spec(name) is None:
            extra = "train" if name == "tensorboard" else "track"
            raise CardioDiTError(f"{name} is not installed: pip install 'cardiodit[{extra}]', or --report_to none.")
    return names


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """accelerate turns to FSDP on GPUs only, though FSDP2 runs on CPUs too: how it is tried without a GPU."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def share(value: Any, accelerator: Accelerator) -> Any:
    """The main process's value, for everybody."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gather_objects(values: list, accelerator: Accelerator) -> list:
    """All processes' lists in one."""
    return values if accelerator.num_processes == 1 else gather_object(values)
