"""`cardiodit models`: what can be opened by name."""

import argparse
import json
from dataclasses import asdict

from cardiodit.commands.subcommand import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "models",
        "List the public models that can be opened by name: those bundled with the package, and the authors' own "
        "repositories on the Hub, which are converted when they are first opened.",
        "cardiodit models",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.systems import public_models
    from cardiodit.systems.registry import name_of

    rows = [
        {"system": system.title, "pipeline": name_of(system.pipeline), **asdict(model)}
        for system, model in public_models()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        where = "the authors' repository on the Hub" if row["is_authors"] else "bundled with the package"
        scale = row["scale_factor"] or ("computed from its codebook" if row["is_authors"] else "in its config")
        print(
            f"{row['name']}\n"
            f"  {row['system']}, {where}\n"
            f"  open it: {row['pipeline']}.from_pretrained({row['name']!r})\n"
            f"  files: {row['files']}\n"
            f"  config: {row['config']}\n"
            f"  trained on: {row['training_set']}\n"
            f"  scale factor: {scale}\n"
            f"  licence: {row['licence']}\n"
            f"  paper: {row['paper']}"
        )
