"""The `cardiodit` command. Each subcommand is a file in `commands`."""

import argparse
import sys
from collections.abc import Sequence

from cardiodit import __version__
from cardiodit.commands import (
    card,
    convert,
    demo,
    encode,
    evaluate,
    export,
    phantom,
    prepare,
    publish,
    reconstruct,
    sample,
    scale_factor,
    view,
)
from cardiodit.errors import CardioDiTError

# In the order of `--help`: how one goes from data to a published model.
COMMANDS = (
    demo,
    phantom,
    prepare,
    reconstruct,
    encode,
    scale_factor,
    sample,
    view,
    evaluate,
    convert,
    export,
    card,
    publish,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it worked, 1 with one sentence on stderr when it did not, or what the command says."""
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except (CardioDiTError, OSError) as error:
        print(f"cardiodit: error: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cardiodit",
        description="Generate 4D cardiac cine MRI and 3D CT, steered by masks if you like: prepare data, encode it for "
        "training, sample, look at volumes.",
        epilog="`cardiodit COMMAND --help` shows an example of each command. Training is started with accelerate: "
        "`accelerate launch -m cardiodit.training.train_vqgan --help`, the same with train_dit, train_tgca (an adapter "
        "for masks) and train_segmenter.",
    )
    parser.add_argument("--version", action="version", version=f"cardiodit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
