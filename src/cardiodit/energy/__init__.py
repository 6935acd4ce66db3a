"""Energy of computations, and what it costs the climate: measured, forecast and compared."""

from cardiodit.energy.meter import Energy, EnergyMeter, sum_energies, two_digits

__all__ = ["Energy", "EnergyMeter", "sum_energies", "two_digits"]
