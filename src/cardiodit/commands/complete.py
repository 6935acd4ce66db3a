"""`cardiodit complete`: missing slices and frames, thick slices and noise, completed by a trained model."""

import argparse
from pathlib import Path
from typing import Any

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import DEVICE_HELP, PRESETS, TIME_UNITS, add_command, add_electricity
from cardiodit.errors import CardioDiTError

AUTO = "auto"


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "complete",
        "Complete an image with a model that was trained on such images: missing slices or frames, the thin slices of "
        "a thick stack, or noise. Measured voxels are returned exactly as they were, and the geometry stays true. "
        "What is added is the model's guess, not a measurement: it is not for diagnosis.",
        "cardiodit complete cine.nii.gz --model my-model --missing_slices 3 6 --output_dir completed\n"
        "  cardiodit complete cine.nii.gz --model my-model --insert_slices 1 --output_dir finer",
    )
    parser.add_argument("image", type=Path, help="cine or volume (NIfTI); it is only read")
    parser.add_argument("--model", required=True, help="pipeline folder, or org/name on the Hub")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the completed image, the standard deviation of the samples (large where the model guesses), "
        "the same gaps filled by cubic interpolation, a GIF of all three and completion.json",
    )
    gaps = parser.add_argument_group("what is missing", "counted from 0, as stored in the file; at least one is needed")
    gaps.add_argument("--missing_slices", type=int, nargs="+", default=(), metavar="N", help="slices to replace")
    gaps.add_argument("--missing_frames", type=int, nargs="+", default=(), metavar="N", help="frames to replace")
    gaps.add_argument(
        "--insert_slices", type=int, default=0, metavar="K", help="slices to insert between each two neighbours"
    )
    gaps.add_argument(
        "--insert_frames",
        type=int,
        default=0,
        metavar="K",
        help="frames to insert after each frame; those after the last one lead back to the first",
    )
    gaps.add_argument(
        "--split_slices",
        type=int,
        default=1,
        metavar="K",
        help="thin slices to split each slice of a thick stack into; their mean is the measured slice",
    )
    gaps.add_argument(
        "--denoise",
        nargs="?",
        const=AUTO,
        metavar="SIGMA",
        help="remove noise of this standard deviation, in the image's units; without a number it is estimated. "
        "Measured voxels then change",
    )
    image = parser.add_argument_group("the image")
    image.add_argument("--slices", choices=("base to apex", "apex to base"), help="order of a cine's slices, if known")
    image.add_argument("--ed_frame", type=int, help="end-diastolic frame; default: the first")
    image.add_argument("--time_unit", choices=TIME_UNITS, help="unit of the frame time, if the header is wrong")
    image.add_argument("--class_label", help="name or number of the class label, if it is known")
    parser.add_argument(
        "--num_samples",
        type=int,
        default=8,
        help="completions to draw; the result is their mean (%(default)s)",
    )
    parser.add_argument("--num_inference_steps", type=int, help="number of noise levels (25)")
    parser.add_argument("--visits", type=int, default=1, help="how often the model sees each noise level (%(default)s)")
    parser.add_argument(
        "--strength",
        type=float,
        default=0.75,
        help="share of the noise levels to run through; 1 starts from noise, less from the noisy interpolated image, "
        "to which the result then stays nearer (%(default)s)",
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="guidance by the class label (%(default)s)")
    parser.add_argument("--preset", choices=PRESETS, help="preprocessing, for models whose config does not contain it")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=4, help="samples computed together; does not change the result (%(default)s)"
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    add_electricity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.commands.subcommand import device_or_default
    from cardiodit.imaging import PRESETS as PREPROCESSINGS
    from cardiodit.imaging import read_nifti
    from cardiodit.imaging.gaps import Gaps, estimate_noise
    from cardiodit.pipelines.completion import complete
    from cardiodit.pipelines.load import open_pipeline

    name = arguments.image.name.removesuffix(".gz").removesuffix(".nii")
    paths = {
        part: arguments.output_dir / f"{name}-{part}.nii.gz" for part in ("completed", "deviation", "interpolated")
    }
    for path in paths.values():
        if path.exists():
            raise CardioDiTError(f"{path} already exists and is not replaced. Choose another --output_dir.")
    image = read_nifti(arguments.image, arguments.time_unit)
    noise = 0.0
    if arguments.denoise is not None:
        noise = estimate_noise(image.voxels) if arguments.denoise == AUTO else _positive(arguments.denoise)
        say(f"Noise: a standard deviation of {noise:.4g} in the image's units.")
    names = ("missing_slices", "missing_frames", "insert_slices", "insert_frames", "split_slices")
    gaps = Gaps(**{name: _plain(getattr(arguments, name)) for name in names}, noise=noise)
    pipe = open_pipeline(arguments.model).to(device_or_default(arguments.device))
    label = arguments.class_label
    done = complete(
        pipe,
        image,
        gaps,
        num_samples=arguments.num_samples,
        num_inference_steps=arguments.num_inference_steps,
        visits=arguments.visits,
        strength=arguments.strength,
        seed=arguments.seed,
        class_label=int(label) if label is not None and label.isdecimal() else label,
        guidance_scale=arguments.guidance_scale,
        preprocessing=PREPROCESSINGS[arguments.preset] if arguments.preset else None,
        slices=arguments.slices,
        end_diastole=arguments.ed_frame,
        batch_size=arguments.batch_size,
    )
    for path in done.save(arguments.output_dir, name):
        say(path)
    print(done.summary())


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise CardioDiTError(f"--denoise {text}: a standard deviation is a positive number, in the image's units.")
    return value
