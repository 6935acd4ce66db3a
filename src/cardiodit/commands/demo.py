"""`cardiodit demo`: the whole chain with a small model."""

import argparse
from pathlib import Path

from cardiodit.commands.adding import add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo",
        "Run the whole chain once with a small model: make, save, load, sample, write.",
        "cardiodit demo --output_dir demo-output",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="new or empty folder (%(default)s)"
    )
    parser.add_argument("--num_samples", type=int, default=2, help="hearts to generate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.demo import run_demo

    run_demo(arguments.output_dir, arguments.num_samples, arguments.seed)
