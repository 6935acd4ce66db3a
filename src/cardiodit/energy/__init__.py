"""Energy of what was computed."""

from cardiodit.energy.meter import Energy, EnergyMeter

__all__ = ["Energy", "EnergyMeter"]
