"""`cardiodit export`: copy a pipeline folder and add its code."""

import argparse
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "export",
        "Copy a pipeline folder and add its source code, so that people who have diffusers but not this package can "
        "open it with trust_remote_code=True.",
        "cardiodit export my-model --output_dir my-model-with-code",
    )
    parser.add_argument("model", type=Path, help="pipeline folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to, new or empty")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.hub.bundled_models import pipeline_of_run
    from cardiodit.hub.export import export_with_code

    folder = export_with_code(pipeline_of_run(arguments.model), arguments.output_dir)
    say(f'Wrote {folder}. It opens with DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True).')
