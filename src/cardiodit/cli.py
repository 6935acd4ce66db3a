"""The `cardiodit` command. Each subcommand is a thin layer over a function that Python users can call too."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cardiodit import __version__
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts import LAYOUTS, Preparation, prepare_cohort
from cardiodit.imaging.nifti import TIME_UNITS
from cardiodit.imaging.phantom import GROUPS, write_chests, write_cohort
from cardiodit.schedulers import SOLVERS, change_solver

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when it worked, 1 with one sentence on stderr when it did not."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (CardioDiTError, OSError) as error:
        print(f"cardiodit: error: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cardiodit",
        description="Generate 4D cardiac cine MRI: prepare data, convert the authors' models, sample.",
        epilog="`cardiodit COMMAND --help` shows an example of each command.",
    )
    parser.add_argument("--version", action="version", version=f"cardiodit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_phantom(commands)
    _add_prepare(commands)
    _add_sample(commands)
    _add_convert(commands)
    _add_export(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction, name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "demo",
        "Run the whole chain once with a small model: make, save, load, sample, write.",
        "cardiodit demo --output_dir demo-output",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="new or empty folder (%(default)s)"
    )
    parser.add_argument("--num_samples", type=int, default=2, help="hearts to generate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (%(default)s)")
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> None:
    from cardiodit.demo import run_demo

    run_demo(arguments.output_dir, arguments.num_samples, arguments.seed)


def _add_phantom(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
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
    parser.add_argument("--groups", nargs="+", metavar="GROUP", help=f"of hearts; default: {' '.join(GROUPS)}")
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same (%(default)s)")
    parser.set_defaults(run=_run_phantom)


def _run_phantom(arguments: argparse.Namespace) -> None:
    settings = {name: getattr(arguments, name) for name in ("num", "seed", "workers")}
    for name in ("size", "spacing", "groups"):
        if getattr(arguments, name) is not None:
            settings[name] = tuple(getattr(arguments, name))
    if arguments.kind == "chest" and arguments.groups:
        raise CardioDiTError("--groups are of hearts; chests have none.")
    manifest = (write_cohort if arguments.kind == "heart" else write_chests)(arguments.output_dir, **settings)
    print(f"Wrote {arguments.num} {arguments.kind}s. The manifest is {manifest}.")


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "prepare",
        "Find the cine files of a cohort, check every one, split by patient, and write manifests for training.",
        "cardiodit prepare acdc /data/ACDC --output_dir acdc --seed 0",
    )
    parser.add_argument(
        "layout",
        choices=LAYOUTS,
        help="how the files lie: acdc, mnms, mnms2, ukbb as published; folder: any NIfTI files, one folder or one "
        "name for each subject; dicom: one folder of DICOM files for each subject",
    )
    parser.add_argument("source", type=Path, help="the cohort's folder; it is only read")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.add_argument(
        "--table",
        type=Path,
        help="CSV of the cohort; for ukbb, folder and dicom: a column subject, and what you know of label, vendor, "
        "centre, ed_frame, es_frame (counted from 0)",
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
    parser.add_argument("--workers", type=int, default=1, help="processes; the result is the same (%(default)s)")
    parser.set_defaults(run=_run_prepare)


def _run_prepare(arguments: argparse.Namespace) -> None:
    how = Preparation(
        fractions=arguments.fractions,
        seed=arguments.seed,
        own_split=arguments.own_split,
        exclude=arguments.exclude_problems,
        time_unit=arguments.time_unit,
        frame_time=arguments.frame_time,
        workers=arguments.workers,
    )
    manifest = prepare_cohort(arguments.layout, arguments.source, arguments.output_dir, arguments.table, how)
    folder = manifest.parent
    print(
        f"Wrote {manifest} and one manifest for each split. Read {folder / 'report.md'}, look at {folder / 'pictures'}."
    )


def _add_sample(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "sample",
        "Generate volumes with a pipeline folder or a model on the Hub, as NIfTI, GIF and samples.jsonl.",
        "cardiodit sample my-model --output_dir samples --num_samples 16 --batch_size 4 --seed 0",
    )
    parser.add_argument("model", help="pipeline folder, or org/name on the Hub")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the samples; may hold samples already"
    )
    parser.add_argument("--num_samples", type=int, default=1, help="volumes to generate (%(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="volumes at once; the result is the same (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed is always the same (%(default)s)")
    parser.add_argument(
        "--first_sample", type=int, default=0, help="number of the first sample of the seed (%(default)s)"
    )
    parser.add_argument("--num_inference_steps", type=int, default=25, help="denoising steps (%(default)s)")
    parser.add_argument("--solver", choices=SOLVERS, help="default: the one saved with the model")
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1 is none (%(default)s)"
    )
    parser.add_argument("--class_label", help="name or number of a label, for all samples")
    for axis, unit in [("depth", "slices"), ("height", "voxels"), ("width", "voxels"), ("frames", "frames")]:
        parser.add_argument(f"--{axis}", type=int, help=f"{unit}; default: as trained")
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's share of fresh noise (%(default)s)")
    parser.add_argument("--decode_batch_size", type=int, default=1, help="slices decoded at once (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.add_argument(
        "--estimate", action="store_true", help="only tell what memory and time it will need on this machine"
    )
    parser.set_defaults(run=_run_sample)


def _run_sample(arguments: argparse.Namespace) -> None:
    import torch

    from cardiodit.pipelines import CardioDiTPipeline
    from cardiodit.pipelines.output import check_folder, sample_path

    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise CardioDiTError(f"--{name} {getattr(arguments, name)}: must be at least 1.")
    end = arguments.first_sample + arguments.num_samples
    paths = [sample_path(arguments.output_dir, arguments.seed, i) for i in range(arguments.first_sample, end)]
    check_folder(arguments.output_dir, paths)
    precision = {} if arguments.dtype == "float32" else {"torch_dtype": getattr(torch, arguments.dtype)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # `dtype` is not known to diffusers 0.37
        pipe = CardioDiTPipeline.from_pretrained(arguments.model, **precision)
    pipe.to(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.solver:
        pipe.scheduler = change_solver(pipe.scheduler, arguments.solver)
    if arguments.estimate:
        _print_estimate(pipe, arguments)
        return
    label = arguments.class_label
    for first in range(arguments.first_sample, end, arguments.batch_size):
        output = pipe(
            num_samples=min(arguments.batch_size, end - first),
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            class_labels=int(label) if label is not None and label.isdecimal() else label,
            depth=arguments.depth,
            height=arguments.height,
            width=arguments.width,
            frames=arguments.frames,
            seed=arguments.seed,
            first_sample=first,
            eta=arguments.eta,
            decode_batch_size=arguments.decode_batch_size,
        )
        for path in output.save(arguments.output_dir):
            print(path)


def _print_estimate(pipe: Any, arguments: argparse.Namespace) -> None:
    from cardiodit.pipelines.estimate import estimate_sampling

    names = ("num_samples", "batch_size", "num_inference_steps", "guidance_scale", "decode_batch_size")
    sizes = ("depth", "height", "width", "frames")
    estimate = estimate_sampling(pipe, **{name: getattr(arguments, name) for name in (*names, *sizes)})
    print(f"{arguments.num_samples} samples on {pipe._execution_device}: {estimate}. Nothing was sampled.")


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "convert",
        "Make a pipeline folder of the checkpoints that the authors of a published system released or trained.",
        "cardiodit convert cardiodit --help",
    )
    systems = parser.add_subparsers(title="systems", metavar="SYSTEM", required=True)
    cardiodit = _add_command(
        systems,
        "cardiodit",
        "Convert a CardioDiT VQ-GAN and transformer.",
        "cardiodit convert cardiodit --stage1_ckpt vqgan/best_model.pth --stage1_cfg vqgan.yaml \\\n"
        "    --diff_ckpt dit/best_model.pth --diff_cfg dit_ds8_b4.yaml --scale_factor 1.3 \\\n"
        "    --spacing 1 1 10 --frame_time 0.03 --output_dir my-model",
    )
    for name, what in [
        ("stage1_ckpt", "checkpoint of the VQ-GAN (.pth)"),
        ("stage1_cfg", "its YAML, compact or expanded"),
        ("diff_ckpt", "checkpoint of the transformer (.pth)"),
        ("diff_cfg", "its YAML, compact or expanded"),
        ("output_dir", "new or empty folder for the pipeline"),
    ]:
        cardiodit.add_argument(f"--{name}", type=Path, required=True, help=what)
    cardiodit.add_argument(
        "--scale_factor", type=float, help="1 / standard deviation of the latents; default: the one in diff_cfg"
    )
    cardiodit.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size in mm; without it samples carry no space",
    )
    cardiodit.add_argument("--frame_time", type=float, metavar="S", help="seconds between frames")
    cardiodit.add_argument("--raw_weights", action="store_true", help="take the raw weights instead of the EMA")
    cardiodit.set_defaults(run=_run_convert_cardiodit)


def _run_convert_cardiodit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.cardiodit import convert_cardiodit

    folder = convert_cardiodit(
        arguments.stage1_ckpt,
        arguments.stage1_cfg,
        arguments.diff_ckpt,
        arguments.diff_cfg,
        arguments.output_dir,
        scale_factor=arguments.scale_factor,
        spacing=None if arguments.spacing is None else tuple(arguments.spacing),
        frame_time=arguments.frame_time,
        ema=not arguments.raw_weights,
    )
    print(f"Wrote {folder}. Try it: cardiodit sample {folder} --output_dir samples")


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "export",
        "Copy a pipeline folder and put its code beside its weights, for people with diffusers and without this "
        "package: they open it with trust_remote_code=True.",
        "cardiodit export my-model --output_dir my-model-with-code",
    )
    parser.add_argument("model", type=Path, help="pipeline folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.set_defaults(run=_run_export)


def _run_export(arguments: argparse.Namespace) -> None:
    from cardiodit.hub.export import export_with_code

    folder = export_with_code(arguments.model, arguments.output_dir)
    print(f'Wrote {folder}. It opens with DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True).')


if __name__ == "__main__":
    sys.exit(main())
