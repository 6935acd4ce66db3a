"""Estimate the CO2 emissions of a model's training: kWh × data-centre overhead × g/kWh."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cardiodit.energy.electricity import (
    WORLD,
    Electricity,
    Footprint,
    choose_electricity,
    electricity_from_dict,
    format_grams,
)
from cardiodit.energy.meter import MEASURED, NOMINAL, Energy, EnergyPart, two_digits
from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.owner_facts import OwnerFacts
from cardiodit.hub.card.training_runs import TrainingRun, missing_stages


@dataclass(frozen=True)
class Emissions:
    """Energy and emissions of a model's training.

    Args:
        energy: energy used by the hardware; None unless it is known for every stage.
        unknown: titles of the stages whose energy was neither recorded nor stated.
        is_at_least: True if some sessions were killed before they could record all their energy.
        hardware: what the training ran on.
        electricity: where the electricity came from, with the data centre's overhead.
        facts: the owner's facts.
    """

    energy: Energy | None
    unknown: tuple[str, ...]
    is_at_least: bool
    hardware: str
    electricity: Electricity
    facts: OwnerFacts

    def grams_of(self, kwh: float) -> float:
        """Return the emissions of an energy in g CO2-equivalent."""
        return kwh * (self.electricity.pue or 1.0) * self.electricity.grams

    @property
    def place(self) -> str | None:
        """Where the electricity came from, as the owner states it or as the runs recorded it."""
        recorded = None if self.electricity.code in (None, WORLD) else self.electricity.place
        return self.facts.country or recorded

    def metadata(self) -> dict[str, Any] | None:
        """Return the Hub's `co2_eq_emissions`, in grams; None if unknown."""
        if self.energy is None:
            return None
        known = {
            "emissions": two_digits(self.grams_of(self.energy.kwh)),
            "source": f"cardiodit: {self.energy.method}",
            "training_type": "fine-tuning" if self.facts.base_model else "pre-training",
            "geographical_location": self.place,
            "hardware_used": self.hardware or None,
        }
        return {key: value for key, value in known.items() if value is not None}

    def in_words(self) -> str:
        """Explain how the figure is calculated; empty if it is unknown."""
        if self.energy is None:
            return ""
        used = self.electricity
        source = (
            "the world average, as none was stated"
            if used.code == WORLD
            else f"{used.place}, {'its months' if used.is_monthly else 'mean of'} {used.year}"
            if used.year
            else "as stated"
        )
        building = f"times {used.pue:g} for the data centre (PUE)" if used.pue else "without the data centre's overhead"
        least = "at least " if self.is_at_least else ""
        grams, low, high = Footprint(self.energy, used).grams
        return (
            f"Training took {least}{two_digits(self.energy.kwh):g} kWh ({self.energy.method}). At {used.grams:.0f} g "
            f"CO2-equivalent per kWh ({source}), {building}, that is {least}{format_grams(grams)}; the true value lies "
            f"between {format_grams(low, '')} and {format_grams(high, '')}."
        )


def emissions_of(model: Model, runs: Sequence[TrainingRun], facts: OwnerFacts) -> Emissions:
    """Return what the runs recorded, unless the owner states the energy."""
    hardware = "; ".join(dict.fromkeys(run.hardware for run in runs))
    electricity = _electricity(runs, facts)
    if facts.energy_kwh is not None:
        energy = _whole([(facts.energy_kwh, MEASURED)], "stated by the owner")
        return Emissions(energy, (), False, hardware, electricity, facts)
    unknown = [run.title for run in runs if run.energy is None]
    if not facts.base_model:  # the card of the base model covers the stages before fine-tuning
        unknown += missing_stages(model, runs)
    known = [(run.energy, run.energy_reach or NOMINAL) for run in runs if run.energy is not None]
    method = "; ".join(dict.fromkeys(run.energy_method for run in runs if run.energy_method)) or "method not recorded"
    total = _whole(known, method) if known and not unknown else None
    return Emissions(total, tuple(unknown), any(run.is_at_least for run in runs), hardware, electricity, facts)


def _whole(known: Sequence[tuple[float, tuple[float, float]]], method: str) -> Energy:
    """Return the sum of energies, each with the multiples between which the true value lies."""
    low, high = (sum(kwh * reach[end] for kwh, reach in known) for end in (0, 1))
    return Energy((EnergyPart("all", sum(kwh for kwh, _ in known), low, high, method),))


def _electricity(runs: Sequence[TrainingRun], facts: OwnerFacts) -> Electricity:
    """Return the owner's figure, or that of the place that the runs recorded, or that of the owner's country."""
    recorded = [electricity_from_dict(record) for run in runs for record in run.electricity]
    placed = [each for each in recorded if each.code != WORLD]
    pue = facts.data_centre_overhead or next((each.pue for each in reversed(recorded) if each.pue), None)
    found = placed[-1] if placed else choose_electricity(WORLD)
    if facts.carbon_intensity is not None:
        found = choose_electricity(str(facts.carbon_intensity))
    elif not placed and facts.country:
        with suppress(CardioDiTError):  # a region, or words
            found = choose_electricity(facts.country)
    return replace(found, pue=pue)
