"""`cardiodit card`: write the model card of a pipeline folder."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError, reading

if TYPE_CHECKING:
    from cardiodit.hub.card.owner_facts import OwnerFacts


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "card",
        "Write the model card (README.md) of a pipeline folder from its files, its training runs and a YAML file of "
        "facts that only you know, and list what is still missing.",
        "cardiodit card runs/dit/pipeline --write_facts facts.yaml\n"
        "  cardiodit card runs/dit/pipeline --run runs/vqgan runs/dit --facts facts.yaml --previews samples",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pipeline folder, or training run that has one")
    add_sources(parser)
    parser.add_argument(
        "--write_facts",
        type=Path,
        metavar="YAML",
        help="start here: write an empty facts file that explains every key, and nothing else",
    )
    parser.set_defaults(run=run)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the sources of a card besides the folder itself."""
    parser.add_argument(
        "--facts",
        type=Path,
        metavar="YAML",
        help="YAML file of facts that only you know, such as data, consent, evaluation and contact",
    )
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        default=[],
        dest="runs",
        help="folders of the training runs (VQ model and transformer). A run that contains FOLDER, and a run beside it "
        "that trained FOLDER's VQ model, are found automatically",
    )
    parser.add_argument(
        "--previews",
        type=Path,
        metavar="SAMPLES",
        help="folder written by `cardiodit sample`: its first four GIFs are shown in the card, replacing earlier ones",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="REPORT",
        help="report.json of `cardiodit evaluate`: its table and main numbers are added to the card",
    )
    parser.add_argument(
        "--audit",
        type=Path,
        metavar="REPORT",
        help="audit.json of `cardiodit audit` of these weights: it is copied into FOLDER, and its results are added to "
        "the card",
    )
    parser.add_argument("--overwrite", action="store_true", help="also replace a card that was edited by hand")


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.hub.bundled_models import pipeline_of_run
    from cardiodit.hub.card.owner_facts import write_facts
    from cardiodit.hub.model_card import CARD

    folder = arguments.folder = pipeline_of_run(arguments.folder)
    if not folder.is_dir():
        raise CardioDiTError(f"{folder} is not a folder.")
    if arguments.write_facts:
        write_facts(arguments.write_facts)
        print(
            f"Wrote {arguments.write_facts}. Fill it in, then: cardiodit card {folder} --facts {arguments.write_facts}"
        )
        return
    facts, missing = make_card(arguments)
    say(f"Wrote {folder / CARD}.")
    if missing:
        print("Still missing:" + "".join(f"\n  - {item}" for item in missing))
    else:
        say(f"It is complete. Publish the folder: cardiodit publish {folder} {facts.repository or 'ORG/NAME'}")


def make_card(arguments: argparse.Namespace, repository: str | None = None) -> "tuple[OwnerFacts, list[str]]":
    """Write the card of a folder; return the owner's facts and the list of what is still missing."""
    from cardiodit.evaluation.report import read_report
    from cardiodit.hub.card.owner_facts import OwnerFacts, read_facts, with_audit, with_evaluation
    from cardiodit.hub.card.previews import copy_previews
    from cardiodit.hub.model_card import write_card

    facts = read_facts(arguments.facts) if arguments.facts else OwnerFacts()
    if facts.repository is None:
        facts = replace(facts, repository=repository)
    if arguments.evaluation:
        with reading(arguments.evaluation, "a report", "Create it again with `cardiodit evaluate`."):
            facts = with_evaluation(facts, read_report(arguments.evaluation))
    if arguments.audit:
        from cardiodit.hub.audit_gate import add_audit

        facts = with_audit(facts, add_audit(arguments.folder, arguments.audit))
    if arguments.previews:
        copy_previews(arguments.previews, arguments.folder)
    return facts, write_card(arguments.folder, arguments.runs, facts, arguments.overwrite)
