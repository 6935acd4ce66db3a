"""The sections of a model card."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cardiodit.energy.electricity import MANY, format_grams
from cardiodit.energy.meter import two_digits
from cardiodit.hub.card import model_words
from cardiodit.hub.card.emissions import Emissions
from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.owner_facts import HUB_ID, OTHER, OwnerFacts, help_of, stated, to_state
from cardiodit.hub.card.previews import Previews
from cardiodit.hub.card.training_runs import TrainingRun, missing_stages

BEATING = "A cine is one heartbeat: arrhythmia, breathing and the duration of the beat are not modelled."
STILL = "Volumes are static: motion is not modelled."
CITATION = "The publication that the model follows (above), and cardiodit (`CITATION.cff` in its repository)."


def sections(
    folder: Path,
    model: Model,
    runs: Sequence[TrainingRun],
    facts: OwnerFacts,
    emissions: Emissions,
    previews: Previews | None,
) -> dict[str, str]:
    """Return the text of each placeholder in the template's body: the owner's facts, and what the files contain."""
    return {
        **{f.name: stated(facts, f.name) for f in fields(OwnerFacts)},
        "summary": model_words.summary(model),
        "preview": f"![A generated volume]({previews.pictures[0]})" if previews else "",
        "pipeline": model.pipeline,
        "repository": facts.repository or "path/to/this/folder",
        "call": model_words.call(model),
        "architecture": model_words.architecture(model),
        "method": model_words.method(model),
        "geometry": model_words.geometry(model),
        "datasets": _datasets(facts),
        "preprocessing": _preprocessing(model, facts),
        "training": _training(folder, model, runs, facts),
        "sampler": model_words.sampler(model),
        "previews": previews.in_words(model.is_cine) if previews else "",
        "metrics": _metrics(facts),
        "energy": _energy(emissions, facts, previews),
        "heart": BEATING if model.is_cine else STILL,
        "detail": model.system.card.limits,
        "license": _licence(facts),
        "citation": stated(facts, "citation", CITATION),
    }


def _datasets(facts: OwnerFacts) -> str:
    if facts.datasets is None:
        return stated(facts, "datasets")
    links = [
        f"[{entry}](https://huggingface.co/datasets/{entry})" if HUB_ID.fullmatch(entry) else entry
        for entry in facts.datasets
    ]
    return "; ".join(links)


def _preprocessing(model: Model, facts: OwnerFacts) -> str:
    steps = model.preprocessing
    known = [model_words.preprocessing(steps, model.is_cine)] if steps is not None else []
    known += [facts.preprocessing] if facts.preprocessing else []
    return "\n\n".join(known) or to_state(f"`preprocessing`: {help_of('preprocessing')}")


def _training(folder: Path, model: Model, runs: Sequence[TrainingRun], facts: OwnerFacts) -> str:
    parts = [facts.training] if facts.training else []
    if facts.base_model:
        parts.append(f"Fine-tuned from [{facts.base_model}](https://huggingface.co/{facts.base_model}).")
    parts += [run.describe(folder) for run in runs]
    parts += [
        to_state(f"`training`: why the weights of {_lower(run.title)} differ from the best weights of run {run.name}")
        for run in runs
        if not facts.training and run.made(folder) is False and not run.is_lora
    ]
    if not facts.training and not facts.base_model:
        parts += [
            to_state(f"the training of {_lower(title)}: give its run folder (`--run`) or describe it in `training`")
            for title in missing_stages(model, runs)
        ]
    return "\n\n".join(parts)


def _metrics(facts: OwnerFacts) -> str:
    lines = [f"| {m.name} | {m.value} | {m.dataset} |" for m in facts.metrics or ()]
    return "\n".join(["| Measure | Value | On |", "|---|---|---|", *lines]) if lines else ""


def _energy(emissions: Emissions, facts: OwnerFacts, previews: Previews | None) -> str:
    parts = [emissions.in_words()]
    parts += [
        to_state(f"the energy of {_lower(title)}, which no run recorded: give a run folder (`--run`) or `energy_kwh`")
        for title in emissions.unknown
    ]
    parts.append(f"Hardware: {emissions.hardware}." if emissions.hardware else "")
    parts.append(f"Electricity from: {emissions.place}." if emissions.place else stated(facts, "country"))
    parts.append(_cost_of_one_volume(emissions, previews))
    parts.append(
        "Encoding, evaluation and discarded trials are not counted. The figure depends strongly on the source of the "
        "electricity, and generating many large volumes soon takes more energy than the training did."
    )
    return "\n\n".join(filter(None, parts))


def _cost_of_one_volume(emissions: Emissions, previews: Previews | None) -> str:
    seconds, kwh = (previews.mean(key) if previews else None for key in ("seconds", "energy_kwh"))
    if previews is None or seconds is None:
        return ""
    first = previews.records[0]
    cost = (
        f"Generating a volume took {seconds:.3g} s in {first.get('num_inference_steps')} steps on {first.get('device')}"
    )
    if kwh is None:
        return f"{cost}; its energy was not recorded."
    return (
        f"{cost}, {two_digits(kwh):g} kWh or {format_grams(emissions.grams_of(kwh))} at the same rate: "
        f"{format_grams(emissions.grams_of(kwh) * MANY)} for {MANY:,} volumes."
    )


def _licence(facts: OwnerFacts) -> str:
    if facts.license != OTHER:
        return stated(facts, "license")
    return f"[{facts.license_name}]({facts.license_link})" if facts.license_link else str(facts.license_name)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
