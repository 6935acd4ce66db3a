"""Shared by all subcommands: creation of their parsers, names to choose from, and distributed processes.

`cardiodit X --help` must answer at once, so command modules import torch, numpy and the like only when they run. The
choices below repeat the keys of registries in such modules; `tests/test_cli.py` compares them.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, NoReturn

from cardiodit._util.launch import check_launch, meeting
from cardiodit.energy.electricity import add_place
from cardiodit.errors import DEBUG, QUIET, CardioDiTError

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
    "need more than 4 GiB otherwise, or on a GPU, to sample or reconstruct, half of its free memory (%(default)s)"
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest command, choice or option."""

    def parse_known_args(  # type: ignore[override]  # its overloads differ in the type of the namespace only
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        self._given = list(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        unknown = self._unknown_options()
        if unknown and message.startswith("unrecognized arguments"):
            message = unknown.pop(0)
        super().error(". ".join([message, *unknown]))

    def _unknown_options(self) -> list[str]:
        known = list(self._option_string_actions)
        names = [text.partition("=")[0] for text in self._given if text.startswith("--") and text != "--"]
        unknown = [name for name in names if not any(option.startswith(name) for option in known)]
        hints = [(name, nearest(name, known)) for name in unknown]
        return [f"There is no option {name}{f'; did you mean {near}?' if near else ''}" for name, near in hints]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = nearest(str(value), choices)
        hint = f"did you mean {near}?" if near else f"choose from {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"there is no {value!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return a known name that contains the name or is spelled similarly; None if there is none."""
    names, bare = {other.lstrip("-"): other for other in known}, name.lstrip("-")
    containing = [other for other in names if len(bare) > 3 and bare in other]
    found = next(iter([*containing, *get_close_matches(bare, names, n=1)]), None)
    return None if found is None else names[found]


def add_command(commands: argparse._SubParsersAction, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Create a subcommand parser. The first sentence of its summary stands in the list of commands."""
    parser = commands.add_parser(
        name,
        help=summary.partition(". ")[0].rstrip("."),
        description=textwrap.fill(summary, 79, break_on_hyphens=False),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_options(parser)
    return parser


def add_preprocessing(parser: argparse.ArgumentParser, known: str) -> argparse._ArgumentGroup:
    """Add options that say how real volumes are prepared; `known` tells when they are not needed."""
    group = parser.add_argument_group("preprocessing of the real volumes", known)
    group.add_argument(
        "--preprocessing", metavar="NAME", help=f"one of {', '.join(PRESETS)}, or a JSON file with its settings"
    )
    group.add_argument("--depth", type=int, help="number of slices to crop or pad to; default: as in the preprocessing")
    group.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size in mm to resample to; default: as in the preprocessing",
    )
    return group


DEVICE_HELP = "device, such as cpu, cuda, cuda:1 or mps; default: a GPU if there is one"


def add_electricity(parser: argparse.ArgumentParser, measured_in: str | None = "output_dir") -> None:
    """Add options that say where the electricity comes from, and have the command's energy measured and recorded.

    Args:
        measured_in: option whose folder holds the record (of a file: its folder); None for no record.
    """
    group = parser.add_argument_group("energy", "measured, and recorded in energy.jsonl" if measured_in else None)
    add_place(group)
    if measured_in:
        parser.set_defaults(measured_in=measured_in, measured_as=parser.prog.rpartition(" ")[2])


def device_or_default(name: str | None) -> str:
    """Return the given device, which this machine must have, or a GPU if there is one, otherwise the CPU."""
    check_device(name)
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return name or (found.type if found is not None else "cpu")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet` and `--debug`, which stand before or after the name of a command; see `terminal`."""
    switch: Any = {"action": "store_true", "default": argparse.SUPPRESS}
    parser.add_argument(QUIET, **switch, help="no progress bars and no notes: only answers, warnings and errors")
    parser.add_argument(DEBUG, **switch, help="show other packages' warnings and, after an error, the traceback")


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
