"""`cardiodit export-dataset`: hearts with masks in the layouts of other tools."""

import argparse
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import DEVICE_HELP, add_command, device_or_default

LAYOUTS = ("nnunet", "monai", "huggingface")  # of `cardiodit.dataset_export`, which would import torch for `--help`
FRAMES = ("ed_es", "all", "cine")


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "export-dataset",
        "Write samples, and real hearts, with their masks as a data set of another tool: nnU-Net v2, MONAI (decathlon "
        "JSON) or Hugging Face datasets. Frames of one subject stay in one split.",
        "cardiodit export-dataset hearts acdc/manifest.csv --layout nnunet --segmenter phantom-segmenter \\\n"
        "      --output_dir nnUNet_raw --name Hearts --number 501\n"
        "  cardiodit export-dataset steered --layout huggingface --frames cine --output_dir steered-hearts",
    )
    parser.add_argument(
        "sources",
        type=Path,
        nargs="+",
        help="manifests (CSV) with masks, and folders of `cardiodit sample`; the column `split` of a manifest is kept, "
        "and samples are for training",
    )
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="the tool that will read the data set")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to, new or empty")
    parser.add_argument(
        "--segmenter",
        help="label hearts that have no mask with this segmenter, named as in `cardiodit evaluate`; masks that exist "
        "are kept",
    )
    parser.add_argument(
        "--frames",
        choices=FRAMES,
        default="ed_es",
        help="ed_es: end-diastole and end-systole; all: every labelled frame; cine: whole beats in 4D (%(default)s)",
    )
    parser.add_argument("--slices", action="store_true", help="write each slice as a file of its own, for 2D networks")
    parser.add_argument("--name", default="Hearts", help="name of the data set (%(default)s)")
    parser.add_argument("--number", type=int, default=501, help="nnU-Net's number of the data set (%(default)s)")
    parser.add_argument("--license", default="other", help="licence that the data set states (%(default)s)")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.dataset_export import Export, export_dataset

    how = Export(arguments.name, arguments.frames, arguments.slices, arguments.number, arguments.license)
    device = device_or_default(arguments.device) if arguments.segmenter else "cpu"
    place, count = export_dataset(
        arguments.sources, arguments.output_dir, arguments.layout, how, arguments.segmenter, device
    )
    say(f"Wrote {count} {'cines' if arguments.frames == 'cine' else 'frames'} with masks. The data set is {place}.")
