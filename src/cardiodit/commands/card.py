"""`cardiodit card`: the model card of a pipeline folder."""

import argparse
from dataclasses import replace
from pathlib import Path

from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report import read_report
from cardiodit.hub.card.evaluated import with_evaluation
from cardiodit.hub.card.owner_facts import OwnerFacts, read_facts, write_facts
from cardiodit.hub.card.previews import copy_previews
from cardiodit.hub.model_card import CARD, write_card


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "card",
        "Write the model card (README.md) of a pipeline folder from what its files, its training runs and its owner "
        "know, and tell what is still to be stated.",
        "cardiodit card runs/dit/pipeline --run runs/vqgan runs/dit --facts facts.yaml --previews samples",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="pipeline folder")
    add_sources(parser)
    parser.add_argument(
        "--write_facts",
        type=Path,
        metavar="YAML",
        help="begin with this: only write a facts file to fill in, every key explained",
    )
    parser.set_defaults(run=run)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Where the card gets from what the folder itself does not know."""
    parser.add_argument("--facts", type=Path, metavar="YAML", help="what only you know: data, consent, evaluation ...")
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        default=[],
        dest="runs",
        help="folders of the training runs of both stages; the run in whose folder FOLDER lies, and one beside it that "
        "made the VQ model, are found by themselves",
    )
    parser.add_argument(
        "--previews",
        type=Path,
        metavar="SAMPLES",
        help="folder of `cardiodit sample`: its first four GIFs are shown, in place of earlier ones",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="REPORT",
        help="report.json of `cardiodit evaluate`: its table and its main numbers are put into the card",
    )
    parser.add_argument("--overwrite", action="store_true", help="also replace a card that was edited by hand")


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.folder
    if not folder.is_dir():
        raise CardioDiTError(f"{folder} is not a folder.")
    if arguments.write_facts:
        write_facts(arguments.write_facts)
        print(
            f"Wrote {arguments.write_facts}. Fill it in, then: cardiodit card {folder} --facts {arguments.write_facts}"
        )
        return
    facts, missing = make_card(arguments)
    print(f"Wrote {folder / CARD}.")
    if missing:
        print("Still to be stated:" + "".join(f"\n  - {what}" for what in missing))
    else:
        print(f"It is complete. Publish the folder: cardiodit publish {folder} {facts.repository or 'ORG/NAME'}")


def make_card(arguments: argparse.Namespace, repository: str | None = None) -> tuple[OwnerFacts, list[str]]:
    """Writes the card of a folder; the owner's facts, and what is still to be stated."""
    facts = read_facts(arguments.facts) if arguments.facts else OwnerFacts()
    if facts.repository is None:
        facts = replace(facts, repository=repository)
    if arguments.evaluation:
        facts = with_evaluation(facts, read_report(arguments.evaluation))
    if arguments.previews:
        copy_previews(arguments.previews, arguments.folder)
    return facts, write_card(arguments.folder, arguments.runs, facts, arguments.overwrite)
