"""`cardiodit scale-factor`: measure the scaling factor of latents and store it with the VQ model."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import add_command, add_electricity
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "scale-factor",
        "Compute the scaling factor of the training latents (1 / their standard deviation) and write it into the VQ "
        "model's config, from which training and sampling read it.",
        "cardiodit scale-factor --latents latents/training/manifest.csv --vae runs/vqgan",
    )
    parser.add_argument("--latents", type=Path, required=True, help="manifest.csv written by `cardiodit encode`")
    parser.add_argument("--vae", required=True, help="VQ model: its folder, a pipeline or a training run")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="use only N files, evenly spread over the manifest; default: all"
    )
    parser.add_argument(
        "--per_channel",
        action="store_true",
        help="write mean and standard deviation of each channel instead, by which latents are then normalised; the "
        "scaling factor becomes 1",
    )
    add_electricity(parser, "latents")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.hub.load import folder_of, open_vae
    from cardiodit.latents import LatentCohort, channel_statistics, identity_of_vae, measure_scale, write_scale

    if arguments.limit is not None and arguments.limit < 1:
        raise CardioDiTError(f"--limit {arguments.limit}: must be at least 1.")
    if not Path(arguments.vae).is_dir():
        raise CardioDiTError(
            f"There is no folder {arguments.vae}. The factor is written into a local folder, so "
            "a model on the Hub must be downloaded first."
        )
    folder = folder_of(arguments.vae, "vae")
    vae = open_vae(folder)
    cohort = LatentCohort.open(arguments.latents, identity_of_vae(vae))
    number = min(arguments.limit or len(cohort), len(cohort))
    latents = (cohort[i * len(cohort) // number] for i in range(number))
    if arguments.per_channel:
        mean, deviation = channel_statistics(latents)
        write_scale(folder, 1.0, (mean, deviation))
        channels = ", ".join(f"{m:.4g} ± {d:.4g}" for m, d in zip(mean, deviation, strict=True))
        print(
            f"{folder / 'config.json'}: latents are normalised per channel ({channels}), measured on {number} of "
            f"{len(cohort)} files, and scaling_factor is 1."
        )
        return
    value = measure_scale(latents)
    write_scale(folder, value)
    print(
        f"scaling_factor of {folder / 'config.json'}: {vae.config.scaling_factor:.6g} before, now {value:.6g}, "
        f"measured on {number} of {len(cohort)} files."
    )
