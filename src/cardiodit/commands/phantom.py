"""`cardiodit phantom`: hearts and chests without patients."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import PHANTOM_GROUPS, add_command
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "phantom",
        "Write beating short-axis hearts, or chest CTs, with label maps, exact volumes and a manifest: data without "
        "patients.",
        "cardiodit phantom --output_dir phantoms --num 40 --seed 0 --size 64 64 8 16",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--kind", choices=("heart", "chest"), default="heart", help="(%(default)s)")
    parser.add_argument("--num", type=int, default=40, help="how many; hearts of the groups in turn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="phantom i of a seed is always the same (%(default)s)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="voxels: H W D T of a heart (64 64 8 16), H W D of a chest (128 128 96)",
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("H", "W", "D"), help="mm; default: shows the whole heart or chest"
    )
    parser.add_argument("--groups", nargs="+", metavar="GROUP", help=f"of hearts; default: {' '.join(PHANTOM_GROUPS)}")
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.imaging.phantom import write_chests, write_cohort

    settings = {name: getattr(arguments, name) for name in ("num", "seed", "workers")}
    for name in ("size", "spacing", "groups"):
        if getattr(arguments, name) is not None:
            settings[name] = tuple(getattr(arguments, name))
    if arguments.kind == "chest" and arguments.groups:
        raise CardioDiTError("--groups are of hearts; chests have none.")
    manifest = (write_cohort if arguments.kind == "heart" else write_chests)(arguments.output_dir, **settings)
    print(f"Wrote {arguments.num} {arguments.kind}s. The manifest is {manifest}.")
