"""The `cardiodit` command. Each subcommand is a module in `commands`."""

import argparse
import io
import sys
from collections.abc import Sequence

from cardiodit import __version__
from cardiodit._util.interrupts import EXIT_CODE, typed_command
from cardiodit._util.launch import leave_group
from cardiodit._util.terminal import environment, own_warnings, quiet_variables
from cardiodit.commands import (
    app,
    audit,
    beat_template,
    card,
    complete,
    convert,
    demo,
    doctor,
    encode,
    energy,
    evaluate,
    export,
    export_dataset,
    models,
    phantom,
    prepare,
    publish,
    reconstruct,
    sample,
    scale_factor,
    train,
    view,
)
from cardiodit.commands.subcommand import Parser, add_output_options
from cardiodit.errors import print_error

# In the order of a project: from data to a published model.
COMMANDS = (
    demo,
    phantom,
    prepare,
    beat_template,
    reconstruct,
    encode,
    scale_factor,
    train,
    sample,
    complete,
    view,
    export_dataset,
    app,
    evaluate,
    audit,
    energy,
    convert,
    models,
    export,
    card,
    publish,
    doctor,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 on success, 1 after an error, which is printed to stderr."""
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    debug = getattr(arguments, "debug", False)
    try:
        with environment(quiet_variables(getattr(arguments, "quiet", False))), own_warnings(everything=debug):
            code = _run(arguments) or 0
        leave_group()
        return code
    except KeyboardInterrupt:
        again = f"The same command continues where it stopped:\n  {typed_command()}" if "resumes" in arguments else ""
        print(f"\ncardiodit: stopped by Ctrl-C. {again}", file=sys.stderr)
        return EXIT_CODE
    except Exception as error:
        print_error(error, "cardiodit", debug)
        return 1


def _run(arguments: argparse.Namespace) -> int | None:
    if not hasattr(arguments, "measured_in"):
        return arguments.run(arguments)
    from cardiodit.energy.records import measured_command

    with measured_command(arguments):
        return arguments.run(arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cardiodit",
        description="Generate beating hearts (4D cardiac cine MRI) and chest CTs (3D) with diffusion models: prepare "
        "data, train, sample, evaluate and publish. New here? Run `cardiodit demo`.",
        epilog="`cardiodit COMMAND --help` describes a command and shows an example. `cardiodit train` lists the "
        "training stages; accelerate runs them, too: `accelerate launch -m cardiodit.training.train_vqgan --help`; "
        "likewise train_dit, train_unet, train_prdit, train_tgca and train_controlnet (adapters that follow masks), "
        "train_segmenter and train_copy_detector.",
    )
    parser.add_argument("--version", action="version", version=f"cardiodit {__version__}")
    add_output_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser
