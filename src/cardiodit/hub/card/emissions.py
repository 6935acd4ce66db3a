"""From the energy of a model's training to its CO2: kWh × overhead × g/kWh, nothing hidden."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.owner_facts import OwnerFacts
from cardiodit.hub.card.training_runs import TrainingRun, missing_stages

WORLD_AVERAGE = 480.0  # g CO2-equivalent per kWh of electricity, 2023 (Ember, Global Electricity Review 2024)


@dataclass(frozen=True)
class Emissions:
    """Of a training.

    Args:
        kwh: used by the hardware; None where it is not known of every part.
        unknown: the parts whose energy nobody recorded or stated.
        is_at_least: some sessions were killed before they could record theirs.
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
        """g CO2-equivalent of an energy."""
        return kwh * self.overhead * self.intensity

    def metadata(self) -> dict[str, Any] | None:
        """As the Hub wants it: in grams."""
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
        """How the figure comes about."""
        if self.kwh is None:
            return ""
        source = "the world's average, as none was stated" if self.facts.carbon_intensity is None else "as stated"
        overhead = self.facts.data_centre_overhead
        building = (
            f"times {overhead:g} for the data centre (PUE)" if overhead else "the data centre's overhead not counted"
        )
        least = "at least " if self.is_at_least else ""
        return (
            f"Training took {least}{self.kwh:.4g} kWh ({self.method}). At {self.intensity:g} g CO2-equivalent per kWh "
            f"({source}), {building}, that is {least}{grams(self.grams_of(self.kwh))}."
        )


def emissions_of(model: Model, runs: Sequence[TrainingRun], facts: OwnerFacts) -> Emissions:
    """What the runs recorded, or what the owner states in its place."""
    hardware = "; ".join(dict.fromkeys(run.hardware for run in runs))
    if facts.energy_kwh is not None:
        return Emissions(facts.energy_kwh, (), False, "as the owner states it", hardware, facts)
    unknown = [run.title for run in runs if run.energy is None]
    if not facts.base_model:  # of a fine-tuned model, what came before is told by the card of that one
        unknown += missing_stages(model, runs)
    known = [run.energy for run in runs if run.energy is not None]
    method = "; ".join(dict.fromkeys(run.energy_method for run in runs if run.energy_method)) or "method not recorded"
    total = sum(known) if known and not unknown else None
    return Emissions(total, tuple(unknown), any(run.killed for run in runs), method, hardware, facts)


def grams(value: float) -> str:
    """With the unit that reads best."""
    for limit, factor, unit in ((1e6, 1e-6, "t"), (1e3, 1e-3, "kg"), (1.0, 1.0, "g")):
        if value >= limit:
            return f"{value * factor:.3g} {unit} CO2-equivalent"
    return f"{value * 1e3:.3g} mg CO2-equivalent"
