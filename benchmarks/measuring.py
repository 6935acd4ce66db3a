"""Shared by all benchmarks: interleaved timing, peak memory, operation counts, and the name of the machine."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the median seconds of each run; runs alternate, so that changes in machine load affect all alike."""
    for run in runs.values():
        run()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait until a GPU has done what it was given; otherwise only the giving is timed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(run: Run) -> float:
    """Return the peak memory of a call in addition to what the process already uses (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory_mib("VmRSS")
    run()
    return _memory_mib("VmHWM") - before


def _memory_mib(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def count_operations(run: Run) -> int:
    """Count the floating-point operations of a call on fake tensors, including attention on CPU, which torch omits."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    cpu_attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=cpu_attention)
    with counter, FakeTensorMode(allow_non_fake_inputs=True):
        run()
    return int(counter.get_total_flops())


def machine() -> str:
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = f"{(models or [platform.processor()])[0]}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}"
