"""`cardiodit sample`: volumes from a pipeline folder."""

import argparse
import warnings
from pathlib import Path
from typing import Any

from cardiodit.commands.adding import add_command
from cardiodit.errors import CardioDiTError
from cardiodit.schedulers import SOLVERS, change_solver

DTYPES = ("float32", "bfloat16", "float16")


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
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
