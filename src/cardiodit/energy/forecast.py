"""Forecast energy before anything runs: counted operations, and the speed and power of devices.

Speeds are dense bf16 (fp16 where there is no bf16) with sums in float32, and board powers, as stated by NVIDIA's data
sheets; vendors print the speed of sparse matrices, which is twice as high. Idle powers are usual readings.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cardiodit._compat import FakeTensorMode, require
from cardiodit.energy.meter import NOMINAL, Energy, core_watts, energy_part
from cardiodit.errors import CardioDiTError

# Share of the peak that is reached. Assumed, and not measured yet; `cardiodit doctor` measures it on a GPU.
UTILISATION = {"transformer": 0.35, "convolution": 0.25}
LOAD = 0.8  # share of the power between idle and board power that a computing GPU takes
HOST_CORES, HOST_MEMORY_WATTS = 1.0, 10.0  # a busy core and two modules of memory beside each GPU
CORE_TFLOPS = 0.07  # TFLOP/s that a busy core reaches in float32; 0.067 and 0.105 were measured on x86


@dataclass(frozen=True)
class Device:
    """A device.

    Args:
        title: its name for people.
        pattern: text in the name that torch reports; empty for a CPU.
        tflops: dense peak in TFLOP/s.
        watts: board power.
        idle: power without work.
    """

    title: str
    pattern: str
    tflops: float
    watts: float
    idle: float

    @property
    def is_cpu(self) -> bool:
        return not self.pattern


# The first whose pattern is contained in a GPU's name is that GPU: longer names stand before shorter ones.
DEVICES = {
    "h200-nvl": Device("H200 NVL", "H200 NVL", 835, 600, 75),
    "h200": Device("H200 SXM", "H200", 989, 700, 75),
    "h100-pcie": Device("H100 PCIe", "H100 PCIe", 756, 350, 50),
    "h100-nvl": Device("H100 NVL", "H100 NVL", 835, 400, 60),
    "h100": Device("H100 SXM", "H100", 989, 700, 70),
    "b200": Device("B200", "B200", 2250, 1000, 140),
    "a100-80-pcie": Device("A100 80 GB PCIe", "A100 80GB PCIe", 312, 300, 55),
    "a100-40-pcie": Device("A100 40 GB PCIe", "A100-PCIE-40GB", 312, 250, 50),
    "a100-40": Device("A100 40 GB SXM", "A100-SXM4-40GB", 312, 400, 50),
    "a100-80": Device("A100 80 GB SXM", "A100", 312, 400, 55),
    "v100-pcie": Device("V100 PCIe", "V100-PCIE", 112, 250, 40),
    "v100": Device("V100 SXM2", "V100", 125, 300, 40),
    "a40": Device("A40", "A40", 150, 300, 30),
    "a10g": Device("A10G", "A10G", 70, 300, 20),
    "a10": Device("A10", "A10", 125, 150, 15),
    "l40s": Device("L40S", "L40S", 362, 350, 35),
    "l40": Device("L40", "L40", 181, 300, 35),
    "l4": Device("L4", "L4", 121, 72, 16),
    "t4": Device("T4", "T4", 65, 70, 10),
    "rtx5090": Device("RTX 5090", "RTX 5090", 209.5, 575, 30),
    "rtx4090": Device("RTX 4090", "RTX 4090", 165, 450, 20),
    "rtx3090": Device("RTX 3090", "RTX 3090", 71, 350, 25),
    "cpu": Device("CPU", "", CORE_TFLOPS, 0, 0),
}


def find_device(name: str) -> Device:
    """Return a device by its name in the table."""
    if name.lower() in DEVICES:
        return DEVICES[name.lower()]
    near = get_close_matches(name.lower(), DEVICES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise CardioDiTError(f"There is no device {name!r}.{hint} The table has {', '.join(DEVICES)}.")


def known_gpu(name: str) -> Device | None:
    """Return the device of the name that torch reports for a GPU; None if the table lacks it."""
    gpus = [device for device in DEVICES.values() if not device.is_cpu]
    return next((device for device in gpus if re.search(rf"\b{device.pattern}\b", name)), None)


@dataclass(frozen=True)
class Work:
    """Floating-point operations, in TFLOP, by their kind, since the kinds reach different shares of a device's peak.

    Args:
        transformer: of matrix products, as in transformers.
        convolution: of convolutions.
    """

    transformer: float = 0.0
    convolution: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.transformer + other.transformer, self.convolution + other.convolution)

    def __mul__(self, factor: float) -> "Work":
        return Work(factor * self.transformer, factor * self.convolution)

    @property
    def tflop(self) -> float:
        return self.transformer + self.convolution


@dataclass(frozen=True)
class Forecast:
    """Time and energy of work that has not been done.

    Args:
        seconds: duration.
        energy: of all devices.
    """

    seconds: float
    energy: Energy


def forecast_work(work: Work, device: Device, count: int = 1) -> Forecast:
    """Forecast work that several devices share evenly; its range is half to double, since nothing is measured.

    GPUs compute in bf16. In float32 (TF32) they take about twice the time and energy.
    """
    if count < 1:
        raise CardioDiTError(f"{count} devices: at least 1 is needed.")
    if device.is_cpu:
        cores = count * (os.cpu_count() or 1)
        seconds = work.tflop / device.tflops / cores
        how = f"counted operations at {1000 * CORE_TFLOPS:g} GFLOP/s and {core_watts():g} W a core"
        joules = {"cpu": seconds * cores * core_watts(), "memory": seconds * count * HOST_MEMORY_WATTS}
        return _forecast(seconds, joules, how)
    busy = sum(getattr(work, kind) / (device.tflops * share) for kind, share in UTILISATION.items())
    watts = device.idle + LOAD * (device.watts - device.idle)
    shares = " and ".join(f"{share:.0%} ({kind})" for kind, share in UTILISATION.items())
    how = f"counted operations, {shares} of the peak of {device.title}, {watts:.0f} W"
    joules = {"gpu": busy * watts, "cpu": busy * HOST_CORES * core_watts(), "memory": busy * HOST_MEMORY_WATTS}
    return _forecast(busy / count, joules, how)


def _forecast(seconds: float, joules: dict[str, float], how: str) -> Forecast:
    return Forecast(seconds, Energy(tuple(energy_part(name, of, NOMINAL, how) for name, of in joules.items())))


class OperationCounter:
    """Counts the floating-point operations within a `with` block, also those of backward passes, as `work`."""

    def __init__(self) -> None:
        import torch
        from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

        def forward(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
            return int(sdpa_flop_count(query, key, value))

        def backward(gradient: torch.Size, *shapes: torch.Size, **_: object) -> int:
            return int(sdpa_backward_flop_count(gradient, *shapes[:3]))

        aten = torch.ops.aten  # torch itself counts attention on GPUs only
        on_cpu = {
            aten._scaled_dot_product_flash_attention_for_cpu: forward,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        }
        self._counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
        self.work = Work()

    def __enter__(self) -> "OperationCounter":
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        counts = self._counter.get_flop_counts().get("Global", {})
        convolution = sum(number for operation, number in counts.items() if "convolution" in str(operation))
        self.work = Work((sum(counts.values()) - convolution) / 1e12, convolution / 1e12)


def count_operations(run: Callable[[], object]) -> Work:
    """Count the operations of a call on tensors without values, which takes neither their time nor their memory."""
    import torch

    require("A forecast of energy", FakeTensorMode=FakeTensorMode)
    with OperationCounter() as counter, torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        run()
    return counter.work
