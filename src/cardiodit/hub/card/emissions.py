"""Estimate the CO2 emissions of a model's training: kWh × data-centre overhead × g/kWh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.owner_facts import OwnerFacts
from cardiodit.hub.card.training_runs import TrainingRun, missing_stages

WORLD_AVERAGE = 480.0  # g CO2-equivalent per kWh of electricity, 2023 (Ember, Global Electricity Review 2024)


@dataclass(frozen=True)
class Emissions:
    """Energy and emissions of a model's training.

    Args:
        kwh: energy used by the hardware; None unless it is known for every stage.
        unknown: titles of the stages whose energy was neither recorded nor stated.
        is_at_least: True if some sessions were killed before they could record their energy.
        method: how the energy was measured.
        hardware: what the training ran on.
        facts: the owner's facts, with the carbon intensity and the data centre's overhead.
    """

    kwh: float | None
    unknown: tuple[str, ...]
    is_at_least: bool
    method: str
    hardware: str
    facts: OwnerFacts

    @property
    def intensity(self) -> float:
        return WORLD_AVERAGE if self.facts.carbon_intensity is None else self.facts.carbon_intensity

    @property
    def overhead(self) -> float:
        return self.facts.data_centre_overhead or 1.0

    def grams_of(self, kwh: float) -> float:
        """Return the emissions of an energy in g CO2-equivalent."""
        return kwh * self.overhead * self.intensity

    def metadata(self) -> dict[str, Any] | None:
        """Return the Hub's `co2_eq_emissions`, in grams; None if unknown."""
        if self.kwh is None:
            return None
        known = {
            "emissions": float(f"{self.grams_of(self.kwh):.4g}"),
            "source": f"cardiodit: {self.method}",
            "training_type": "fine-tuning" if self.facts.base_model else "pre-training",
            "geographical_location": self.facts.country,
            "hardware_used": self.hardware or None,
        }
        return {key: value for key, value in known.items() if value is not None}

    def in_words(self) -> str:
        """Explain how the figure is calculated; empty if it is unknown."""
        if self.kwh is None:
            return ""
        source = "the world average, as none was stated" if self.facts.carbon_intensity is None else "as stated"
        overhead = self.facts.data_centre_overhead
        building = f"times {overhead:g} for the data centre (PUE)" if overhead else "without the data centre's overhead"
        least = "at least " if self.is_at_least else ""
        return (
            f"Training took {least}{self.kwh:.4g} kWh ({self.method}). At {self.intensity:g} g CO2-equivalent per kWh "
            f"({source}), {building}, that is {least}{grams(self.grams_of(self.kwh))}."
        )


def emissions_of(model: Model, runs: Sequence[TrainingRun], facts: OwnerFacts) -> Emissions:
    """Return what the runs recorded, unless the owner states the energy."""
    hardware = "; ".join(dict.fromkeys(run.hardware for run in runs))
    if facts.energy_kwh is not None:
        return Emissions(facts.energy_kwh, (), False, "stated by the owner", hardware, facts)
    unknown = [run.title for run in runs if run.energy is None]
    if not facts.base_model:  # the card of the base model covers the stages before fine-tuning
        unknown += missing_stages(model, runs)
    known = [run.energy for run in runs if run.energy is not None]
    method = "; ".join(dict.fromkeys(run.energy_method for run in runs if run.energy_method)) or "method not recorded"
    total = sum(known) if known and not unknown else None
    return Emissions(total, tuple(unknown), any(run.killed for run in runs), method, hardware, facts)


def grams(value: float) -> str:
    """Format a mass in g with a suitable unit."""
    for limit, factor, unit in ((1e6, 1e-6, "t"), (1e3, 1e-3, "kg"), (1.0, 1.0, "g")):
        if value >= limit:
            return f"{value * factor:.3g} {unit} CO2-equivalent"
    return f"{value * 1e3:.3g} mg CO2-equivalent"
