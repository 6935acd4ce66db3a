"""Measure the energy of a computation: the GPU's own counter, and CPU time at a nominal power.

Most clusters do not let users read CPU energy counters, which include other users' work; the CPU time of a process is
available everywhere. Memory, cooling and the building are not included.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from cardiodit.errors import CardioDiTError

CORE_WATTS = 10.0  # a busy core of a server, its share of the caches included; 6 to 15 by their data sheets
WATTS_VARIABLE = "CARDIODIT_CORE_WATTS"
JOULES_IN_KWH = 3.6e6


@dataclass(frozen=True)
class Energy:
    """Energy of a computation.

    Args:
        kwh: kilowatt hours.
        method: description of how they were measured.
    """

    kwh: float
    method: str


class EnergyMeter:
    """Measures from its construction.

    Args:
        device: where the computation runs; a CUDA device's counter is read through NVML (`pip install nvidia-ml-py`).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.core_watts = _core_watts()
        self._gpu = _Counter.of(torch.device(device))
        self._busy = time.process_time()

    def read(self) -> Energy:
        """Return the energy used since construction."""
        core_seconds = time.process_time() - self._busy
        joules = core_seconds * self.core_watts
        method = f"CPU time of the process × {self.core_watts:g} W a core"
        if self._gpu is not None:
            used = self._gpu.read()
            joules += used or 0.0
            method += " + GPU's counter" if used is not None else "; the GPU's counter could not be read"
        return Energy(joules / JOULES_IN_KWH, method)


def _core_watts() -> float:
    text = os.environ.get(WATTS_VARIABLE, "")
    try:
        watts = float(text) if text else CORE_WATTS
    except ValueError:
        watts = -1.0
    if not 0 <= watts < 1000:
        raise CardioDiTError(f"{WATTS_VARIABLE}={text!r} must be the power of a busy core in watts, such as 10.")
    return watts


class _Counter:
    """A GPU's energy counter; readings are None if it cannot be read."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle
        self.start = self._joules()

    @classmethod
    def of(cls, device: torch.device) -> "_Counter | None":
        if device.type != "cuda":
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
        except Exception:  # no library, no permission, a GPU without the counter: each has an error of its own
            return cls(None, None)

    def read(self) -> float | None:
        now = self._joules()
        return None if now is None or self.start is None else now - self.start

    def _joules(self) -> float | None:
        if self.nvml is None:
            return None
        try:
            return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000
        except self.nvml.NVMLError:
            return None
