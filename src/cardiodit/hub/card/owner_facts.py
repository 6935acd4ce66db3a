"""Facts that only the owner of a model knows and its card must state, read from a YAML file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.typed_yaml import Reader, option, read_yaml
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.bundled_models import HUB_NAME

HUB_ID = re.compile(HUB_NAME)
# Licences that the Hub knows by a short name: https://huggingface.co/docs/hub/repositories-licenses
OTHER = "other"  # needs a name, and better a link too
# The Hub's list, less "unknown", which is what a card without a licence means anyway.
LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma other
    """.split()  # noqa: SIM905  a list would fill a screen
)
LARGEST_INTENSITY = 2000.0  # g CO2 per kWh; the dirtiest grids are near 1000

TO_BE_STATED = "**To be stated:**"

LISTED = ("distribution", "diversity")  # groups whose metrics are all listed on the Hub
LISTED_ALONE = "plausible_all"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One evaluation result."""

    name: str
    value: float | str
    dataset: str
    type: str | None = None


@dataclass(frozen=True, kw_only=True)
class OwnerFacts:
    """The content of a facts file. Keys in `REQUIRED` that are None are marked in the card as still to be stated."""

    name: str | None = option(None, "name of the model; default: the name of its training run or folder")
    repository: str | None = option(
        None, "repository where it will be published, org/name; used in the card's code example"
    )
    license: str | None = option(
        None, "licence of the weights, by its identifier on the Hub: apache-2.0, cc-by-nc-4.0, other"
    )
    license_name: str | None = option(None, "name of the licence, with `license: other`")
    license_link: str | None = option(None, "link to the licence text, with `license: other`")
    base_model: str | None = option(None, "org/name of the model from which this one was fine-tuned")
    datasets: tuple[str, ...] | None = option(
        None, "list of the training data sets: ids on the Hub (org/name), or names and references"
    )
    cohort: str | None = option(
        None,
        "number of patients and volumes, their split, demographics and diagnoses, where and when scanned",
    )
    consent: str | None = option(
        None, "consent or ethics approval that covers data collection and publication of a model trained on the data"
    )
    scanners: str | None = option(None, "vendors, field strengths, sequences, in-plane resolution and slice thickness")
    lacks: str | None = option(None, "what is missing or underrepresented in the data, and therefore in samples")
    preprocessing: str | None = option(None, "description, if the model's own config does not contain it")
    training: str | None = option(
        None, "description, if there is no run folder; otherwise additions to what the runs recorded"
    )
    evaluation: str | None = option(
        None,
        "number of real volumes, metrics with confidence intervals, the same metrics between real and real volumes, "
        "results, and who inspected the samples",
    )
    metrics: tuple[Metric, ...] | None = option(
        None, "list of results for the Hub, each with name, value, dataset (Hub id or words) and, optionally, type"
    )
    memorization: str | None = option(
        None, "how you tested whether the model reproduces its training patients, and the result"
    )
    energy_kwh: float | None = option(
        None, "kWh of the whole training, if its runs did not record it; overrides what they recorded"
    )
    country: str | None = option(None, "country or region where the electricity was used")
    carbon_intensity: float | None = option(
        None, "g CO2-equivalent per kWh of that electricity; default: the world average, and the card says so"
    )
    data_centre_overhead: float | None = option(
        None,
        "power usage effectiveness (PUE) of the data centre, 1 or more; default: not counted, as the card says",
    )
    access: str | None = option(
        None,
        "terms for people who ask for the files of a gated repository (`cardiodit publish --gated`), such as that of a "
        "model of patients",
    )
    contact: str | None = option(None, "who made the model and how to reach them")
    citation: str | None = option(None, "what to cite besides the publication of the method")


REQUIRED = (
    *("license", "datasets", "cohort", "consent", "scanners", "lacks"),
    *("evaluation", "memorization", "country", "contact"),
)
EXAMPLES = {"datasets": ["org/name", "in words"], "metrics": ["{name: FID, value: 12.3, dataset: org/name, type: fid}"]}


def help_of(key: str) -> str:
    """Return the help text of a key of the facts file."""
    return next(f.metadata["help"] for f in fields(OwnerFacts) if f.name == key)


def to_state(fact: str) -> str:
    """Return the line that marks a fact as missing in a card."""
    return f"{TO_BE_STATED} {fact}."


def stated(facts: OwnerFacts, key: str, default: str = "") -> str:
    """Return a fact in the owner's words; if unknown, mark a required fact as missing, or return the default."""
    value = getattr(facts, key)
    if value is not None:
        return str(value)
    return to_state(f"`{key}`: {help_of(key)}") if key in REQUIRED else default


def read_facts(path: Path) -> OwnerFacts:
    """Read a facts file. Empty keys are unknown; all wrong values are reported in one error."""
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
        return [f"license: {facts.license!r} is not a licence identifier of the Hub; {hint}"]
    if facts.license == OTHER and facts.license_name is None:
        return ["license: other needs a license_name, so that people know what it is."]
    return []


def _wrong_names(facts: OwnerFacts) -> list[str]:
    given = {"repository": facts.repository, "base_model": facts.base_model}
    return [
        f"{key}: {name!r} is not a repository name; expected org/name."
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
    """Write an empty facts file that explains every key."""
    if path.exists():
        raise CardioDiTError(f"{path} exists already and is not replaced. Fill it in, or choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(blank_facts(), encoding="utf-8")


def blank_facts() -> str:
    parts = ["# Facts for the model card. Longer texts: write `>-` and indent the lines below.\n"]
    for f in fields(OwnerFacts):
        needed = " Required." if f.name in REQUIRED else ""
        comment = fill(f"{f.metadata['help']}.{needed}", 110, initial_indent="# ", subsequent_indent="# ")
        examples = "".join(f"#  - {example}\n" for example in EXAMPLES.get(f.name, []))
        parts.append(f"{comment}\n{f.name}:\n{examples}")
    return "\n".join(parts)


def with_audit(facts: OwnerFacts, report: Mapping[str, Any]) -> OwnerFacts:
    """Append the table and the conclusion of an audit to the owner's words, and its main number to the metrics."""
    from cardiodit.privacy.conclusions import strongest
    from cardiodit.privacy.report import summary_rows

    words = [facts.memorization] if facts.memorization else []
    words += ["\n".join(summary_rows(report)), *report["conclusion"][-1:]]
    copies = strongest(report)["copies"]["excess"]["value"]
    measured = Metric(
        name="Samples that are copies of training patients, beyond held-out patients, in percent",
        value=round(100 * copies, 2),
        dataset=f"{report['sets']['held-out']['patients']} held-out patients",
        type="copies_excess",
    )
    return replace(facts, memorization="\n\n".join(words), metrics=(*(facts.metrics or ()), measured))


def with_evaluation(facts: OwnerFacts, report: Mapping[str, Any]) -> OwnerFacts:
    """Append the table of an evaluation report to the owner's words, and its main numbers to the metrics."""
    from cardiodit.evaluation.report.markdown import number, table
    from cardiodit.evaluation.report.report_file import current_metrics

    where = f"{report['protocol']['counts']['real']} real volumes ({report['sets']['real']['identity'][:12]})"
    measured = [
        Metric(name=metric["title"], value=float(number(metric["value"])), dataset=where, type=metric["name"])
        for metric in current_metrics(report)
        if metric["value"] is not None and (metric["group"] in LISTED or metric["name"] == LISTED_ALONE)
    ]
    words = [facts.evaluation] if facts.evaluation else []
    return replace(
        facts, evaluation="\n\n".join([*words, table(report).strip()]), metrics=(*(facts.metrics or ()), *measured)
    )
