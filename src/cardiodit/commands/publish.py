"""`cardiodit publish`: upload a pipeline folder to the Hub."""

import argparse
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.card import add_sources, make_card
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "publish",
        "Check a pipeline folder and upload it, with its card and previews, to the Hugging Face Hub. Nothing is "
        "uploaded while the card is incomplete or a file could identify a patient; all reasons are listed at once.",
        "cardiodit publish runs/dit/pipeline org/name --facts facts.yaml --dry_run",
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="pipeline folder, or training run that has one; without --facts, its card is published as it is",
    )
    parser.add_argument("repository", metavar="ORG/NAME", help="destination repository, created if missing")
    parser.add_argument("--public", action="store_true", help="make the repository public; default: private")
    parser.add_argument(
        "--gated",
        action="store_true",
        help="let people ask for the files, and decide on each request; the terms are `access` in the facts",
    )
    add_sources(parser)
    parser.add_argument(
        "--without_audit",
        metavar="REASON",
        help="publish a model that was not audited (see `cardiodit audit`); the reason is written into its card",
    )
    parser.add_argument("--message", default="Published with cardiodit", help="commit message (%(default)s)")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="only check the folder, and list every file with its size and what was checked; needs no network",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.hub.audit_gate import write_hub_config
    from cardiodit.hub.bundled_models import pipeline_of_run
    from cardiodit.hub.publishing import ADVICE, check_all, check_name, inventory, publish

    check_name(arguments.repository)
    arguments.folder = pipeline_of_run(arguments.folder)
    if arguments.facts:
        make_card(arguments, arguments.repository)
    elif arguments.runs or arguments.previews or arguments.evaluation or arguments.audit or arguments.overwrite:
        raise CardioDiTError(
            "--run, --previews, --evaluation, --audit and --overwrite write the card again, which also needs --facts."
        )
    if not arguments.dry_run:
        how = (not arguments.public, arguments.message, arguments.without_audit, arguments.gated)
        address = publish(arguments.folder, arguments.repository, *how)
        say(f"Uploaded to {address}.")
        return
    check_all(arguments.folder, arguments.repository, arguments.without_audit).raise_if_any(ADVICE)
    write_hub_config(arguments.folder)
    files = inventory(arguments.folder)
    longest = max(len(file.name) for file in files)
    for file in files:
        print(f"{file.size / 1e6:>9.3f} MB  {file.name:<{longest}}  {file.checked}")
    print(
        f"{arguments.folder} can be published: {len(files)} files, {sum(file.size for file in files) / 1e6:.1f} MB. "
        f"Checked, too: the card is complete, and the folder holds no links, hidden files or leftovers of training. "
        "Not checked: the names of the files, and what the pictures show. Nothing was uploaded."
    )
