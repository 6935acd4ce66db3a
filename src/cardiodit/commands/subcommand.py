"""Shared by all subcommands: creation of their parsers, names to choose from, and distributed processes.

`cardiodit X --help` must answer at once, so command modules import torch, numpy and the like only when they run. The
choices below repeat the keys of registries in such modules; `tests/test_cli.py` compares them.
"""

import argparse
import textwrap
from datetime import timedelta
from typing import Any

from cardiodit._util.launch import check_launch, meeting
from cardiodit.errors import DEBUG, CardioDiTError

CT_PRESETS = (
    *("voldit-tgca", "prdit-lidc", "prdit-lidc-128", "prdit-lidc-64"),
    *("prdit-radchest", "prdit-radchest-128", "prdit-radchest-64"),
)
PRESETS = ("cine", "cardiodit", "cardiodit-volume", "voldit", *CT_PRESETS)
TIMEOUT = timedelta(days=7)  # one process may have all the remaining work, and the others wait for it
TIME_UNITS = ("sec", "msec", "usec")
PHANTOM_GROUPS = ("normal", "dilated", "hypertrophic", "infarct")
AXES = ("height", "width", "depth", "frames")
DTYPES = ("float32", "bfloat16", "float16")
TILING = ("auto", "on", "off")
TILING_HELP = (
    "run the VQ model on overlapping tiles, which needs much less memory; auto does so only for volumes that would "
    "need more than 4 GiB otherwise (%(default)s)"
)


def add_command(commands: argparse._SubParsersAction, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Create a subcommand parser. The first sentence of its summary stands in the list of commands."""
    parser = commands.add_parser(
        name,
        help=summary.partition(". ")[0].rstrip("."),
        description=textwrap.fill(summary, 79, break_on_hyphens=False),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_debug(parser)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which stands before or after the name of a command; see `print_error`."""
    parser.add_argument(
        DEBUG, action="store_true", default=argparse.SUPPRESS, help="if the command fails, print the traceback too"
    )


def join_processes(device: str | None) -> Any:
    """Return accelerate's `PartialState`: this process's index, the number of processes and the device.

    On machines without a GPU accelerate joins the processes of a launch only if it is explicitly given the CPU;
    otherwise each process would do all the work.
    """
    check_launch()
    check_device(device)
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    with meeting():
        return PartialState(cpu=on_cpu or not torch.accelerator.is_available(), timeout=TIMEOUT)


def check_device(name: str | None) -> None:
    """Raise an error if this machine has no device of that name."""
    if name is None:
        return
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except Exception as error:  # an unknown name, torch without CUDA, too large a number: each raises its own
        raise CardioDiTError(
            f"--device {name}: this machine has no such device, or torch cannot use it. Use cpu, cuda, cuda:1 or mps."
        ) from error
