"""`cardiodit evaluate`: compare generated volumes with real ones."""

import argparse
import sys
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import (
    DEVICE_HELP,
    add_command,
    add_electricity,
    add_preprocessing,
    device_or_default,
)

INCOMPLETE = 3  # exit code if some volumes could not be evaluated; 2 is argparse's for invalid options
EXIT_CODES = f"""exit code:
  0  success
  1  nothing could be evaluated
  2  invalid options
  {INCOMPLETE}  the reports were written, but some files could not be evaluated; they are listed"""


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "Compare generated volumes with real ones: distances between distributions, coverage, diversity, heart "
        "function, plausibility and consistency. Each number comes with a confidence interval and, for comparison, the "
        "value that real volumes reach among themselves. Writes report.html, report.json, table.md and "
        "model-index.yaml.",
        "cardiodit evaluate --real acdc/test.csv --synthetic samples --output_dir evaluation --segmenter cinema",
    )
    parser.epilog = f"{parser.epilog}\n\n{EXIT_CODES}"
    parser.add_argument(
        "--real",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="CSV manifest of real volumes, preferably of held-out subjects",
    )
    parser.add_argument(
        "--synthetic",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder written by `cardiodit sample`, any folder of NIfTI files with intensities in [-1, 1], or a "
        "manifest of images, which are then preprocessed like the real ones",
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="MANIFEST",
        help="CSV manifest of the volumes that the model was trained on, to look for copies of them among the samples; "
        "--real must then list other subjects",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the reports; measurements are also kept there, so that an interrupted run resumes",
    )
    add_preprocessing(parser, "if the samples do not record it").add_argument(
        "--model",
        help="model whose preprocessing is used: a pipeline, VQ model or PRDiT, as a folder or org/name on the Hub",
    )
    _add_measurement(parser.add_argument_group("measurement"))
    parser.add_argument("--max_volumes", type=int, metavar="N", help="use only a random subset of N volumes per set")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="number of worker processes, on the CPU; does not change the report (%(default)s)",
    )
    parser.add_argument(
        "--device", help=f"{DEVICE_HELP} and only one process. Another device changes the numbers by rounding"
    )
    add_electricity(parser)
    parser.set_defaults(run=run, resumes=True)


def _add_measurement(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--masks",
        type=Path,
        metavar="CSV",
        help="table of the masks that steered the samples (as given to `cardiodit sample --masks`): measures how "
        "closely CT follows them, with a --segmenter of CT",
    )
    group.add_argument(
        "--features",
        default="random",
        metavar="NAME",
        help="network that extracts features: random (untrained), medicalnet10, medicalnet50, radimagenet, cinema, or "
        "your own as module:callable (%(default)s)",
    )
    group.add_argument("--weights", help="weights of the feature network: a file, or org/name:file on the Hub")
    group.add_argument(
        "--features_size",
        type=int,
        nargs=3,
        metavar=("H", "W", "D"),
        help="size in voxels to which volumes are resized for your own network",
    )
    group.add_argument(
        "--segmenter",
        metavar="NAME",
        help="network that segments both sets, for heart function: phantom-segmenter, cinema, the folder of a "
        "HeartSegmenter or of a MONAI bundle, org/name on the Hub, or your own as module:function, a function whose "
        "attribute mask_order names its labels. Default: use the masks listed in both manifests",
    )
    group.add_argument(
        "--real_masks",
        action="store_true",
        help="use the manifest's masks for the real volumes even if there is a --segmenter",
    )
    group.add_argument(
        "--reconstructions",
        metavar="VAE",
        help="also measure how this VQ model changes real volumes by encoding and decoding them",
    )
    group.add_argument(
        "--critic",
        action="store_true",
        help="also train networks (critics) to tell both sets apart; slow, and needs at least 16 volumes per set",
    )
    group.add_argument(
        "--radiomics",
        action="store_true",
        help="also measure textures of CT, for the Fréchet radiomics distance; slow: a minute for a large volume",
    )
    group.add_argument(
        "--metric",
        dest="metrics",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="also compute a metric of your own: module:name or file.py:name of a function decorated with "
        "@cardiodit.evaluation.metrics.metric; can be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
    from cardiodit.evaluation.report.markdown import table

    names = EvaluationSettings.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    for name in ("features_size", "spacing"):
        given[name] = tuple(given[name]) if given[name] else None
    given["device"] = device_or_default(arguments.device or ("cpu" if arguments.processes > 1 else None))
    evaluation = evaluate(EvaluationSettings(**given))
    print(table(evaluation.report))
    say(f"Wrote {', '.join(map(str, evaluation.files))}.")
    problems = evaluation.report["problems"]
    if not problems:
        return 0
    for problem in problems:
        print(f"  - {problem['set']} {problem['file']}: {problem['problem']}", file=sys.stderr)
    print(
        f"cardiodit: {len(problems)} file{'s' if len(problems) > 1 else ''} could not be evaluated, see above and the "
        "report. The numbers cover the remaining files.",
        file=sys.stderr,
    )
    return INCOMPLETE
