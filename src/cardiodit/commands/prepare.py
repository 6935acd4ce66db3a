"""`cardiodit prepare`: find, check and split a cohort, and write its manifests."""

import argparse
from pathlib import Path
from textwrap import wrap

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import CT_PRESETS, TIME_UNITS, add_command, add_electricity
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "prepare",
        "Find the cine or CT files of a cohort, check each one, split the patients into training, validation and test "
        "sets, and write manifests (CSV tables of the files) for training.",
        "cardiodit prepare acdc /data/ACDC --output_dir acdc --seed 0\n"
        "  cardiodit prepare lidc /data/LIDC-IDRI --output_dir lidc --exclude_problems --workers 4\n"
        "  cardiodit prepare radchest /data/RAD-ChestCT --output_dir radchest --own_split",
    )
    example, format_help = parser.epilog, parser.format_help

    def format_help_with_cohorts() -> str:
        """Import the cohorts only when their help is shown."""
        parser.epilog = f"{_describe_cohorts()}\n\n{example}"
        return format_help()

    parser.format_help = format_help_with_cohorts  # type: ignore[method-assign]
    parser.add_argument("layout", help="name of the cohort or of its folder structure; see below")
    parser.add_argument("source", type=Path, help="the cohort's folder; nothing in it is changed")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to, new or empty")
    parser.add_argument(
        "--table", type=Path, help="CSV file about the cohort's subjects or images; see below for its columns"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the split into sets (%(default)s)")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=(0.8, 0.1, 0.1),
        help="fractions of the patients for training, validation and test (0.8 0.1 0.1)",
    )
    parser.add_argument(
        "--own_split", action="store_true", help="use the split that comes with the cohort instead of a random one"
    )
    parser.add_argument(
        "--exclude_problems",
        action="store_true",
        help="leave out files with problems; without it, any problem is an error and nothing is written",
    )
    parser.add_argument(
        "--pattern",
        metavar="GLOB",
        help="use only files whose path below SOURCE, or whose name, matches, such as '*sax*'",
    )
    parser.add_argument(
        "--min_slices",
        type=int,
        default=4,
        metavar="N",
        help="leave out cines of fewer slices, such as long-axis views, which are not short-axis stacks (%(default)s)",
    )
    parser.add_argument(
        "--all_cines",
        action="store_true",
        help="keep all cines of a subject, such as several visits; without it, only the one with the most slices, "
        "since two cines of one heart would count as two patients",
    )
    parser.add_argument(
        "--time_unit", choices=TIME_UNITS, help="unit of the time between frames, if the headers state a wrong one"
    )
    parser.add_argument(
        "--frame_time", type=float, metavar="S", help="time between frames in seconds, if the headers do not contain it"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size of npz files in mm along columns, rows and slices (0.8 0.8 0.8, as RAD-ChestCT was released)",
    )
    parser.add_argument(
        "--preset",
        help="CT: report how much of each scan this preset's field of view will crop or pad; presets are listed below "
        "(default: the cohort's own)",
    )
    parser.add_argument(
        "--measure",
        metavar="SEGMENTER",
        help="cines: fill the columns ef (%%), edv, esv (mL) and mass (g) of the manifests from the masks of each row "
        "or, where it has none, by this segmenter, named as in `cardiodit evaluate`; `masks` uses masks alone. "
        "The columns can condition a model (cardiodit train dit --condition_columns)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of worker processes; does not change the result (%(default)s)"
    )
    add_electricity(parser)
    parser.set_defaults(run=run)


def _describe_cohorts() -> str:
    """List the registered cohorts and their tables, one kind after the other."""
    from cardiodit.imaging.cohorts import COHORTS

    lines = []
    for kind, title in (("cine", "layouts for cine:"), ("ct", "layouts for CT:")):
        lines.append(title)
        for cohort in COHORTS.values():
            if cohort.kind == kind:
                lines.append(f"  {cohort.name:<10} {cohort.title}")
    for cohort in COHORTS.values():
        if cohort.rules:
            lines += ["", *wrap(f"{cohort.name}: {cohort.rules}.", 100, subsequent_indent="  "), ""]
    lines.append("columns of --table:")
    tables: dict[str, list[str]] = {}
    for cohort in COHORTS.values():
        if cohort.table:
            tables.setdefault(cohort.table, []).append(cohort.name)
    for table, names in tables.items():
        lines += wrap(f"{', '.join(names)}: {table}", width=100, initial_indent="  ", subsequent_indent="    ")
    lines += ["presets for CT:", "  " + " ".join(CT_PRESETS)]
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.imaging.cohorts import Preparation, prepare_with_summary
    from cardiodit.imaging.cohorts.cohort import find_cohort

    if arguments.measure and find_cohort(arguments.layout).kind != "cine":
        raise CardioDiTError(f"--measure is for cines, and {arguments.layout} lists CT.")
    how = Preparation(
        fractions=arguments.fractions,
        seed=arguments.seed,
        own_split=arguments.own_split,
        exclude=arguments.exclude_problems,
        pattern=arguments.pattern,
        min_slices=arguments.min_slices,
        all_cines=arguments.all_cines,
        time_unit=arguments.time_unit,
        frame_time=arguments.frame_time,
        workers=arguments.workers,
        spacing=None if arguments.spacing is None else tuple(arguments.spacing),
        preset=arguments.preset,
    )
    manifest, summary = prepare_with_summary(
        arguments.layout, arguments.source, arguments.output_dir, arguments.table, how
    )
    if arguments.measure:
        from cardiodit.evaluation.cohort_measurements import measure_cohort

        summary += measure_cohort(manifest.parent, arguments.measure)
    say("\n".join([*summary, _describe_output(manifest, arguments.own_split)]))


def _describe_output(manifest: Path, own_split: bool) -> str:
    """Name the files that were written; a missing split would otherwise be noticed only when training starts."""
    from cardiodit.imaging.cohorts.split import SPLITS

    folder = manifest.parent
    empty = [split for split in SPLITS if not (folder / f"{split}.csv").exists()]
    written = [f"{split}.csv" for split in SPLITS if split not in empty]
    sentences = [f"Wrote {manifest}, and for its splits {', '.join(written)}."]
    if empty:
        reason = (
            "the cohort's own split puts none there. Without --own_split, patients are split by --fractions."
            if own_split
            else "there are too few patients, or their fraction is 0. Change --fractions to fill these splits."
        )
        sentences.append(f"No patient is in {' or '.join(empty)}: {reason}")
    return " ".join([*sentences, f"Read {folder / 'report.md'} and look at {folder / 'pictures'}."])
