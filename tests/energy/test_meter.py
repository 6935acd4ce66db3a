"""The meter counts what was computed, and says how."""

import time

import pytest
import torch

from cardiodit.energy import EnergyMeter
from cardiodit.errors import CardioDiTError


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_busy_time_costs_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIODIT_CORE_WATTS", "36")
    meter = EnergyMeter()
    work(0.2)
    energy = meter.read()
    assert energy.kwh == pytest.approx(0.2 * 36 / 3.6e6, rel=0.2)
    assert "36 W a core" in energy.method


def test_waiting_costs_nothing() -> None:
    meter = EnergyMeter()
    time.sleep(0.2)
    assert meter.read().kwh * 3.6e6 / 10 < 0.1  # seconds of a busy core


@pytest.mark.parametrize("watts", ["much", "-3", "nan"])
def test_a_power_that_is_none_is_an_error(watts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARDIODIT_CORE_WATTS", watts)
    with pytest.raises(CardioDiTError, match="watts"):
        EnergyMeter()


class Counter:
    """What NVML offers, over a counter that goes up by 7.2 kJ at each look."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        self.millijoules += 7_200_000
        return self.millijoules


def test_a_gpus_counter_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    from cardiodit.energy.meter import _Counter

    monkeypatch.setenv("CARDIODIT_CORE_WATTS", "0")
    monkeypatch.setattr(_Counter, "of", classmethod(lambda cls, device: cls(Counter(), None)))
    energy = EnergyMeter().read()
    assert energy.kwh == pytest.approx(7200 / 3.6e6)
    assert energy.method.endswith("GPU's counter")


def test_a_gpu_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from cardiodit.energy.meter import _Counter

    monkeypatch.setattr(_Counter, "of", classmethod(lambda cls, device: cls(None, None)))
    assert "could not be read" in EnergyMeter("cpu" if not torch.cuda.is_available() else "cuda").read().method
