"""`cardiodit demo`: generated hearts, without data, GPU or account."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo",
        "Generate four beating hearts with the small model that comes with the package, and show them.",
        "cardiodit demo --output_dir demo-output",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="new or empty folder (%(default)s)"
    )
    parser.add_argument("--num_samples", type=int, default=4, help="hearts, of the labels in turn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one, other hearts (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.num_samples < 1:
        raise CardioDiTError(f"--num_samples {arguments.num_samples}: must be at least 1.")
    from cardiodit.demo import run_demo

    run_demo(arguments.output_dir, arguments.num_samples, arguments.seed)
