"""`cardiodit phantom`: synthetic hearts and chests, data without patients."""

import argparse
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command, add_electricity
from cardiodit.errors import CardioDiTError

VENDORS, RHYTHMS = ("plain", "bright", "grey", "coarse"), ("sinus", "premature", "irregular")
STYLE = ("vendor", "base", "valve_motion", "trabeculae", "fat", "scar_signal", "rhythm")


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "phantom",
        "Write synthetic short-axis cines of beating hearts, or synthetic chest CTs, with label maps, the exact "
        "volumes of their structures in mL and a manifest (CSV).",
        "cardiodit phantom --output_dir phantoms --num 40 --seed 0 --size 64 64 8 16",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to, new or empty")
    parser.add_argument(
        "--kind", choices=("heart", "chest"), default="heart", help="hearts (cine) or chests (CT) (%(default)s)"
    )
    parser.add_argument(
        "--num", type=int, default=40, help="number of phantoms; the groups of hearts are used in turn (%(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed; phantom i of a seed is always the same, whatever --num is (%(default)s)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="size in voxels: H W D T of hearts (64 64 8 16), H W D of chests (128 128 96)",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size in mm; default: so that the whole heart or chest fits into the image",
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        metavar="GROUP",
        help="groups of hearts to write; default: normal dilated hypertrophic infarct",
    )
    style = parser.add_argument_group(
        "style of hearts",
        "without these options, a heart of a seed is always the same; all are columns of the manifest",
    )
    style.add_argument("--vendor", choices=VENDORS, help="contrast, noise, shading, sharpness and voxel size (plain)")
    style.add_argument(
        "--base", action="store_true", help="open the outflow tract below the valve plane, and show the atria above it"
    )
    style.add_argument(
        "--valve_motion",
        action="store_true",
        help="the valve plane moves towards the apex, which stays; otherwise the apex moves",
    )
    style.add_argument(
        "--trabeculae",
        type=float,
        metavar="X",
        help="strength of trabeculae and of varied papillary muscles, 0 to 1 (0)",
    )
    style.add_argument("--fat", type=float, metavar="X", help="factor of the fat around the heart (1)")
    style.add_argument("--scar_signal", type=float, metavar="X", help="factor of the signal of infarcted muscle (1)")
    style.add_argument(
        "--rhythm",
        choices=RHYTHMS,
        help="sinus; premature: the next beat begins before this one ends; irregular: each slice in a beat of another "
        "duration (sinus)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of worker processes; does not change the result (%(default)s)"
    )
    add_electricity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.imaging.phantom import Style, write_chests, write_cohort

    settings = {name: getattr(arguments, name) for name in ("num", "seed", "workers")}
    for name in ("size", "spacing", "groups"):
        if getattr(arguments, name) is not None:
            settings[name] = tuple(getattr(arguments, name))
    if arguments.kind == "chest" and arguments.groups:
        raise CardioDiTError("--groups is for hearts; chests have no groups.")
    given = {name: getattr(arguments, name) for name in STYLE}
    chosen = {name: value for name, value in given.items() if value is not None and value is not False}
    if chosen and arguments.kind == "chest":
        raise CardioDiTError(f"--{next(iter(chosen))} is for hearts; chests have no style.")
    if chosen:
        settings["style"] = Style(**chosen)
    write = write_cohort if arguments.kind == "heart" else write_chests
    manifest = write(arguments.output_dir, **settings)
    say(f"Wrote {arguments.num} {arguments.kind}s. The manifest is {manifest}.")
