"""How much energy a piece of work took: what the GPU's own counter says, and the CPU's time at a nominal power.

A CPU's counters are closed to users on most clusters, and count everybody's work; the time that our own threads were
busy is known everywhere. Memory, cooling and the building are not in it.
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
    """Of a piece of work.

    Args:
        kwh: kilowatt hours.
        method: how they were found, for people.
    """

    kwh: float
    method: str


class EnergyMeter:
    """Runs from its making.

    Args:
        device: where the work is done; a CUDA device's own counter is read through NVML (`pip install nvidia-ml-py`).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.core_watts = _core_watts()
        self._gpu = _Counter.of(torch.device(device))
        self._busy = time.process_time()

    def read(self) -> Energy:
        """What was used since the meter's making."""
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
    """A GPU's energy counter; None where there is none or it cannot be read."""

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
