"""`cardiodit beat-template`: make the template to which beats are warped (`cycle: dtw`)."""

import argparse
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError, Problems


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "beat-template",
        "Make the template to which beats are aligned by dynamic time warping, from the keyframes and curves of a "
        "manifest (columns ed_frame, ms_frame, es_frame, pf_frame, md_frame and curve), and write the section "
        "`alignment` of a preprocessing.",
        "cardiodit beat-template --ids cohort/training.csv --frames 32 --output alignment.yaml",
    )
    parser.add_argument("--ids", type=Path, required=True, help="manifest of the training images")
    parser.add_argument("--frames", type=int, required=True, help="number of frames of the aligned beats")
    parser.add_argument("--output", type=Path, required=True, help="new YAML file")
    parser.add_argument(
        "--aggregation",
        choices=("median", "mean"),
        default="median",
        help="how beats are brought together (%(default)s)",
    )
    parser.add_argument(
        "--iterations", type=int, default=5, help="how often all beats are warped to the template (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import yaml

    from cardiodit._util.atomic_io import atomic_file
    from cardiodit.imaging import Preprocessing, read_manifest
    from cardiodit.imaging.alignment import make_template
    from cardiodit.imaging.manifest import beat_of_case

    if arguments.frames < 5 or arguments.iterations < 0:
        raise CardioDiTError("A template needs at least 5 frames, one for each keyframe, and no negative iterations.")
    if arguments.output.exists():
        raise CardioDiTError(f"{arguments.output} already exists and is not replaced. Choose another name.")
    curves, keyframes = [], []
    problems = Problems(f"The manifest {arguments.ids} lacks what a template is made of")
    for case in read_manifest(arguments.ids):
        beat = beat_of_case(case, Preprocessing(frames=arguments.frames, cycle="dtw"))
        if beat is None or beat.keyframes is None or beat.curve is None:
            problems.add(f"{case.image} needs ed_frame, ms_frame, es_frame, pf_frame, md_frame and curve")
            continue
        curves.append(beat.curve)
        keyframes.append(beat.keyframes)
    problems.raise_if_any()
    template, ends = make_template(curves, keyframes, arguments.frames, arguments.iterations, arguments.aggregation)
    section = {"template": template, "template_keyframes": ends, "max_warp_fraction": 1.0}
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(yaml.safe_dump({"alignment": section}), encoding="utf-8")
    say(
        f"Wrote {arguments.output}, the template of {len(curves)} beats. Put it into data.preprocessing of a config, "
        f"with cycle: dtw and frames: {arguments.frames}."
    )
