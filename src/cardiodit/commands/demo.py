"""`cardiodit demo`: generate hearts with the bundled model."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import add_command, add_electricity
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo",
        "Generate beating hearts with the small model that comes with the package, and show them on a web page. Needs "
        "no data, no GPU, no network and no account.",
        "cardiodit demo --output_dir demo-output",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="folder to write to, new or empty (%(default)s)"
    )
    parser.add_argument(
        "--num_samples", type=int, default=4, help="number of hearts; the class labels are used in turn (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; each seed gives different hearts (%(default)s)"
    )
    add_electricity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.num_samples < 1:
        raise CardioDiTError(f"--num_samples {arguments.num_samples}: must be at least 1.")
    from cardiodit.demo import run_demo

    run_demo(arguments.output_dir, arguments.num_samples, arguments.seed)
