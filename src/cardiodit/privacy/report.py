"""`audit.json`, which can be shared, and `audit.html`, which shows patients and stays inside the institution."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardiodit._util.foreign_files import read_text
from cardiodit._util.html import render_page, write_page_file
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report.numbers import readable
from cardiodit.evaluation.report.page import TEMPLATE as EVALUATION_PAGE
from cardiodit.evaluation.report.players import MOST_BYTES, MOST_BYTES_OF_ONE, player
from cardiodit.evaluation.report.report_file import write_report
from cardiodit.hub.checks.files import INTERNAL_MARK
from cardiodit.privacy.conclusions import interval, percent, strongest

if TYPE_CHECKING:
    from cardiodit.privacy.audit import Pair

REPORT, PAGE, SCHEMA = "audit.json", "audit.html", "cardiodit-audit/1"
TEMPLATE = Path(__file__).with_name("audit.html.j2")
ATTACKERS = {
    "weights": "Everybody can download the weights, generate as many samples as they like and look inside the model.",
    "samples": "Everybody sees a fixed set of samples; the weights stay inside the institution.",
    "service": "Everybody can request samples from a service; the weights stay inside the institution.",
}
MEASURES = (
    "Train on more patients, or for fewer steps: `--stop_when memorizing` ends training when the loss of validation "
    "patients exceeds that of training patients.",
    "Augment the training volumes or latents more strongly (`augmentation`); choose a smaller model.",
    "Remove copies before samples are published (`cardiodit sample --filter`). That protects the samples, not the "
    "weights.",
    "Publish samples instead of weights, or restrict who receives the weights.",
    "Train with differential privacy if a bound is required that holds for every attack.",
)


def write_all(folder: Path, report: Mapping[str, Any], pairs: Sequence["Pair"]) -> list[Path]:
    write_report(report, folder / REPORT)
    write_page(report, pairs, folder / PAGE)
    return [folder / REPORT, folder / PAGE]


def read_audit(path: Path) -> dict[str, Any]:
    """Read an `audit.json`, or that of a folder."""
    path = path / REPORT if path.is_dir() else path
    try:
        report = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise CardioDiTError(f"{path} cannot be read as an audit: {error}.") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise CardioDiTError(
            f"{path} is not a report of `cardiodit audit` that this version can read: its schema is {schema}, expected "
            f"{SCHEMA}."
        )
    return report


def write_page(report: Mapping[str, Any], pairs: Sequence["Pair"], path: Path) -> None:
    """Write the page for a data-protection officer, with the nearest pairs as playing pictures."""
    limit = min(MOST_BYTES_OF_ONE, MOST_BYTES // max(1, 2 * len(pairs)))
    volumes = [player(name, load(), None, limit) for pair in pairs for name, load in zip(_names(pair), pair.pictures)]
    page = render_page(
        TEMPLATE,
        EVALUATION_PAGE.parent,
        styles=("page.css", "audit.css"),
        scripts=("players.js", "audit.js"),
        title=f"Does {report['model']['name'] or 'this model'} reproduce its training patients?",
        mark=INTERNAL_MARK,
        report=report,
        attacker=ATTACKERS[report["release"]],
        measures=MEASURES,
        pairs=pairs,
        percent=percent,
        interval=interval,
        readable=readable,
        most=strongest(report),
        contents={"seconds": None, "volumes": volumes},
    )
    write_page_file(page, path)


def _names(pair: "Pair") -> tuple[str, str]:
    return pair.sample, pair.patient


def summary_rows(report: Mapping[str, Any]) -> list[str]:
    """Return lines of a Markdown table for a model card."""
    most, sets = strongest(report), report["sets"]
    lines = [
        "| Audit | Result (95% interval) |",
        "|---|---|",
        f"| Samples, training patients, held-out patients | {sets['synthetic']['volumes']}, "
        f"{sets['training']['patients']}, {sets['held-out']['patients']} |",
        f"| Samples that are copies, beyond held-out patients ({most['detector']['name']}) | "
        f"{interval(most['copies']['excess'])}, p = {readable(most['copies']['p_value'])} |",
        f"| Training patients near samples, beyond held-out patients | {interval(most['patients']['excess'])}, "
        f"p = {readable(most['patients']['p_value'])} |",
        f"| The same by the published rule, without correction | {percent(most['published_rule']['patients'])} of "
        f"patients, {percent(most['published_rule']['copies'])} of samples; up to "
        f"{percent(most['published_rule']['expected_of_a_generator_that_copies_nobody'])} without any copy |",
    ]
    for needs, words in (("samples", "samples alone"), ("weights", "the weights")):
        attacks = [attack for attack in report["attacks"] if attack["needs"] == needs]
        if attacks:
            best = max(attacks, key=lambda attack: attack["auc"]["value"])
            at = best["found_at"]["0.01"]
            lines.append(
                f"| Membership inference with {words}, strongest of {len(attacks)} | "
                f"AUC {interval(best['auc'], 1, '')}; {percent(at['value'])} found at 1% false alarms |"
            )
    if report["generalisation_gap"]:
        lines.append(
            f"| Loss of held-out patients above that of training patients | {interval(report['generalisation_gap'])} |"
        )
    return lines
