"""Energy of computations."""

from cardiodit.energy.meter import Energy, EnergyMeter

__all__ = ["Energy", "EnergyMeter"]
