"""`cardiodit audit`: ask whether a model reproduces the patients it was trained on."""

import argparse
import sys
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import DEVICE_HELP, add_command, add_electricity, add_preprocessing, join_processes

INCOMPLETE = 3  # as of `cardiodit evaluate`
RELEASES = ("weights", "samples", "service")


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "audit",
        "Ask whether a model reproduces the patients it was trained on: search training patients among its samples, "
        "compare with what held-out patients reach by chance, and attack the model. Writes audit.json, and audit.html "
        "for a data-protection officer, which shows patients and must stay internal.",
        "cardiodit audit --training train.csv --held_out test.csv --synthetic samples --model runs/dit/pipeline \\\n"
        "      --output_dir audit",
    )
    parser.epilog = f"{parser.epilog}\n\nexit code: 0 success, 1 error, 2 invalid options, 3 some files had problems"
    parser.add_argument(
        "--training",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="CSV manifest of the images that the model was trained on, in the order of training; images also if it "
        "was trained on latents",
    )
    parser.add_argument(
        "--held_out",
        type=Path,
        required=True,
        metavar="MANIFEST",
        help="CSV manifest of patients from the same scanners in neither the training nor the validation set; at least "
        "19, better 100 or more",
    )
    parser.add_argument(
        "--synthetic",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder written by `cardiodit sample`, any folder of NIfTI files with intensities in [-1, 1], or a "
        "manifest",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the report and for cached rows, so that a run resumes",
    )
    parser.add_argument(
        "--model",
        help="pipeline whose weights are audited, as a folder or org/name on the Hub. Without it, only the samples are "
        "examined, and `cardiodit publish` cannot tell which weights they come from",
    )
    parser.add_argument(
        "--run",
        type=Path,
        dest="training_run",
        help="folder of the training run, which records the identity of its data; default: the run that contains the "
        "model, or else the model's card",
    )
    parser.add_argument(
        "--detector",
        dest="detectors",
        nargs="+",
        metavar="NAME",
        help="what recognizes copies; several are reported one by one: pixels (nearest neighbours after "
        "alignment), reconstructions (the same, with patients as the model's VQ model reconstructs them), latents, a "
        "feature network of `cardiodit evaluate` (random, medicalnet10, cinema, ...), or the run "
        "folder of train_copy_detector; default: pixels, and reconstructions if --model has a VQ model",
    )
    parser.add_argument("--weights", help="weights of the feature network: a file, or org/name:file on the Hub")
    parser.add_argument(
        "--planted",
        type=int,
        default=12,
        metavar="N",
        help="hide altered copies of N training patients, and report which kinds the detector finds; 0 skips it "
        "(%(default)s)",
    )
    parser.add_argument(
        "--subgroups",
        nargs="*",
        default=["label", "vendor"],
        metavar="COLUMN",
        help="manifest columns whose groups of training patients are reported (label vendor)",
    )
    attack = parser.add_argument_group("attacks with the weights", "with --model")
    attack.add_argument(
        "--noise_levels",
        type=int,
        default=5,
        help="noise levels at which the denoising loss is measured; 0 skips these attacks (%(default)s)",
    )
    attack.add_argument(
        "--attack_volumes", type=int, default=100, help="largest number of volumes per set to attack (%(default)s)"
    )
    attack.add_argument(
        "--reference", metavar="MODEL", help="model trained on other patients, which tells how difficult a volume is"
    )
    add_preprocessing(parser, "if neither the samples nor --model record it")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--release",
        choices=RELEASES,
        default="weights",
        help="what is to be published: decides the attacker (%(default)s)",
    )
    report.add_argument(
        "--signed_by", metavar="TEXT", help="who answers for the audit; default: left blank, to be signed"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=1, help="worker processes; does not change the report (%(default)s)"
    )
    parser.add_argument("--device", help=f"{DEVICE_HELP} and only one process")
    add_electricity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from cardiodit.privacy.audit import AuditSettings, audit

    state = join_processes(arguments.device)
    names = AuditSettings.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names and name != "run"}
    distributed = {"share": (state.process_index, state.num_processes), "wait": state.wait_for_everyone}
    given["spacing"] = tuple(arguments.spacing) if arguments.spacing else None
    given["device"] = arguments.device or ("cpu" if arguments.processes > 1 else str(state.device))
    found = audit(AuditSettings(**given, run=arguments.training_run, **distributed))
    if found is None:
        return 0
    for sentence in found.report["conclusion"]:
        print(f"- {sentence}")
    say(f"Wrote {', '.join(map(str, found.files))}. audit.html shows patients: it must not leave the institution.")
    problems = found.report["problems"]
    for problem in problems:
        print(f"  - {problem['set']} {problem['file']}: {problem['problem']}", file=sys.stderr)
    return INCOMPLETE if problems else 0
