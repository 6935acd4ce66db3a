"""What only the owner of a model knows and its card must say: read from a YAML file."""

import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.typed_yaml import Reader, option, read_yaml
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.card.licences import LICENCES, OTHER

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LARGEST_INTENSITY = 2000.0  # g CO2 per kWh; the dirtiest grids are near 1000


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number."""

    name: str
    value: float | str
    dataset: str
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class OwnerFacts:
    """A facts file. What is None and in `REQUIRED` stays visible in the card as something to be stated."""

    name: str | None = option(None, "the model's name; left out: that of its training run or folder")
    repository: str | None = option(None, "where it will be published, org/name; stands in the card's example")
    license: str | None = option(
        None, "the licence of the weights, as the Hub names it: apache-2.0, cc-by-nc-4.0, other"
    )
    license_name: str | None = option(None, "with `license: other`, what it is called")
    license_link: str | None = option(None, "with `license: other`, where its text is")
    base_model: str | None = option(None, "org/name of the model that this one was fine-tuned from")
    datasets: tuple[str, ...] | None = option(
        None, "a list of the data trained on: ids on the Hub (org/name), or names and references in words"
    )
    cohort: str | None = option(
        None, "how many patients and volumes, split how, who they are (age, sex, diagnoses), where and when scanned"
    )
    consent: str | None = option(
        None, "consent or ethics approval under which the data were collected and a model of them may be published"
    )
    scanners: str | None = option(None, "vendors, field strengths, sequences, in-plane resolution and slice thickness")
    lacks: str | None = option(None, "what the data lack or hold too little of, so that samples will too")
    preprocessing: str | None = option(None, "in words, where the model's own config does not say it")
    training: str | None = option(None, "in words, where no run folder tells of it; else what should be added")
    evaluation: str | None = option(
        None,
        "against how many real volumes, with which measures and intervals, beside the distance between real and real; "
        "what was found; who looked at the samples",
    )
    metrics: tuple[Metric, ...] | None = option(
        None, "a list of numbers for the Hub, each with name, value, dataset (Hub id or words) and, if wanted, type"
    )
    memorization: str | None = option(
        None, "how it was tested whether the model hands out copies of its training patients, and what was found"
    )
    energy_kwh: float | None = option(
        None, "kWh of the whole training, where its runs did not record them; goes before what they recorded"
    )
    country: str | None = option(None, "country or region whose electricity was used, in words")
    carbon_intensity: float | None = option(
        None, "g CO2-equivalent per kWh of that electricity; left out: the world's average is taken, and said"
    )
    data_centre_overhead: float | None = option(
        None, "power usage effectiveness (PUE) of the data centre, 1 or more; left out: not counted, and said"
    )
    contact: str | None = option(None, "who made the model, and whom to write to about it")
    citation: str | None = option(None, "what to cite, beside the publication of the method")


REQUIRED = (
    *("license", "datasets", "cohort", "consent", "scanners", "lacks"),
    *("evaluation", "memorization", "country", "contact"),
)
EXAMPLES = {"datasets": ["org/name", "in words"], "metrics": ["{name: FID, value: 12.3, dataset: org/name, type: fid}"]}


def help_of(key: str) -> str:
    """What a key of the facts file means."""
    return next(f.metadata["help"] for f in fields(OwnerFacts) if f.name == key)


def read_facts(path: Path) -> OwnerFacts:
    """Reads a facts file; keys that are left empty are unknown. All wrong values come in one error."""
    raw = {key: _unless_blank(value) for key, value in read_yaml(path).items()}
    facts = Reader(path.name).section(OwnerFacts, raw, "")
    problems = Problems(f"{path.name} cannot be used")
    for sentence in (*_wrong_licence(facts), *_wrong_names(facts), *_wrong_numbers(facts)):
        problems.add(sentence)
    problems.raise_if_any()
    return facts


def _unless_blank(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip() or None
    return None if value == [] else value


def _wrong_licence(facts: OwnerFacts) -> list[str]:
    if facts.license is not None and facts.license not in LICENCES:
        close = get_close_matches(facts.license.lower(), sorted(LICENCES), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "write `other`, and give license_name and license_link."
        return [f"license: {facts.license!r} is no licence that the Hub knows; {hint}"]
    if facts.license == OTHER and facts.license_name is None:
        return ["license: other needs a license_name, so that people know what it is."]
    return []


def _wrong_names(facts: OwnerFacts) -> list[str]:
    given = {"repository": facts.repository, "base_model": facts.base_model}
    return [
        f"{key}: {name!r} is no name on the Hub; org/name was expected."
        for key, name in given.items()
        if name is not None and not HUB_ID.fullmatch(name)
    ]


def _wrong_numbers(facts: OwnerFacts) -> list[str]:
    limits = {
        "energy_kwh": (0.0, 1e9),
        "carbon_intensity": (0.0, LARGEST_INTENSITY),
        "data_centre_overhead": (1.0, 10.0),
    }
    return [
        f"{key}: {getattr(facts, key):g} is not from {low:g} to {high:g}; it means: {help_of(key)}."
        for key, (low, high) in limits.items()
        if getattr(facts, key) is not None and not low <= getattr(facts, key) <= high
    ]


def write_facts(path: Path) -> None:
    """Writes a facts file to be filled in, every key with its meaning."""
    if path.exists():
        raise CardioDiTError(f"{path} exists already and is not replaced. Fill it in, or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(blank_facts(), encoding="utf-8")


def blank_facts() -> str:
    parts = ["# What a model card says that no file knows. Long texts go on over lines after `>-`, indented.\n"]
    for f in fields(OwnerFacts):
        needed = " Needed." if f.name in REQUIRED else ""
        comment = fill(f"{f.metadata['help']}.{needed}", 110, initial_indent="# ", subsequent_indent="# ")
        examples = "".join(f"#  - {example}\n" for example in EXAMPLES.get(f.name, []))
        parts.append(f"{comment}\n{f.name}:\n{examples}")
    return "\n".join(parts)
