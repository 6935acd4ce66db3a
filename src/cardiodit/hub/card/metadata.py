"""The metadata block at the top of a card, by which the Hub finds, filters and shows a model."""

import re
from pathlib import Path
from typing import Any

from cardiodit.hub.card.emissions import Emissions
from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.owner_facts import HUB_ID, LICENCES, OTHER, Metric, OwnerFacts

TASK = "unconditional-image-generation"
ACCESS_FIELDS = {  # what the Hub asks people who want the files of a gated repository
    **dict.fromkeys(("Name", "Institution", "Purpose"), "text"),
    "I will not try to identify anyone in the training data": "checkbox",
}


def card_metadata(name: str, model: Model, facts: OwnerFacts, emissions: Emissions) -> dict[str, Any]:
    """Return the values for the placeholders of the template's metadata block; None if unknown."""
    kind = ["cardiac-mri", "cine-mri", "4d"] if model.is_cine else ["3d"]
    metrics = facts.metrics or ()
    return {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "tags": ["diffusers", "cardiodit", "medical-imaging", "synthetic-data", *model.system.card.tags, *kind],
        "base_model": facts.base_model,
        "datasets": [entry for entry in facts.datasets or () if HUB_ID.fullmatch(entry)] or None,
        "metrics": list(dict.fromkeys(_type_of(metric) for metric in metrics)) or None,
        "co2_eq_emissions": emissions.metadata(),
        "access": facts.access,
        "access_fields": ACCESS_FIELDS if facts.access else None,
        "model_index": _model_index(name, metrics) if metrics else None,
    }


def _type_of(metric: Metric) -> str:
    return metric.type or _slug(metric.name)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "metric"


def _model_index(name: str, metrics: tuple[Metric, ...]) -> list[dict[str, Any]]:
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=metric.dataset if HUB_ID.fullmatch(metric.dataset) else _slug(metric.dataset),
            dataset_name=metric.dataset,
            metric_type=_type_of(metric),
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in metrics
    ]
    return eval_results_to_model_index(name, results)


def metadata_problems(card: Path) -> list[str]:
    """Return what the Hub would miss or not understand in a card's metadata block."""
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import metadata_load

    try:
        metadata = metadata_load(card)
        if not isinstance(metadata, dict):
            return ["has no metadata block (between two lines ---)"]
        data = ModelCardData(**metadata)
    except Exception as error:  # bad YAML, types or model-index: each raises its own
        return [f"has a metadata block that cannot be read ({' '.join(str(error).split())})"]
    return [*_licence_problems(data), *_list_problems(data), *_emission_problems(data)]


def _licence_problems(data: Any) -> list[str]:
    licence = data.get("license")
    if licence is None:
        return ["states no licence (`license` in its metadata)"]
    if licence not in LICENCES:
        return [
            f"states the licence {licence!r}, which the Hub does not know (write `other`, license_name, license_link)"
        ]
    if licence == OTHER and not data.get("license_name"):
        return ["states `license: other` without a license_name"]
    return []


def _list_problems(data: Any) -> list[str]:
    problems = []
    for key in ("tags", "datasets", "metrics"):
        values = data.get(key)
        if values is not None and not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            problems.append(f"has {key} in its metadata that are not a list of texts")
    if not data.get("tags"):
        problems.append("has no tags in its metadata")
    return problems


def _emission_problems(data: Any) -> list[str]:
    emissions = data.get("co2_eq_emissions")
    value = emissions.get("emissions") if isinstance(emissions, dict) else emissions
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
        return ["has co2_eq_emissions whose emissions are not a number of grams"]
    return []
