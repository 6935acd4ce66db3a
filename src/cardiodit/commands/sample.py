"""`cardiodit sample`: generate volumes with a trained pipeline."""

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import (
    AXES,
    DEVICE_HELP,
    DTYPES,
    TILING,
    TILING_HELP,
    add_command,
    add_electricity,
    join_processes,
)
from cardiodit.errors import CardioDiTError, reason_of

SOLVERS = ("ddpm", "ddim", "dpm++", "unipc")  # of `cardiodit.schedulers`, which would import torch for `--help`
PRDIT_SOLVERS = ("hot", "euler")
FLOW_SOLVERS = ("heun", "rk4", "pc", "pc_heun")
PASSES = ("num_inference_steps", "guidance_scale", "condition_guidance_scale")  # decide how often the denoiser runs


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "sample",
        "Generate volumes with a trained pipeline, as NIfTI files with GIF previews and a record of each sample "
        "(samples.jsonl).",
        "cardiodit sample my-model --output_dir samples --num_samples 16 --batch_size 4 --seed 0\n"
        "  cardiodit sample runs/tgca/pipeline --masks masks.csv --output_dir steered\n"
        "  cardiodit sample runs/dit/pipeline --condition ef=35 edv=220 --guidance_scale 2 --output_dir dilated",
    )
    parser.add_argument("model", help="pipeline folder, or org/name on the Hub")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the samples; those already there are kept if they were made with the same settings, and only "
        "missing ones are generated",
    )
    parser.add_argument(
        "--num_samples", type=int, help="number of volumes (1; with --masks or --conditions, the number of rows)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=1, help="volumes per batch; does not change the result (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; sample i of a seed is always the same (%(default)s)"
    )
    parser.add_argument(
        "--first_sample", type=int, default=0, help="number i of the first sample, to continue a set (%(default)s)"
    )
    parser.add_argument("--num_inference_steps", type=int, help="number of denoising steps (25; PRDiT: 100)")
    parser.add_argument(
        "--solver",
        choices=(*SOLVERS, *PRDIT_SOLVERS, *FLOW_SOLVERS),
        help="sampling method; hot and euler are for PRDiT; euler, heun, rk4, pc and pc_heun for models trained by "
        "flow matching; the others for other latent models. Default: the one saved with the model",
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="classifier-free guidance scale; 1 disables it (%(default)s)"
    )
    parser.add_argument(
        "--class_label",
        nargs="+",
        metavar="LABEL",
        help="name or number of the class label; several are used in turn",
    )
    clinical = parser.add_argument_group(
        "clinical conditions", "for models trained with condition_columns, such as EF, EDV, sex and diagnosis"
    )
    clinical.add_argument(
        "--condition",
        nargs="+",
        metavar="NAME=VALUE",
        help="conditions of all samples, such as ef=35 diagnosis=dilated; what is left out is not given",
    )
    clinical.add_argument(
        "--conditions",
        type=Path,
        metavar="CSV",
        help="table with one row per sample and one column per condition; blank cells are not given. Columns named "
        "subject or image may name the rows. All rows are checked before sampling starts",
    )
    clinical.add_argument(
        "--conditions_like",
        type=Path,
        metavar="CSV",
        help="manifest of a cohort: each sample is given the conditions of a row drawn by the seed, so that they occur "
        "together as in the cohort",
    )
    clinical.add_argument(
        "--guidance_over",
        nargs="+",
        metavar="NAME",
        help="conditions that --guidance_scale strengthens, and class_label; default: all that are given",
    )
    clinical.add_argument(
        "--extrapolate", action="store_true", help="allow numbers outside the range of the training cohort"
    )
    for axis, size in [
        ("depth", "number of slices"),
        ("height", "height in voxels"),
        ("width", "width in voxels"),
        ("frames", "number of frames"),
    ]:
        parser.add_argument(f"--{axis}", type=int, help=f"{size}; default: as in training")
    steering = parser.add_argument_group("control by masks", "for pipelines with an adapter")
    steering.add_argument(
        "--masks",
        type=Path,
        metavar="CSV",
        help="table with one row per volume and one column per mask that the adapter expects, holding paths of NIfTI "
        "label maps. Optional columns: `image`, an image on the same voxel grid, whose geometry is used if the headers "
        "of the masks lack it; ed_frame, slices, mask_order and frame_time, as in manifests. All rows are checked "
        "before sampling starts. Masks are oriented, cropped and resampled like the training volumes; each generated "
        "volume covers the region of its mask at the model's spacing",
    )
    steering.add_argument(
        "--conditioning_scale",
        type=float,
        default=1.0,
        help="strength of the masks' influence; 0 ignores them (%(default)s)",
    )
    steering.add_argument(
        "--condition_guidance_scale",
        type=float,
        default=1.0,
        help="classifier-free guidance scale towards the masks; 1 disables it (%(default)s)",
    )
    steering.add_argument(
        "--control_guidance",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("START", "END"),
        help="use the masks only in this part of the denoising steps; 0 is the start, 1 the end (0 1)",
    )
    copies = parser.add_argument_group("filter of copies")
    copies.add_argument(
        "--filter",
        type=Path,
        metavar="AUDIT",
        help="folder of a `cardiodit audit` of this model, or its audit.json: do not write samples that are nearer to "
        "a training volume than 95%% of held-out patients are. samples.jsonl says which were dropped, and why. Of the "
        "samples that copy nobody, about 5%% are dropped, too. A filter does not make the weights private",
    )
    copies.add_argument(
        "--training",
        type=Path,
        metavar="MANIFEST",
        help="with --filter: the manifest of training images that was audited; audit.json holds no images",
    )
    copies.add_argument(
        "--filter_detector",
        nargs="+",
        default=[],
        metavar="RUN",
        help="with --filter: run folders of train_copy_detector, if the audit used them, in its order",
    )
    copies.add_argument("--weights", help="with --filter: weights of the audit's feature network, if it needs any")
    parser.add_argument(
        "--eta",
        type=float,
        default=0.0,
        help="noise that the solver ddim adds in each step, 0 for none, 1 for as much as DDPM; or the share of the "
        "noise that pc and pc_heun renew (%(default)s)",
    )
    parser.add_argument(
        "--decode_batch_size", type=int, default=1, help="number of slices to decode at once (%(default)s)"
    )
    parser.add_argument("--tiling", choices=TILING, default="auto", help=TILING_HELP)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision in which the model runs; default: bfloat16 on a GPU if the model was trained so, else float32",
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument(
        "--checkpoints",
        type=int,
        nargs=3,
        metavar=("FIRST", "LAST", "STEP"),
        help="compare checkpoints of a training run, whose folder is given as `model`: sample from checkpoint FIRST, "
        "FIRST + STEP and so on up to LAST, each into a folder of its own, and write a contact sheet and a GIF",
    )
    parser.add_argument(
        "--vae", metavar="MODEL", help="with --checkpoints: the VQ model, if the run has no pipeline yet"
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="with --checkpoints of an adapter: the pipeline that it steers, if the run has no pipeline yet",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="only estimate the memory, time and energy that sampling would take on this machine",
    )
    parser.add_argument(
        "--estimate_device",
        metavar="NAME",
        help="with --estimate: also forecast time and energy on a device of the table of `cardiodit energy forecast`, "
        "such as a100-80, h100, t4 or cpu",
    )
    add_electricity(parser)
    parser.set_defaults(run=run, resumes=True)


def run(arguments: argparse.Namespace) -> None:
    for name in ("num_samples", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise CardioDiTError(f"--{name} {getattr(arguments, name)}: must be at least 1.")
    if (arguments.filter is None) != (arguments.training is None):
        raise CardioDiTError(
            "--filter needs the audit's training volumes, and they need a filter: give --filter and --training."
        )
    if arguments.filter and arguments.checkpoints:
        raise CardioDiTError("--filter belongs to one model; leave it out to compare --checkpoints.")
    state = join_processes(arguments.device)
    if arguments.checkpoints:
        _sample_checkpoints(arguments, state)
        return
    pipe = _open(arguments, state.device)
    if arguments.estimate:
        _print_estimate(pipe, arguments)
        return
    count = _sample(pipe, arguments.output_dir, arguments, state)
    if count == 0 and state.num_processes == 1 and not arguments.filter:
        say(f"All requested samples are already in {arguments.output_dir}.")


def _sample(pipe: Any, folder: Path, arguments: argparse.Namespace, state: Any) -> int:
    """Generate the missing samples and return how many were generated."""
    from cardiodit._util.sample_records import merge_sample_lists, read_sample_list
    from cardiodit.energy.records import Comparison
    from cardiodit.pipelines.sampling_job import SamplingJob, sample_many

    _check_mask_control(pipe, arguments)
    names = ("num_inference_steps", "guidance_scale", *AXES, "eta", "decode_batch_size")
    labels = [int(label) if label.isdecimal() else label for label in arguments.class_label or ()]
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.num_inference_steps is None:
        settings["num_inference_steps"] = pipe.default_steps  # recorded, so that a later call can compare
    masks, count = _read_masks(pipe, arguments), arguments.num_samples or 1
    conditions = _read_conditions(pipe, arguments)
    if arguments.conditions:
        count = _row_count(arguments, len(conditions), arguments.conditions)
    if conditions is not None or arguments.guidance_over:
        settings |= {"guidance_over": arguments.guidance_over, "extrapolate": arguments.extrapolate}
    if masks is not None:
        count = _row_count(arguments, len(masks), arguments.masks)
        settings |= {name: getattr(arguments, name) for name in ("conditioning_scale", "condition_guidance_scale")}
        settings["control_guidance_start"], settings["control_guidance_end"] = arguments.control_guidance
    _set_tiling(pipe, arguments, masks)
    forecast = _forecast(pipe, arguments, masks)
    job = SamplingJob(
        arguments.seed,
        arguments.first_sample,
        count,
        labels,
        settings,
        masks,
        _open_filter(pipe, arguments),
        conditions,
    )
    pipe.set_progress_bar_config(disable=True)  # `sample_many` shows one bar for all batches
    share = (state.process_index, state.num_processes)
    generated = []
    for path in sample_many(pipe, folder, job, arguments.batch_size, *share):
        say(path)
        generated.append(path.name)
    if forecast is not None and generated:
        records = read_sample_list(folder)
        measured = sum(records[name]["energy_kwh"] for name in generated)
        arguments.comparison = Comparison(len(generated) * forecast.energy.kwh, measured, forecast.energy.method)
    state.wait_for_everyone()
    if state.is_main_process and folder.is_dir():
        merge_sample_lists(folder)
        if job.filter is not None:
            _print_dropped(folder, job)
    return len(generated)


def _forecast(pipe: Any, arguments: argparse.Namespace, masks: Any) -> Any:
    """Forecast one volume on this device, to be compared with what is measured; None if the table lacks the device."""
    import torch

    from cardiodit.energy.forecast import DEVICES, forecast_work, known_gpu
    from cardiodit.pipelines.estimate import sampling_work

    where = pipe._execution_device
    device = known_gpu(torch.cuda.get_device_name(where)) if where.type == "cuda" else DEVICES.get(where.type)
    if device is None:
        return None
    passes = {name: getattr(arguments, name) for name in PASSES}
    try:
        return forecast_work(sampling_work(pipe, **passes, **_largest_size(pipe, arguments, masks)), device)
    except Exception as error:  # a model whose operations cannot be counted without values can still sample
        print(f"The energy is not forecast: {reason_of(error)}.", file=sys.stderr)
        return None


def _open_filter(pipe: Any, arguments: argparse.Namespace) -> Any:
    if arguments.filter is None:
        return None
    from cardiodit.privacy.sample_filter import open_filter

    given = (arguments.filter_detector, arguments.weights, str(pipe._execution_device))
    return open_filter(arguments.filter, arguments.training, pipe, arguments.model, *given)


def _print_dropped(folder: Path, job: Any) -> None:
    from cardiodit._util.sample_records import DROPPED, SAMPLE_LIST, read_sample_list
    from cardiodit.pipelines.output import sample_path
    from cardiodit.privacy.sample_filter import NOTE

    names = {sample_path(folder, job.seed, index).name for index in range(job.first, job.first + job.count)}
    records = {n: r for n, r in read_sample_list(folder, with_dropped=True).items() if n in names}
    dropped = [name.partition(".")[0] for name, record in records.items() if DROPPED in record]
    listed = f": {', '.join(dropped)}. {SAMPLE_LIST} says why" if dropped else ""
    print(
        f"The filter kept {len(records) - len(dropped)} of {len(records)} samples and dropped {len(dropped)}{listed}."
    )
    print(NOTE)


def _check_mask_control(pipe: Any, arguments: argparse.Namespace) -> None:
    """Raise an error unless masks and an adapter are used together."""
    has_adapter = pipe.mask_adapter is not None
    if has_adapter and not arguments.masks:
        raise CardioDiTError(
            f"{arguments.model} is controlled by masks ({', '.join(pipe.mask_adapter.conditions.keys)}): give a table "
            "of masks with --masks."
        )
    if arguments.masks and not has_adapter:
        raise CardioDiTError(f"--masks: {arguments.model} is a {type(pipe).__name__}, which has no adapter.")
    sizes = [f"--{name}" for name in AXES if getattr(arguments, name) is not None]
    if arguments.masks and sizes:
        raise CardioDiTError(f"{', '.join(sizes)}: volumes have the size of their masks. Leave it out.")


def _read_masks(pipe: Any, arguments: argparse.Namespace) -> Any:
    """Read and check the table of masks, if any."""
    if not arguments.masks:
        return None
    from cardiodit.pipelines.mask_rows import MaskRows

    return MaskRows(arguments.masks, pipe)


def _read_conditions(pipe: Any, arguments: argparse.Namespace) -> Any:
    """Read and check the clinical conditions of all samples, if any."""
    ways = [name for name in ("condition", "conditions", "conditions_like") if getattr(arguments, name)]
    if len(ways) > 1:
        raise CardioDiTError(f"{' and '.join(f'--{name}' for name in ways)} exclude each other. Choose one of them.")
    if arguments.extrapolate and not ways:
        raise CardioDiTError("--extrapolate is for conditions outside the training cohort's range, and none are given.")
    if not ways:
        return None
    if pipe.conditions is None:
        raise CardioDiTError(f"--{ways[0]}: {arguments.model} was trained without clinical conditions.")
    from cardiodit.pipelines.condition_rows import ConditionsLike, ConditionTable, parse_conditions

    if arguments.conditions:
        return ConditionTable.read(arguments.conditions, pipe.conditions, arguments.extrapolate)
    if arguments.condition:
        stated = parse_conditions(arguments.condition)
        pipe.conditions.check_names(stated)
        return ConditionTable([stated], pipe.conditions, ["--condition"], arguments.extrapolate)
    drawn = ConditionsLike(arguments.conditions_like, pipe.conditions, arguments.seed, arguments.extrapolate)
    if drawn.missing:
        print(f"{arguments.conditions_like} has no column {', '.join(drawn.missing)}: not given.", file=sys.stderr)
    return drawn


def _largest_size(pipe: Any, arguments: argparse.Namespace, masks: Any) -> dict[str, int]:
    """Return the size of the largest volume in voxels by axis: of the masks, or as given or trained."""
    if masks is not None:
        return dict(zip(AXES, max(masks.shapes, key=math.prod), strict=False))
    size = pipe.latent_size(**{name: getattr(arguments, name) for name in AXES})
    voxels = [n * factor for n, factor in zip(size, pipe.voxels_per_latent, strict=True)]
    return dict(zip(pipe.denoiser.axis_names, voxels, strict=True))


def _set_tiling(pipe: Any, arguments: argparse.Namespace, masks: Any) -> None:
    from cardiodit._util.gpu import free_memory
    from cardiodit._util.memory import set_tiling

    if getattr(pipe, "vae", None) is None:
        if arguments.tiling == "on":
            raise CardioDiTError(f"--tiling on: a {type(pipe).__name__} has no VQ model, so there is nothing to tile.")
        return
    size = _largest_size(pipe, arguments, masks)
    shape = [size[name] for name in AXES if name in size]
    device = pipe._execution_device
    free = free_memory(device) if device.type == "cuda" else None
    set_tiling(pipe.vae, shape, arguments.tiling, arguments.decode_batch_size, free)


def _row_count(arguments: argparse.Namespace, rows: int, table: Path) -> int:
    """Return how many rows to sample from `first_sample` on; sample i uses row i."""
    available = rows - arguments.first_sample
    count = available if arguments.num_samples is None else arguments.num_samples
    if count < 1 or count > available:
        raise CardioDiTError(
            f"{table} has {rows} rows, too few for {max(count, 1)} samples from number {arguments.first_sample}."
        )
    return count


def _sample_checkpoints(arguments: argparse.Namespace, state: Any) -> None:
    """Sample from each checkpoint into its own folder, and compare the first samples in one picture."""
    from cardiodit.imaging.intensity import to_model
    from cardiodit.imaging.nifti import read_nifti
    from cardiodit.pipelines.output import sample_path
    from cardiodit.schedulers import change_solver
    from cardiodit.training.checkpoint_gallery import checkpoints_of, open_checkpoint, write_gallery

    if arguments.dtype not in (None, "float32"):
        raise CardioDiTError(f"--dtype {arguments.dtype}: checkpoints are sampled in float32. Leave it out.")
    run, course, geometry = Path(arguments.model), [], None
    for number, checkpoint in checkpoints_of(run, *arguments.checkpoints):
        if checkpoint is None:
            print(f"checkpoint-{number} does not exist and is skipped.", file=sys.stderr)
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
            say(path)


def _open(arguments: argparse.Namespace, device: Any) -> Any:
    """Open the pipeline on its device with the requested solver, in the requested precision or that of its training."""
    import torch

    from cardiodit._util.gpu import channels_last, default_dtype, set_kernels
    from cardiodit.pipelines.load import open_pipeline
    from cardiodit.schedulers import change_solver

    device = torch.device(arguments.device or device)

    def opened(dtype: str) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)  # diffusers 0.37 has no `dtype`
            precision = {} if dtype == "float32" else {"torch_dtype": getattr(torch, dtype)}
            return open_pipeline(arguments.model, **precision)

    pipe = opened(arguments.dtype or "float32")
    if arguments.dtype is None:
        dtype = default_dtype(pipe.denoiser.config.get("training_precision"), device)
        pipe = pipe if dtype == "float32" else opened(dtype)  # again, so that what must stay in float32 does
    set_kernels()
    channels_last(*(part for part in pipe.components.values() if isinstance(part, torch.nn.Module)), device=device)
    pipe.to(device)
    if arguments.solver:
        pipe.scheduler = change_solver(pipe.scheduler, arguments.solver)
    return pipe


def _print_estimate(pipe: Any, arguments: argparse.Namespace) -> None:
    from cardiodit.energy.electricity import choose_electricity, footprint_of, format_duration
    from cardiodit.energy.forecast import find_device, forecast_work
    from cardiodit.pipelines.estimate import estimate_sampling, sampling_work

    device = find_device(arguments.estimate_device) if arguments.estimate_device else None
    masks = None
    if arguments.masks:
        _check_mask_control(pipe, arguments)
        masks = _read_masks(pipe, arguments)
    names = ("batch_size", "num_inference_steps", "guidance_scale", "decode_batch_size", "condition_guidance_scale")
    settings = {name: getattr(arguments, name) for name in names}
    settings["num_samples"] = (
        (arguments.num_samples or 1) if masks is None else _row_count(arguments, len(masks), arguments.masks)
    )
    if pipe.mask_adapter is not None:
        settings["batch_size"] = 1  # each volume has its own mask
    _set_tiling(pipe, arguments, masks)
    size = _largest_size(pipe, arguments, masks)
    estimate = estimate_sampling(pipe, **settings, **size)
    count, used = settings["num_samples"], choose_electricity()
    print(f"{count} samples on {pipe._execution_device}: {estimate}. Nothing was sampled.")
    print(f"Energy, with the power measured in a short trial: {footprint_of(estimate.energy, used)}.")
    if device is not None:
        passes = {name: settings[name] for name in PASSES}
        forecast = forecast_work(sampling_work(pipe, **passes, **size) * count, device)
        footprint = footprint_of(forecast.energy, used)
        print(f"On {device.title}: about {format_duration(forecast.seconds)}, {footprint} ({forecast.energy.method}).")
