"""`cardiodit reconstruct`: what a VQ model does to one's own data."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cardiodit.commands.subcommand import PRESETS, TILING, TILING_HELP, add_command
from cardiodit.errors import CardioDiTError

if TYPE_CHECKING:
    from cardiodit.evaluation.reconstruction import Report
    from cardiodit.imaging.preprocessing import Preprocessing

SHARP_PSNR = 30.0  # dB; a rule of thumb for [-1, 1] images, not a law
FEW_CODES = 0.05
SHOWN = 20  # volumes of the printed table; all are in the CSV


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "reconstruct",
        "Encode and decode volumes with a VQ model: what is lost there cannot be generated. Numbers and pictures.",
        "cardiodit reconstruct --ids acdc/val.csv --vae runs/vqgan/best --output_dir reconstructions --num 20",
    )
    parser.add_argument("--ids", type=Path, required=True, help="manifest (CSV) of the volumes")
    parser.add_argument("--vae", required=True, help="folder of a VQ model, pipeline or run, or org/name on the Hub")
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--num", type=int, help="only the first so many volumes of the manifest; default: all")
    parser.add_argument("--depth", type=int, help="slices to crop or pad to; default: as the model was trained")
    parser.add_argument(
        "--preset", choices=PRESETS, help="preprocessing, for a model that does not know its own (converted ones)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=4, help="slices at once; the result is the same (%(default)s)"
    )
    parser.add_argument("--tiling", choices=TILING, default="auto", help=TILING_HELP)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from cardiodit._util.memory import set_tiling
    from cardiodit.evaluation.reconstruction import reconstruct_cohort
    from cardiodit.hub.load import open_vae
    from cardiodit.imaging.cases import prepare_case
    from cardiodit.imaging.manifest import read_manifest

    for name in ("num", "depth", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise CardioDiTError(f"--{name} {value}: must be at least 1.")
    cases = read_manifest(arguments.ids)[: arguments.num]
    vae = open_vae(arguments.vae)
    steps = _steps(vae, arguments.preset, arguments.depth)
    vae.to(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = prepare_case(cases[0], steps).volume.voxels.shape
    set_tiling(vae, shape, arguments.tiling, arguments.batch_size)
    report = reconstruct_cohort(vae, cases, steps, arguments.output_dir, arguments.batch_size)
    print(_table(report))
    print(_judgement(report))
    print(
        f"Wrote {arguments.output_dir}. Look at {arguments.output_dir / 'pictures'}: original, reconstruction, error."
    )


def _steps(vae: Any, preset: str | None, depth: int | None) -> "Preprocessing":
    """The model's own preprocessing; other images than it was trained on would say nothing of it."""
    from cardiodit.imaging.preprocessing import PRESETS as PREPROCESSINGS
    from cardiodit.imaging.preprocessing import Preprocessing

    own = vae.config.preprocessing
    if own is not None and preset is not None:
        raise CardioDiTError("The model knows its own preprocessing, and is judged by it. Leave --preset out.")
    if own is None and preset is None:
        raise CardioDiTError(
            "The model does not say how its training volumes were prepared. Give --preset: one of "
            f"{', '.join(PRESETS)} (cardiodit for the published models)."
        )
    steps = Preprocessing.from_dict(own) if own is not None else PREPROCESSINGS[preset or ""]
    return steps if depth is None else replace(steps, size=(*steps.size[:2], depth))


def _table(report: "Report") -> str:
    """A line for each of the first volumes, and one for the mean of all."""
    names = ["l1", "psnr", "ssim", "quantisation_share", "heart_psnr"]
    rows = [["volume", "L1", "PSNR dB", "SSIM", "quantisation", "heart PSNR dB"]]
    for quality in report.volumes[:SHOWN]:
        rows.append([quality.subject, *(_number(name, getattr(quality, name)) for name in names)])
    rows.append([f"mean of {len(report.volumes)}", *(_number(name, report.mean(name)) for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(lines)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "quantisation_share" else f"{value:.{1 if 'psnr' in name else 4}f}"


def _judgement(report: "Report") -> str:
    """What the numbers mean for generating, in a sentence or two that say no more than they do."""
    level, share, summary = report.mean("psnr") or 0.0, report.mean("quantisation_share") or 0.0, report.summary()
    said = (
        f"PSNR {level:.1f} dB: this decoder draws every sample, so hearts cannot come out sharper than in the pictures"
    )
    if level < SHARP_PSNR:
        said += f"; below about {SHARP_PSNR:.0f} dB (a rule of thumb) fine structures are usually blurred, so look at "
        said += "them before training a transformer on its latents"
    said += (
        f". The codebook accounts for {share:.0%} of the L1 error"
        if share > 0
        else ". Without the codebook the error would be no smaller"
    )
    said += f"; {summary['codes_used']} of {summary['codes']} codes were used (perplexity {report.perplexity:.0f})"
    if summary["codes_used_share"] < FEW_CODES and summary["latent_vectors"] >= summary["codes"]:
        said += ", so few that the codebook seems to have collapsed"
    if summary["volumes_with_mask"] < summary["volumes"]:
        said += (
            f". {summary['volumes_with_mask']} of {summary['volumes']} volumes have a mask of the heart over all frames"
        )
    return said + "."
