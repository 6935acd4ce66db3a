"""Shared by all subcommands: creation of their parsers, names to choose from, and distributed processes.

`cardiodit X --help` must answer at once, so command modules import torch, numpy and the like only when they run. The
choices below repeat the keys of registries in such modules; `tests/test_cli.py` compares them.
"""

import argparse
import textwrap
from typing import Any

CT_PRESETS = (
    *("voldit-tgca", "prdit-lidc", "prdit-lidc-128", "prdit-lidc-64"),
    *("prdit-radchest", "prdit-radchest-128", "prdit-radchest-64"),
)
PRESETS = ("cine", "cardiodit", "cardiodit-volume", "voldit", *CT_PRESETS)
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
    return commands.add_parser(
        name,
        help=summary.partition(". ")[0].rstrip("."),
        description=textwrap.fill(summary, 79, break_on_hyphens=False),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def join_processes(device: str | None, **options: Any) -> Any:
    """Return accelerate's `PartialState`: this process's index, the number of processes and the device.

    On machines without a GPU accelerate joins the processes of a launch only if it is explicitly given the CPU;
    otherwise each process would do all the work.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu or not torch.accelerator.is_available(), **options)
