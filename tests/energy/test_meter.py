"""The meter counts what was computed, by whom ever, and says how."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit.energy import Energy, EnergyMeter, meter, sum_energies
from cardiodit.energy.meter import EnergyPart
from cardiodit.errors import CardioDiTError

WORK = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: sum(range(1000))\n"


def work(seconds: float) -> None:
    exec(WORK.format(seconds=seconds))


def kwh_of(energy: Energy) -> dict[str, float | None]:
    return {part.name: part.kwh for part in energy.parts}


def test_busy_time_costs_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIODIT_CORE_WATTS", "36")
    measured = EnergyMeter()
    work(0.2)
    energy = measured.read()
    assert kwh_of(energy)["cpu"] == pytest.approx(0.2 * 36 / 3.6e6, rel=0.2)
    assert "36 W a core" in energy.method and energy.low < energy.kwh < energy.high


def test_waiting_costs_nothing() -> None:
    measured = EnergyMeter()
    time.sleep(0.2)
    assert (kwh_of(measured.read())["cpu"] or 0) * 3.6e6 / 10 < 0.1  # seconds of a busy core


def test_processes_count_while_they_live_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker, and a worker's worker; `process_time` knows neither. Each counts once."""
    monkeypatch.setenv("CARDIODIT_CORE_WATTS", "1")
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {WORK.format(seconds=0.5)!r}])\n"
    waiting = "print(flush=True)\ninput()"
    measured = EnergyMeter()
    worker = subprocess.Popen(
        [sys.executable, "-S", "-c", nested + WORK.format(seconds=0.5) + waiting],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    living = (kwh_of(measured.read())["cpu"] or 0) * 3.6e6
    worker.communicate(b"\n")
    ended = (kwh_of(measured.read())["cpu"] or 0) * 3.6e6
    assert 1.0 <= living < 1.3 and living <= ended < living + 0.15


@pytest.mark.parametrize("watts", ["much", "-3", "nan"])
def test_a_power_that_is_none_is_an_error(watts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIODIT_CORE_WATTS", watts)
    with pytest.raises(CardioDiTError, match="watts"):
        EnergyMeter()


def test_memory_costs_power_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MEMORY_WATTS", 100.0)
    held = torch.ones(2**27)  # half a GiB
    measured = EnergyMeter()
    time.sleep(0.5)
    joules = (kwh_of(measured.read())["memory"] or 0) * 3.6e6
    assert 0.5 * 100 * 0.5 < joules < 100 * 10 and held.numel()


def counters(root: Path, **domains: tuple[str, int]) -> Path:
    """A folder of energy counters as Linux shows it; each counts to 1000 J and begins again."""
    for folder, (name, microjoules) in domains.items():
        path = root / folder.replace("_", ":").replace("rapl", "intel-rapl")
        path.mkdir(parents=True, exist_ok=True)
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text("1000000000\n")
        (path / "energy_uj").write_text(f"{microjoules}\n")
    return root


def test_the_processors_own_counters_are_read_and_wrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = counters(tmp_path, rapl_0=("package-0", 999_000_000), rapl_1=("package-1", 0), rapl_0_0=("dram", 5))
    measured = EnergyMeter(powercap=root)
    monkeypatch.setenv("LOCAL_RANK", "1")
    neighbour = EnergyMeter(powercap=root)  # another process of the same machine reads the same counters
    counters(tmp_path, rapl_0=("package-0", 2_000_000), rapl_1=("package-1", 7_000_000), rapl_0_0=("dram", 1_000_005))
    found = kwh_of(measured.read())
    assert found["cpu"] == pytest.approx((3 + 7) / 3.6e6) and found["memory"] == pytest.approx(1 / 3.6e6)
    assert "RAPL" in measured.read().method and neighbour.read().kwh == 0


class Nvml:
    """NVML with two GPUs: the first has an energy counter that grows by 7.2 kJ a reading, the second reports 300 W."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if handle == 1:
            raise self.NVMLError
        self.millijoules += 7_200_000
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 300_000


def measured_on(monkeypatch: pytest.MonkeyPatch, nvml: Any, handles: dict[str, int], used: list[str]) -> EnergyMeter:
    monkeypatch.setattr(meter._Gpus, "find", classmethod(lambda cls, device: cls(nvml, handles)))
    monkeypatch.setattr(meter, "_uuids", lambda device: used)
    return EnergyMeter("cuda")


def test_a_gpus_counter_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = measured_on(monkeypatch, Nvml(), {"GPU-a": 0}, ["GPU-a"])
    energy = measured.read()
    assert kwh_of(energy)["gpu"] == pytest.approx(7200 / 3.6e6) and "GPU's counter" in energy.method
    assert not energy.is_at_least


def test_a_gpu_without_a_counter_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "SECONDS_BETWEEN_POWERS", 0.05)
    measured = measured_on(monkeypatch, Nvml(), {"GPU-a": 0, "GPU-b": 1}, ["GPU-b"])
    time.sleep(0.4)
    energy = measured.read()
    assert kwh_of(energy)["gpu"] == pytest.approx(0.4 * 300 / 3.6e6, rel=0.3) and "sampled" in energy.method


def test_a_gpu_that_cannot_be_read_makes_the_figure_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = measured_on(monkeypatch, None, {}, ["GPU-a"]).read()
    assert "could not be read" in energy.method and energy.is_at_least and kwh_of(energy)["gpu"] is None


def test_processes_add_up() -> None:
    first = Energy((EnergyPart("cpu", 1.0, 0.5, 2.0, "time"), EnergyPart("gpu", 4.0, 3.8, 4.2, "counter")))
    second = Energy((EnergyPart("cpu", 2.0, 1.0, 4.0, "time"), EnergyPart("gpu", None, 0.0, 0.0, "unknown")))
    total = sum_energies([first, second])
    assert (total.kwh, total.low, total.high) == pytest.approx((7.0, 5.3, 10.2))
    assert total.is_at_least and total.method == "time; counter; unknown" and (first * 0.5).kwh == 2.5


def test_a_meter_that_nobody_holds_stops_looking() -> None:
    before = set(threading.enumerate())
    measured = EnergyMeter()
    (watch,) = (thread for thread in set(threading.enumerate()) - before if thread.name == "energy")
    assert watch.is_alive()
    del measured
    watch.join(5)
    assert not watch.is_alive()
