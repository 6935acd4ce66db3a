"""Measure the energy of a computation: its processors with all processes that it starts, its memory and its GPUs.

Each part is read where the hardware lets a user read it, and otherwise estimated, and its record says which: GPUs by
the energy counter of NVML, or by its power, sampled every second; processors by Intel's and AMD's counters (RAPL), or
by CPU time at a nominal power; memory by RAPL, or by its size at a nominal power. Fans, disks, network and power
supplies are not included; a data centre's overhead is part of the electricity (`electricity.py`).
"""

import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError

CORE_WATTS = 10.0  # a busy core of a server, its share of the caches included; 6 to 15 by their data sheets
MEMORY_WATTS = 0.375  # per GiB: 3 W for a module of 8 GB, by measurements of the manufacturers' modules
WATTS_VARIABLE = "CARDIODIT_CORE_WATTS"
JOULES_IN_KWH = 3.6e6
POWERCAP = Path("/sys/class/powercap")
SECONDS_BETWEEN_LOOKS = 10.0  # counters wrap within minutes, and memory changes
SECONDS_BETWEEN_POWERS = 1.0
# The true energy lies between these multiples of the figure.
MEASURED, SAMPLED, NOMINAL = (0.95, 1.05), (0.75, 1.25), (0.5, 2.0)


@dataclass(frozen=True)
class EnergyPart:
    """Energy of one kind of hardware.

    Args:
        name: "gpu", "cpu" or "memory".
        kwh: kilowatt hours; None if they could not be read.
        low, high: range in which the true value lies.
        how: how it was measured.
    """

    name: str
    kwh: float | None
    low: float
    high: float
    how: str


@dataclass(frozen=True)
class Energy:
    """Energy of a computation, by kind of hardware."""

    parts: tuple[EnergyPart, ...]

    @property
    def kwh(self) -> float:
        return sum(part.kwh or 0.0 for part in self.parts)

    @property
    def low(self) -> float:
        return sum(part.low for part in self.parts)

    @property
    def high(self) -> float:
        return sum(part.high for part in self.parts)

    @property
    def is_at_least(self) -> bool:
        """True if the energy of some hardware is unknown, so that the true value is higher."""
        return any(part.kwh is None for part in self.parts)

    @property
    def method(self) -> str:
        return "; ".join(dict.fromkeys(part.how for part in self.parts))

    def __mul__(self, factor: float) -> "Energy":
        return Energy(
            tuple(
                EnergyPart(p.name, None if p.kwh is None else factor * p.kwh, factor * p.low, factor * p.high, p.how)
                for p in self.parts
            )
        )


def sum_energies(energies: Iterable[Energy]) -> Energy:
    """Add the energies of several processes, part by part."""
    parts: dict[tuple[str, bool], list[EnergyPart]] = {}
    for energy in energies:
        for part in energy.parts:
            parts.setdefault((part.name, part.kwh is None), []).append(part)
    return Energy(
        tuple(
            EnergyPart(
                name,
                None if is_unknown else sum(part.kwh or 0.0 for part in found),
                sum(part.low for part in found),
                sum(part.high for part in found),
                "; ".join(dict.fromkeys(part.how for part in found)),
            )
            for (name, is_unknown), found in parts.items()
        )
    )


def two_digits(value: float) -> float:
    """Round to two significant digits: energy is not known more precisely."""
    return float(f"{value:.2g}") if math.isfinite(value) else value


class EnergyMeter:
    """Measures from its construction: this process, all processes that it starts, and its GPU.

    Args:
        device: where the computation runs; None for whatever GPUs this process turns out to use. GPUs are read through
            NVML (`pip install nvidia-ml-py`).
        powercap: folder of the processors' energy counters.
    """

    def __init__(self, device: Any = "cpu", powercap: Path = POWERCAP) -> None:
        self._core_watts = core_watts()
        self._device = None if device is None else str(device)
        self._gpus = _Gpus.find(self._device)
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # of this machine: the counters are the whole machine's
        self._rapl = _Rapl(powercap)
        self._counts_rapl = is_first
        self._lock = threading.Lock()
        self._cores, memory = _core_seconds_and_memory()
        self._memory, self._memory_gib_seconds = memory, 0.0
        self._looked = time.monotonic()
        _Watch(self).start()

    def read(self) -> Energy:
        """Return the energy used since construction."""
        with self._lock:
            cores = self._look() - self._cores
        parts = [self._processors(cores), self._memory_part()]
        if (gpu := self._gpus.read(self._device)) is not None:
            parts.append(gpu)
        return Energy(tuple(parts))

    def _look(self) -> float:
        """Add what has happened since the last look; return the core seconds of all processes."""
        cores, memory = _core_seconds_and_memory()
        now = time.monotonic()
        self._memory_gib_seconds += (now - self._looked) * (self._memory + memory) / 2 / 2**30
        self._memory, self._looked = memory, now
        self._rapl.look()
        self._gpus.look()
        return cores

    def _processors(self, core_seconds: float) -> EnergyPart:
        if self._rapl.packages:
            joules = self._rapl.joules["package"] if self._counts_rapl else 0.0
            return energy_part("cpu", joules, MEASURED, "the processors' counters (RAPL), of the whole machine")
        how = f"CPU time of all processes × {self._core_watts:g} W a core"
        return energy_part("cpu", max(0.0, core_seconds) * self._core_watts, NOMINAL, how)

    def _memory_part(self) -> EnergyPart:
        if self._rapl.modules:
            joules = self._rapl.joules["dram"] if self._counts_rapl else 0.0
            return energy_part("memory", joules, MEASURED, "the memory's counters (RAPL), of the whole machine")
        return energy_part(
            "memory", self._memory_gib_seconds * MEMORY_WATTS, NOMINAL, f"memory × {MEMORY_WATTS:g} W a GiB"
        )


def energy_part(name: str, joules: float, reach: tuple[float, float], how: str) -> EnergyPart:
    """Return the energy of a kind of hardware, with the range that its measurement leaves."""
    kwh = joules / JOULES_IN_KWH
    return EnergyPart(name, kwh, kwh * reach[0], kwh * reach[1], how)


def core_watts() -> float:
    """Return the nominal power of a busy core, which an environment variable can state."""
    text = os.environ.get(WATTS_VARIABLE, "")
    try:
        watts = float(text) if text else CORE_WATTS
    except ValueError:
        watts = -1.0
    if not 0 <= watts < 1000:
        raise CardioDiTError(f"{WATTS_VARIABLE}={text!r} must be the power of a busy core in watts, such as 10.")
    return watts


class _Watch(threading.Thread):
    """Makes a meter look at its counters from time to time, as long as the meter exists."""

    def __init__(self, meter: EnergyMeter) -> None:
        super().__init__(name="energy", daemon=True)
        self._ended = threading.Event()
        self._meter = weakref.ref(meter, lambda _: self._ended.set())
        self._period = SECONDS_BETWEEN_POWERS if meter._gpus.by_power else SECONDS_BETWEEN_LOOKS

    def run(self) -> None:
        while not self._ended.wait(self._period):
            meter = self._meter()
            if meter is None:
                return
            with meter._lock:
                meter._look()
            del meter


def _core_seconds_and_memory() -> tuple[float, int]:
    """Return CPU time so far and bytes of memory of this process and all that it started, living and ended."""
    import psutil  # accelerate requires it

    times = os.times()
    seconds = time.process_time() + times.children_user + times.children_system  # of children that were waited for
    own = psutil.Process()
    memory = own.memory_info().rss
    try:
        living = own.children(recursive=True)
    except psutil.Error:
        living = []
    for process in living:
        try:
            spent = process.cpu_times()
            seconds += spent.user + spent.system + getattr(spent, "children_user", 0.0)
            seconds += getattr(spent, "children_system", 0.0)
            memory += process.memory_info().rss
        except psutil.Error:  # it has just ended, or belongs to somebody else
            continue
    return seconds, memory


class _Rapl:
    """The energy counters of processors and memory under Linux; administrators usually reserve them for themselves."""

    def __init__(self, root: Path) -> None:
        self.joules = {"package": 0.0, "dram": 0.0}
        self._counters: dict[Path, tuple[str, int, int]] = {}  # kind, range and last value in µJ
        for folder in sorted(root.glob("intel-rapl:*")):
            try:
                kind = (folder / "name").read_text().strip().partition("-")[0]
                if kind in self.joules:
                    reach, value = (int((folder / name).read_text()) for name in ("max_energy_range_uj", "energy_uj"))
                    self._counters[folder] = (kind, reach, value)
            except (OSError, ValueError):  # no permission, as on most clusters
                continue

    @property
    def packages(self) -> bool:
        return any(kind == "package" for kind, _, _ in self._counters.values())

    @property
    def modules(self) -> bool:
        return any(kind == "dram" for kind, _, _ in self._counters.values())

    def look(self) -> None:
        for folder, (kind, reach, before) in self._counters.items():
            try:
                value = int((folder / "energy_uj").read_text())
            except (OSError, ValueError):
                continue
            self.joules[kind] += (value - before if value >= before else value + reach - before) / 1e6
            self._counters[folder] = (kind, reach, value)


class _Gpus:
    """The GPUs' energy counters, or where a GPU has none, its power, sampled.

    Args:
        nvml: the library `pynvml`; None if it cannot be used.
        handles: the GPUs that are read, by UUID.
    """

    def __init__(self, nvml: Any, handles: dict[str, Any]) -> None:
        self.nvml, self.handles = nvml, handles
        self.joules = dict.fromkeys(handles, 0.0)
        self._counters = {uuid: self._counter(handle) for uuid, handle in handles.items()}
        self._powers = {uuid: self._power(handles[uuid]) for uuid, value in self._counters.items() if value is None}
        self._looked = time.monotonic()

    @classmethod
    def find(cls, device: str | None) -> "_Gpus":
        """Read the GPU of a device, or for None all GPUs, without starting CUDA."""
        if device is not None and not device.startswith("cuda"):
            return cls(None, {})
        try:
            pynvml = import_module("pynvml")  # an import would be a requirement in an exported pipeline's code
            pynvml.nvmlInit()
            every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            handles = {_text(pynvml.nvmlDeviceGetUUID(handle)): handle for handle in every}
            if device is not None:
                handles = {uuid: handle for uuid, handle in handles.items() if uuid in _uuids(device)}
            return cls(pynvml, handles)
        except Exception:  # no library, no driver, no permission: each has an error of its own
            return cls(None, {})

    @property
    def by_power(self) -> bool:
        return any(power is not None for power in self._powers.values())

    def look(self) -> None:
        """Add the energy since the last look."""
        now = time.monotonic()
        for uuid, handle in self.handles.items():
            before, value = self._counters[uuid], self._counter(handle)
            if before is not None and value is not None:
                self.joules[uuid] += value - before
                self._counters[uuid] = value
            elif (power := self._powers.get(uuid)) is not None:
                latest = self._power(handle)
                latest = power if latest is None else latest
                self.joules[uuid] += (now - self._looked) * (power + latest) / 2
                self._powers[uuid] = latest
        self._looked = now

    def read(self, device: str | None) -> EnergyPart | None:
        """Return the energy of the device, or for None of the GPUs in use; None if no GPU is."""
        used = _uuids(device)
        if not used:
            return None
        known = [uuid for uuid in used if uuid in self.handles and self._is_read(uuid)]
        if len(known) < len(used):
            return EnergyPart("gpu", None, 0.0, 0.0, "the GPU's counter could not be read")
        joules = sum(self.joules[uuid] for uuid in known)
        if any(uuid in self._powers for uuid in known):
            return energy_part("gpu", joules, SAMPLED, "GPU's power, sampled every second")
        return energy_part("gpu", joules, MEASURED, "GPU's counter")

    def _is_read(self, uuid: str) -> bool:
        return self._counters[uuid] is not None or self._powers.get(uuid) is not None

    def _counter(self, handle: Any) -> float | None:
        try:
            return self.nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        except self.nvml.NVMLError:
            return None

    def _power(self, handle: Any) -> float | None:
        try:
            return self.nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        except self.nvml.NVMLError:
            return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _uuids(device: str | None) -> list[str]:
    """Return the UUIDs of a device, or for None of the GPUs on which this process holds memory."""
    if device is not None and device.startswith("cpu"):
        return []
    if device is not None and not device.startswith("cuda"):
        return [device]  # such as mps, which nobody can read
    torch = sys.modules.get("torch")
    if torch is None or (device is None and not torch.cuda.is_initialized()):
        return []
    if device is not None:
        numbers = [torch.device(device).index or 0] if ":" in device else [torch.cuda.current_device()]
    else:
        numbers = [i for i in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(i)]
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]
