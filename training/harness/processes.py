"""Processes of a run: how they start, what they exchange, and how signals and errors end them."""

import importlib.util
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from cardiodit._util.gpu import set_kernels
from cardiodit._util.interrupts import EXIT_CODE, typed_command
from cardiodit._util.launch import check_launch, leave_group, meeting, process_rank
from cardiodit._util.terminal import own_warnings
from cardiodit.errors import DEBUG, CardioDiTError, print_error
from cardiodit.training.harness import deepspeed
from cardiodit.training.settings import Training

# How long processes wait for each other. One may prepare volumes while the others wait; the default is 10 minutes.
PATIENCE = timedelta(hours=6)
TRACKERS = ("tensorboard", "wandb", "trackio")
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
CTRL_C = "Ctrl-C"
AGAIN = 2.0  # seconds after which another Ctrl-C is the user's, rather than passed on by a launcher
STDERR = 2
WAITING = b"\nStopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.\n"


def run_script(main: Callable[[], None]) -> None:
    """Run a training script; an error ends it with a sentence and exit code 1."""
    try:
        with own_warnings(everything=DEBUG in sys.argv):
            main()
        leave_group()
    except KeyboardInterrupt as interrupt:
        if process_rank() == 0 and not interrupt.args:
            advice = "The same command resumes from the last checkpoint, if there is one:"
            print(f"\nStopped by Ctrl-C. {advice}\n  {typed_command()}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)
    except Exception as error:
        if process_rank() > 0:
            time.sleep(10)  # normally the first process reports the same error and ends this one
        print(file=sys.stderr)  # ends the line of a progress bar
        print_error(error, Path(sys.argv[0]).name, DEBUG in sys.argv)
        sys.exit(1)


class SignalHandler:
    """Graceful shutdown: remembers Ctrl-C and the signals that schedulers such as Slurm send before they kill a job.

    The run then saves a checkpoint at the end of its step and stops. Ctrl-C stops at once outside of a step
    (`in_step`), and if it is pressed again.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.in_step = False
        self._interrupted = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.received = signal.Signals(number).name
            return
        self.received = CTRL_C
        is_again = self._interrupted > 0 and time.monotonic() - self._interrupted > AGAIN
        if is_again or not self.in_step:
            raise KeyboardInterrupt
        if not self._interrupted and process_rank() == 0:
            os.write(STDERR, WAITING)  # print may be at work below this handler
        self._interrupted = self._interrupted or time.monotonic()


def start_accelerator(settings: Training, cpu: bool, folder: Path) -> Accelerator:
    """Start accelerate as `accelerate launch` or torchrun configured this process."""
    check_launch()
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated", FutureWarning)  # no replacement does this
    needs_deepspeed = deepspeed.is_requested()
    with meeting():
        try:
            accelerator = Accelerator(
                mixed_precision=settings.mixed_precision,
                # Otherwise accelerate makes a separate run of every CPU process that torchrun started.
                cpu=cpu or not torch.accelerator.is_available(),
                # The codebook synchronises itself, and the running statistics of a discriminator that is called twice
                # before its backward pass must not be overwritten in between.
                kwargs_handlers=[
                    DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                    InitProcessGroupKwargs(timeout=PATIENCE),
                ],
                log_with=trackers_of(settings.report_to) or None,
                project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
            )
        except ValueError as error:  # such as fp16 on a CPU
            raise CardioDiTError(
                f"mixed_precision {settings.mixed_precision}: {' '.join(str(error).split())}"
            ) from error
    if accelerator.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate uses FSDP on GPUs only; FSDP2 also runs on CPUs, which is how it is tested without a GPU.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if accelerator.distributed_type == DistributedType.FSDP and dtype is not None:
        # accelerate would sum gradients in half precision, too, unlike DDP and ZeRO
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    if accelerator.distributed_type == DistributedType.MULTI_CPU and needs_deepspeed:
        deepspeed.enable_on_cpu(accelerator)
    set_kernels(settings.allow_tf32, benchmark=not settings.deterministic)
    return accelerator


def trackers_of(report_to: str) -> list[str]:
    """Return the names of the trackers; raise an error if one is unknown or not installed."""
    names = [name.strip() for name in report_to.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise CardioDiTError(f"report_to {name!r} is not one of {', '.join(TRACKERS)}, none.")
        if importlib.util.find_spec(name) is None:
            extra = "train" if name == "tensorboard" else "track"
            raise CardioDiTError(f"{name} is not installed: pip install 'cardiodit[{extra}]', or --report_to none.")
    return names


def share(value: Any, accelerator: Accelerator) -> Any:
    """Return the main process's value on every process."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gather_objects(values: list, accelerator: Accelerator) -> list:
    """Return the lists of all processes as one."""
    return values if accelerator.num_processes == 1 else gather_object(values)
