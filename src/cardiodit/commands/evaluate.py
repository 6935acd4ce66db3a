"""`cardiodit evaluate`: how near generated volumes come to real ones."""

import argparse
import sys
from pathlib import Path

from cardiodit.commands.subcommand import add_command
from cardiodit.imaging.preprocessing import PRESETS

INCOMPLETE = 3  # the exit code where some volumes could not be evaluated; 2 is argparse's, of options that are wrong
EXIT_CODES = f"""exit code:
  0  all was well
  1  nothing could be evaluated
  2  the options are wrong
  {INCOMPLETE}  reports were written, but some files could not be evaluated; they are listed"""


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Compare generated volumes with real ones: distances, coverage, diversity, heart function, plausibility and "
        "consistency, each with its interval and beside what real volumes score among themselves. Writes report.html, "
        "report.json, table.md and model-index.yaml.",
        "cardiodit evaluate --real acdc/test.csv --synthetic samples --output_dir evaluation --segmenter cinema",
    )
    parser.epilog = f"{parser.epilog}\n\n{EXIT_CODES}"
    parser.add_argument(
        "--real",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="CSV of real volumes, best of subjects that no training has seen",
    )
    parser.add_argument(
        "--synthetic",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of `cardiodit sample`, any folder of NIfTI in [-1, 1], or a manifest of images to be prepared as "
        "the real ones",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="for the reports; what is measured is kept there, so that an interrupted run goes on",
    )
    _add_preparation(parser.add_argument_group("preparation of real volumes", "if the samples do not tell it"))
    _add_instruments(parser.add_argument_group("what is measured with"))
    parser.add_argument("--max_volumes", type=int, metavar="N", help="only so many of each set, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="that measure; the report is the same (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where networks run: cpu, cuda, mps (%(default)s)")
    parser.set_defaults(run=run)


def _add_preparation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", help="pipeline, VQ model or PRDiT that made the samples: a folder, or org/name on the Hub"
    )
    group.add_argument(
        "--preprocessing", metavar="NAME", help=f"one of {', '.join(PRESETS)}, or a JSON file with its settings"
    )
    group.add_argument("--depth", type=int, help="slices to crop or pad to; default: as the preprocessing says")


def _add_instruments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--features",
        default="random",
        metavar="NAME",
        help="feature network: random, medicalnet10, medicalnet50, radimagenet, cinema, or module:callable "
        "(%(default)s)",
    )
    group.add_argument("--weights", help="of the feature network: a file, or org/name:file on the Hub")
    group.add_argument(
        "--features_size", type=int, nargs=3, metavar=("H", "W", "D"), help="voxels that module:callable takes"
    )
    group.add_argument(
        "--segmenter",
        metavar="NAME",
        help="labels both sets, for heart function: phantom-segmenter, cinema, the folder of a HeartSegmenter or of a "
        "MONAI bundle, org/name, or module:function, whose mask_order names its labels. Without one, masks of "
        "both manifests are taken",
    )
    group.add_argument(
        "--real_masks", action="store_true", help="take the manifest's masks for the real volumes all the same"
    )
    group.add_argument(
        "--reconstructions", metavar="VAE", help="VQ model: also tell what real volumes lose in passing through it"
    )
    group.add_argument("--critic", action="store_true", help="also train critics (slow; 16 volumes of each set)")
    group.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="also compute a metric of your own: module:name or file.py:name of a function under "
        "@cardiodit.evaluation.metrics.metric; can be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
    from cardiodit.evaluation.report.markdown import table

    names = EvaluationSettings.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given["features_size"] = tuple(arguments.features_size) if arguments.features_size else None
    found = evaluate(EvaluationSettings(**given))
    print(table(found.report))
    print(f"Wrote {', '.join(map(str, found.files))}.")
    problems = found.report["problems"]
    if not problems:
        return 0
    for problem in problems:
        print(f"  - {problem['set']} {problem['file']}: {problem['problem']}", file=sys.stderr)
    print(
        f"cardiodit: {len(problems)} file{'s' if len(problems) > 1 else ''} could not be evaluated and "
        f"{'are' if len(problems) > 1 else 'is'} listed above and in the report; the numbers are of the others.",
        file=sys.stderr,
    )
    return INCOMPLETE
