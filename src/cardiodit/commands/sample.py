"""`cardiodit sample`: volumes from a pipeline folder."""

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any

from cardiodit._util.memory import TILING
from cardiodit.commands.processes import join_processes
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.volume import AXES
from cardiodit.schedulers import SOLVERS, change_solver
from cardiodit.schedulers.prdit_scheduler import NOISE_AND_IMAGE_SOLVERS

DTYPES = ("float32", "bfloat16", "float16")
TILING_HELP = (
    "code volumes in overlapping pieces, in much less memory; auto: where one would need more than 4 GiB (%(default)s)"
)


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "sample",
        "Generate volumes with a pipeline folder or a model on the Hub, as NIfTI, GIF and samples.jsonl.",
        "cardiodit sample my-model --output_dir samples --num_samples 16 --batch_size 4 --seed 0\n"
        "  cardiodit sample runs/tgca/pipeline --masks masks.csv --output_dir steered",
    )
    parser.add_argument("model", help="pipeline folder, or org/name on the Hub")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the samples; those that it holds already, made in the same way, are not made again",
    )
    parser.add_argument("--num_samples", type=int, help="volumes to generate (1; with --masks, its rows)")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="volumes at once; the result is the same (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed is always the same (%(default)s)")
    parser.add_argument(
        "--first_sample", type=int, default=0, help="number of the first sample of the seed (%(default)s)"
    )
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps (25; of PRDiT 100)")
    parser.add_argument(
        "--solver",
        choices=(*SOLVERS, *NOISE_AND_IMAGE_SOLVERS),
        help="default: the one saved with the model; hot and euler are PRDiT's",
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="classifier-free guidance; 1 is none (%(default)s)"
    )
    parser.add_argument(
        "--class_label",
        nargs="+",
        metavar="LABEL",
        help="names or numbers of labels; with several, the samples get them in turn",
    )
    for axis, unit in [("depth", "slices"), ("height", "voxels"), ("width", "voxels"), ("frames", "frames")]:
        parser.add_argument(f"--{axis}", type=int, help=f"{unit}; default: as trained")
    steering = parser.add_argument_group("steering", "of models with an adapter")
    steering.add_argument(
        "--masks",
        type=Path,
        metavar="CSV",
        help="a row for each volume, a column for each mask that the adapter takes, with paths of NIfTI label maps; "
        "`image` may name a reference whose geometry is taken, and ed_frame, slices, mask_order and frame_time are "
        "understood as in manifests. All are checked before anything is generated. Masks are turned, cropped and "
        "resampled as the training volumes were; a volume lies in space where its mask does, on the model's own grid",
    )
    steering.add_argument(
        "--conditioning_scale", type=float, default=1.0, help="how much of the adapter; 0 is none (%(default)s)"
    )
    steering.add_argument(
        "--condition_guidance_scale",
        type=float,
        default=1.0,
        help="classifier-free guidance towards the masks; 1 is none (%(default)s)",
    )
    steering.add_argument(
        "--control_guidance",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("START", "END"),
        help="shares of the steps between which the masks steer (0 1)",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's share of fresh noise (%(default)s)")
    parser.add_argument("--decode_batch_size", type=int, default=1, help="slices decoded at once (%(default)s)")
    parser.add_argument("--tiling", choices=TILING, default="auto", help=TILING_HELP)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of the model (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.add_argument(
        "--checkpoints",
        type=int,
        nargs=3,
        metavar=("FIRST", "LAST", "STEP"),
        help="MODEL is a training run: sample each of these checkpoints into a folder of its own, with a sheet and "
        "a GIF across them",
    )
    parser.add_argument(
        "--vae", metavar="MODEL", help="VQ model of the checkpoints, while their run has no pipeline yet"
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="pipeline that an adapter's checkpoints steer, while their run has no pipeline yet",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only tell what memory and time it will need on this machine"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise CardioDiTError(f"--{name} {getattr(arguments, name)}: must be at least 1.")
    state = join_processes(arguments.device)
    if arguments.checkpoints:
        _sample_checkpoints(arguments, state)
        return
    pipe = _open(arguments, state.device)
    if arguments.estimate:
        _print_estimate(pipe, arguments)
        return
    made = _sample(pipe, arguments.output_dir, arguments, state)
    if not made and state.num_processes == 1:
        print(f"All samples that were asked for are in {arguments.output_dir} already.")


def _sample(pipe: Any, folder: Path, arguments: argparse.Namespace, state: Any) -> int:
    """Makes what is missing; the number of volumes that were."""
    from cardiodit.pipelines.sampling_job import SamplingJob, sample_many

    _check_steering(pipe, arguments)
    names = ("num_inference_steps", "guidance_scale", *AXES, "eta", "decode_batch_size")
    labels = [int(label) if label.isdecimal() else label for label in arguments.class_label or ()]
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.num_inference_steps is None:
        settings["num_inference_steps"] = pipe.default_steps  # on record, so that a later call knows
    masks, count = _read_masks(pipe, arguments), arguments.num_samples or 1
    if masks is not None:
        count = _rows_asked(arguments, len(masks))
        settings |= {name: getattr(arguments, name) for name in ("conditioning_scale", "condition_guidance_scale")}
        settings["control_guidance_start"], settings["control_guidance_end"] = arguments.control_guidance
    _set_tiling(pipe, arguments, masks)
    job = SamplingJob(arguments.seed, arguments.first_sample, count, labels, settings, masks)
    pipe.set_progress_bar_config(disable=not state.is_main_process)
    share = (state.process_index, state.num_processes)
    made = 0
    for path in sample_many(pipe, folder, job, arguments.batch_size, *share):
        print(path, flush=True)
        made += 1
    return made


def _check_steering(pipe: Any, arguments: argparse.Namespace) -> None:
    """Masks and an adapter come together."""
    has_adapter = getattr(pipe, "adapter", None) is not None
    if has_adapter and not arguments.masks:
        raise CardioDiTError(
            f"{arguments.model} is steered by masks ({', '.join(pipe.adapter.conditions.keys)}): name a table of them "
            "with --masks."
        )
    if arguments.masks and not has_adapter:
        raise CardioDiTError(f"--masks: {arguments.model} is a {type(pipe).__name__}, which has no adapter.")
    if arguments.masks and (asked := [f"--{name}" for name in AXES if getattr(arguments, name) is not None]):
        raise CardioDiTError(f"{', '.join(asked)}: volumes have the size of their masks. Leave it out.")


def _read_masks(pipe: Any, arguments: argparse.Namespace) -> Any:
    """The table, all of it checked; None without one."""
    if not arguments.masks:
        return None
    from cardiodit.pipelines.mask_rows import MaskRows

    return MaskRows(arguments.masks, pipe)


def _largest_size(pipe: Any, arguments: argparse.Namespace, masks: Any) -> dict[str, int]:
    """In voxels, by the names of the axes: of the largest masks, else as asked and as trained."""
    if masks is not None:
        return dict(zip(AXES, max(masks.shapes, key=math.prod), strict=False))
    size = pipe.latent_size(**{name: getattr(arguments, name) for name in AXES})
    voxels = [n * factor for n, factor in zip(size, pipe.voxels_per_latent, strict=True)]
    return dict(zip(pipe.transformer.axis_names, voxels, strict=True))


def _set_tiling(pipe: Any, arguments: argparse.Namespace, masks: Any) -> None:
    from cardiodit._util.memory import set_tiling

    if getattr(pipe, "vae", None) is None:
        if arguments.tiling == "on":
            raise CardioDiTError(f"--tiling on: a {type(pipe).__name__} has no VQ model that could code by tiles.")
        return
    size = _largest_size(pipe, arguments, masks)
    shape = [size[name] for name in AXES if name in size]
    set_tiling(pipe.vae, shape, arguments.tiling, arguments.decode_batch_size)


def _rows_asked(arguments: argparse.Namespace, rows: int) -> int:
    """Sample i is of row i."""
    left = rows - arguments.first_sample
    count = left if arguments.num_samples is None else arguments.num_samples
    if count < 1 or count > left:
        raise CardioDiTError(
            f"{arguments.masks} has {rows} rows, too few for {max(count, 1)} samples from number "
            f"{arguments.first_sample}."
        )
    return count


def _sample_checkpoints(arguments: argparse.Namespace, state: Any) -> None:
    """Each checkpoint into a folder of its own, and the first sample of all of them in one picture."""
    from cardiodit.imaging.intensity import to_model
    from cardiodit.imaging.nifti import read_nifti
    from cardiodit.pipelines.checkpoint_gallery import checkpoints_of, open_checkpoint, write_gallery
    from cardiodit.pipelines.output import sample_path

    run, course, geometry = Path(arguments.model), [], None
    for number, checkpoint in checkpoints_of(run, *arguments.checkpoints):
        if checkpoint is None:
            print(f"checkpoint-{number} is not there; it is left out.", file=sys.stderr)
            continue
        pipe = open_checkpoint(run, checkpoint, arguments.vae, arguments.base).to(arguments.device or state.device)
        if arguments.solver:
            pipe.scheduler = change_solver(pipe.scheduler, arguments.solver)
        folder = arguments.output_dir / checkpoint.name
        _sample(pipe, folder, arguments, state)
        state.wait_for_everyone()
        volume = read_nifti(sample_path(folder, arguments.seed, arguments.first_sample))
        course.append((number, to_model(volume.voxels, pipe.units or (-1.0, 1.0))))
        geometry = pipe.geometry
    if state.is_main_process and geometry is not None:
        for path in write_gallery(arguments.output_dir, course, geometry):
            print(path)


def _open(arguments: argparse.Namespace, device: Any) -> Any:
    """The pipeline on its device, with the solver that was asked for."""
    import torch

    from cardiodit.pipelines.load import open_pipeline

    precision = {} if arguments.dtype == "float32" else {"torch_dtype": getattr(torch, arguments.dtype)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # `dtype` is not known to diffusers 0.37
        pipe = open_pipeline(arguments.model, **precision)
    pipe.to(arguments.device or device)
    if arguments.solver:
        pipe.scheduler = change_solver(pipe.scheduler, arguments.solver)
    return pipe


def _print_estimate(pipe: Any, arguments: argparse.Namespace) -> None:
    from cardiodit.pipelines.estimate import estimate_sampling

    masks = None
    if arguments.masks:
        _check_steering(pipe, arguments)
        masks = _read_masks(pipe, arguments)
    is_steered = getattr(pipe, "adapter", None) is not None
    names = ("batch_size", "num_inference_steps", "guidance_scale", "decode_batch_size", "condition_guidance_scale")
    asked = {name: getattr(arguments, name) for name in names}
    asked["num_samples"] = (arguments.num_samples or 1) if masks is None else _rows_asked(arguments, len(masks))
    if is_steered:
        asked["batch_size"] = 1  # each has a mask of its own
    _set_tiling(pipe, arguments, masks)
    estimate = estimate_sampling(pipe, **asked, **_largest_size(pipe, arguments, masks))
    print(f"{asked['num_samples']} samples on {pipe._execution_device}: {estimate}. Nothing was sampled.")
