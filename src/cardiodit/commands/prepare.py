"""`cardiodit prepare`: from a cohort's folder to manifests."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import CINE_LAYOUTS, CT_LAYOUTS, CT_PRESETS, TIME_UNITS, add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "prepare",
        "Find the cine or CT files of a cohort, check every one, split by patient, and write manifests for training.",
        "cardiodit prepare acdc /data/ACDC --output_dir acdc --seed 0\n"
        "  cardiodit prepare lidc /data/LIDC-IDRI --output_dir lidc --exclude_problems --workers 4\n"
        "  cardiodit prepare radchest /data/RAD-ChestCT --output_dir radchest --own_split",
    )
    parser.add_argument(
        "layout",
        choices=(*CINE_LAYOUTS, *CT_LAYOUTS),
        help="how the files lie: acdc, mnms, mnms2, ukbb as published; folder: any NIfTI files, one folder or one "
        "name for each subject; dicom: one folder of DICOM files for each subject. Of CT: lidc (a folder of DICOM "
        "files for each patient, or NIfTI) and radchest (npz, or NIfTI)",
    )
    parser.add_argument("source", type=Path, help="the cohort's folder; it is only read")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--table",
        type=Path,
        help="CSV of the cohort; for ukbb, folder and dicom: a column subject, and what you know of label, vendor, "
        "centre, ed_frame, es_frame (counted from 0); for lidc: subject, label and others; for radchest: its metadata, "
        "or image and subject",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (%(default)s)")
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=(0.8, 0.1, 0.1),
        help="of the patients (0.8 0.1 0.1)",
    )
    parser.add_argument("--own_split", action="store_true", help="take the cohort's own split instead")
    parser.add_argument(
        "--exclude_problems", action="store_true", help="leave files with problems out; otherwise they stop everything"
    )
    parser.add_argument("--time_unit", choices=TIME_UNITS, help="of the headers' frame times, where they are wrong")
    parser.add_argument(
        "--frame_time", type=float, metavar="S", help="seconds between frames, where the headers do not say"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="mm along columns, rows and slices of npz files (0.8 0.8 0.8, as RAD-ChestCT was released)",
    )
    parser.add_argument(
        "--preset",
        choices=CT_PRESETS,
        help="of CT: report what its field of view will crop and pad (prdit-lidc or prdit-radchest)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.imaging.cohorts import Preparation, prepare_cohort, prepare_ct

    how = Preparation(
        fractions=arguments.fractions,
        seed=arguments.seed,
        own_split=arguments.own_split,
        exclude=arguments.exclude_problems,
        time_unit=arguments.time_unit,
        frame_time=arguments.frame_time,
        workers=arguments.workers,
        spacing=None if arguments.spacing is None else tuple(arguments.spacing),
        preset=arguments.preset,
    )
    what = (arguments.layout, arguments.source, arguments.output_dir, arguments.table, how)
    if arguments.layout in CT_LAYOUTS:
        manifest, said = prepare_ct(*what)
        print("\n".join(said))
    else:
        manifest = prepare_cohort(*what)
    print(_say_written(manifest, arguments.own_split))


def _say_written(manifest: Path, own_split: bool) -> str:
    """The files to go on with; a split without patients has none, which training would miss only later."""
    from cardiodit.imaging.cohorts.split import SPLITS

    folder = manifest.parent
    empty = [split for split in SPLITS if not (folder / f"{split}.csv").exists()]
    held = [f"{split}.csv" for split in SPLITS if split not in empty]
    said = [f"Wrote {manifest}, and of its splits {', '.join(held)}."]
    if empty:
        why = (
            "the cohort's own split puts none there. Without --own_split, patients are split by --fractions."
            if own_split
            else "there are too few patients, or none were asked for. Other --fractions share them out otherwise."
        )
        said.append(f"No patient is in {' or '.join(empty)}: {why}")
    return " ".join([*said, f"Read {folder / 'report.md'}, look at {folder / 'pictures'}."])
