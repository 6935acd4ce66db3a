"""`cardiodit reconstruct`: measure what a VQ model loses on your own data."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardiodit.commands.subcommand import (
    DEVICE_HELP,
    PRESETS,
    TILING,
    TILING_HELP,
    add_command,
    add_electricity,
    device_or_default,
)
from cardiodit.errors import CardioDiTError

if TYPE_CHECKING:
    from cardiodit.evaluation.reconstruction import Report
    from cardiodit.imaging.preprocessing import Preprocessing

SHARP_PSNR = 30.0  # dB; a rule of thumb for images in [-1, 1]
FEW_CODES = 0.05  # share of the codes
TABLE_ROWS = 20  # volumes in the printed table; the CSV contains all


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "reconstruct",
        "Encode and decode volumes with a VQ model and report the reconstruction error in numbers and pictures: "
        "detail that is lost here is missing from generated volumes, too.",
        "cardiodit reconstruct --ids acdc/validation.csv --vae runs/vqgan --output_dir reconstructions --num 20",
    )
    parser.add_argument("--ids", type=Path, required=True, help="manifest (CSV) of the volumes")
    parser.add_argument(
        "--vae", required=True, help="VQ model: its folder, a pipeline, a training run, or org/name on the Hub"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to, new or empty")
    parser.add_argument("--num", type=int, help="use only the first NUM volumes of the manifest; default: all")
    parser.add_argument(
        "--depth", type=int, help="number of slices to crop or pad to; default: as in the model's training"
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="preprocessing of the volumes, for models whose config does not contain it, such as converted ones",
    )
    parser.add_argument(
        "--batch_size", type=int, default=4, help="number of slices to process at once, for speed (%(default)s)"
    )
    parser.add_argument("--tiling", choices=TILING, default="auto", help=TILING_HELP)
    parser.add_argument("--device", help=DEVICE_HELP)
    add_electricity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from cardiodit._util.gpu import free_memory, set_kernels
    from cardiodit._util.memory import set_tiling
    from cardiodit.evaluation.reconstruction import PICTURED, reconstruct_cohort
    from cardiodit.hub.load import open_vae
    from cardiodit.imaging.manifest import prepare_case, read_manifest

    for name in ("num", "depth", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise CardioDiTError(f"--{name} {value}: must be at least 1.")
    cases = read_manifest(arguments.ids)[: arguments.num]
    vae = open_vae(arguments.vae)
    steps = _steps(vae, arguments.preset, arguments.depth)
    device = torch.device(device_or_default(arguments.device))
    set_kernels()
    vae.to(device)
    shape = prepare_case(cases[0], steps).volume.voxels.shape
    free = free_memory(device) if device.type == "cuda" else None
    set_tiling(vae, shape, arguments.tiling, arguments.batch_size, free)
    report = reconstruct_cohort(vae, cases, steps, arguments.output_dir, arguments.batch_size)
    print(_table(report))
    print(_interpretation(report))
    pictured = ", ".join(f"{quality.number:04d} {quality.file}" for quality in report.volumes[:PICTURED])
    print(
        f"Wrote {arguments.output_dir / 'reconstruction.csv'} (all volumes), summary.json and pictures ({pictured}): "
        "original, reconstruction, error."
    )


def _steps(vae: Any, preset: str | None, depth: int | None) -> "Preprocessing":
    """Return the model's own preprocessing, because other images would not represent its training data."""
    from cardiodit.imaging.preprocessing import PRESETS as PREPROCESSINGS
    from cardiodit.imaging.preprocessing import Preprocessing

    own = vae.config.preprocessing
    if own is not None and preset is not None:
        raise CardioDiTError("The model's config contains its preprocessing, which is used. Leave --preset out.")
    if own is None and preset is None:
        raise CardioDiTError(
            "The model's config does not say how its training volumes were prepared. Give --preset: one of "
            f"{', '.join(PRESETS)} (cardiodit for the published models)."
        )
    steps = Preprocessing.from_dict(own) if own is not None else PREPROCESSINGS[preset or ""]
    return steps if depth is None else replace(steps, size=(*steps.size[:2], depth))


def _table(report: "Report") -> str:
    """Format a line for each of the first volumes and one for the mean of all."""
    names = ["l1", "psnr", "ssim", "quantisation_share", "heart_psnr"]
    rows = [["file", "L1", "PSNR dB", "SSIM", "quantisation", "heart PSNR dB"]]
    for quality in report.volumes[:TABLE_ROWS]:
        rows.append([quality.file, *(_format(name, getattr(quality, name)) for name in names)])
    rows.append([f"mean of {len(report.volumes)}", *(_format(name, report.mean(name)) for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(lines)


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "quantisation_share" else f"{value:.{1 if 'psnr' in name else 4}f}"


def _interpretation(report: "Report") -> str:
    """Explain in a few sentences what the numbers mean for generation."""
    psnr, share, summary = report.mean("psnr") or 0.0, report.mean("quantisation_share") or 0.0, report.summary()
    sentences = [
        f"PSNR {psnr:.1f} dB: every sample is drawn by this decoder, so generated hearts cannot be sharper than the "
        "reconstructions"
    ]
    if psnr < SHARP_PSNR:
        sentences[0] += (
            f"; below about {SHARP_PSNR:.0f} dB (a rule of thumb) fine structures are usually blurred, so look at the "
            "pictures before training a transformer on these latents"
        )
    sentences.append(
        f"The codebook accounts for {share:.0%} of the L1 error"
        if share > 0
        else "Without the codebook the error would not be smaller"
    )
    sentences[-1] += (
        f"; {summary['codes_used']} of {summary['codes']} codes were used (perplexity {report.perplexity:.0f})"
    )
    if summary["codes_used_share"] < FEW_CODES and summary["latent_vectors"] >= summary["codes"]:
        sentences[-1] += ", so few that the codebook seems to have collapsed"
    if summary["volumes_with_mask"] < summary["volumes"]:
        sentences.append(
            f"{summary['volumes_with_mask']} of {summary['volumes']} volumes have a mask of the heart in all frames"
        )
    return ". ".join(sentences) + "."
