"""`cardiodit convert`: checkpoints of the published systems' authors."""

import argparse
from pathlib import Path
from typing import Any

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import PRESETS, add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "convert",
        "Convert checkpoints that the authors of a published system released, or that their code trained, into a "
        "pipeline folder.",
        "cardiodit convert cardiodit --help",
    )
    systems = parser.add_subparsers(title="systems", metavar="SYSTEM", required=True)
    cardiodit = add_command(
        systems,
        "cardiodit",
        "Convert a CardioDiT VQ-GAN and transformer.",
        "cardiodit convert cardiodit --stage1_ckpt vqgan/best_model.pth --stage1_cfg vqgan.yaml \\\n"
        "    --diff_ckpt dit/best_model.pth --diff_cfg dit_ds8_b4.yaml --scale_factor 1.3 \\\n"
        "    --spacing 1 1 10 --frame_time 0.03 --output_dir my-model",
    )
    _add_stages(cardiodit)
    cardiodit.add_argument(
        "--frame_time", type=float, metavar="S", help="time between frames of the training volumes in seconds"
    )
    cardiodit.set_defaults(run=run_cardiodit)

    voldit = add_command(
        systems,
        "voldit",
        "Convert a VolDiT VQ-GAN and transformer, and with --tgca_ckpt also the adapter that steers it with masks.",
        "cardiodit convert voldit --stage1_ckpt vqgan/best_model.pth --stage1_cfg vqgan_ds8.yaml \\\n"
        "    --diff_ckpt dit/best_model.pth --diff_cfg dit_ds8_b4.yaml --scale_factor 1.3 \\\n"
        "    --tgca_ckpt tgca/best_model.pth --tgca_cfg tgca_ds8.yaml \\\n"
        "    --spacing 0.7 0.7 1.25 --repo org/name --output_dir my-model",
    )
    _add_stages(voldit)
    voldit.add_argument("--tgca_ckpt", type=Path, help="checkpoint of the adapter (.pth)")
    voldit.add_argument("--tgca_cfg", type=Path, help="config of the adapter (YAML)")
    voldit.set_defaults(run=run_voldit)

    medlord = add_command(
        systems,
        "medlord",
        "Convert a MedLoRD VQ-GAN and U-Net, and with --controlnet_ckpt also the ControlNet that steers it with masks.",
        "cardiodit convert medlord --repo AICM-HD/medlord --stage1_ckpt vqgan_luna_ds8.pth \\\n"
        "    --stage1_cfg vqgan_ds8.yaml --diff_ckpt ldm_luna_ds8.pth --diff_cfg ldm.yaml --scale_factor 1.11 \\\n"
        "    --output_dir my-model",
    )
    _add_stages(medlord)
    medlord.add_argument("--controlnet_ckpt", type=Path, help="checkpoint of the ControlNet (.pth)")
    medlord.add_argument("--controlnet_cfg", type=Path, help="config of the ControlNet (YAML)")
    medlord.add_argument(
        "--ema_base",
        action="store_true",
        help="with a ControlNet, also use the averaged weights of the U-Net; default: its raw weights, on which the "
        "authors trained the ControlNet",
    )
    medlord.set_defaults(run=run_medlord)

    prdit = add_command(
        systems,
        "prdit",
        "Convert a PRDiT checkpoint of either stage; it usually contains its config.",
        "cardiodit convert prdit --ckpt 008000.pt --preset prdit-lidc-128 --output_dir my-model",
    )
    prdit.add_argument("--ckpt", type=Path, required=True, help="checkpoint (.pt)")
    prdit.add_argument("--cfg", type=Path, help="config of its training (YAML), if the checkpoint does not contain it")
    prdit.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("H", "W", "D"),
        help="size of the training volumes in voxels; default: as in the config",
    )
    prdit.add_argument(
        "--preset",
        choices=PRESETS,
        help="preprocessing of the training volumes; without it, samples have intensities in [-1, 1] instead of HU",
    )
    _add_source_and_output(prdit)
    prdit.set_defaults(run=run_prdit)

    weights = add_command(
        systems,
        "weights",
        "Convert the PyTorch file of a published network to safetensors, for `cardiodit evaluate`; only tensors are "
        "read from it, and no code is run.",
        "cardiodit convert weights resnet_50_23dataset.pth --repo TencentMedicalNet/MedicalNet-Resnet50 \\\n"
        "    --output medicalnet50.safetensors",
    )
    weights.add_argument("checkpoint", type=Path, help="PyTorch file (.pth, .pt)")
    _add_repository(weights)
    weights.add_argument("--output", type=Path, required=True, help="new file that ends in .safetensors")
    weights.set_defaults(run=run_weights)


def _add_stages(parser: argparse.ArgumentParser) -> None:
    for name, text in [
        ("stage1_ckpt", "checkpoint of the VQ-GAN (.pth)"),
        ("stage1_cfg", "config of the VQ-GAN (YAML), in either of the authors' layouts"),
        ("diff_ckpt", "checkpoint of the denoiser (.pth)"),
        ("diff_cfg", "config of the denoiser (YAML), in any of the authors' layouts"),
    ]:
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    parser.add_argument(
        "--scale_factor", type=float, help="1 / standard deviation of the latents; default: the value in --diff_cfg"
    )
    _add_source_and_output(parser)


def _add_source_and_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, required=True, help="new or empty folder for the pipeline")
    _add_repository(parser)
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size of the training volumes in mm; without it, voxel size and position of samples are unknown",
    )
    parser.add_argument(
        "--raw_weights",
        action="store_true",
        help="use the plain weights instead of their exponential moving average (EMA)",
    )


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repo",
        metavar="ORG/NAME",
        help="repository on the Hub from which the files are read, except configs that are local files; default: all "
        "are local files",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the repository")


def run_cardiodit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.cardiodit import convert_cardiodit

    _print_next_step(convert_cardiodit(**_stages(arguments), frame_time=arguments.frame_time))


def run_voldit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.voldit import convert_voldit

    adapter: dict[str, Any] = {name: _fetch(arguments, name) for name in ("tgca_ckpt", "tgca_cfg")}
    folder = convert_voldit(**_stages(arguments), **adapter)
    _print_next_step(folder, "--masks masks.csv " if arguments.tgca_ckpt else "")


def run_medlord(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.medlord import convert_medlord

    controlnet: dict[str, Any] = {name: _fetch(arguments, name) for name in ("controlnet_ckpt", "controlnet_cfg")}
    folder = convert_medlord(**_stages(arguments), **controlnet, ema_base=arguments.ema_base)
    _print_next_step(folder, "--masks masks.csv " if arguments.controlnet_ckpt else "")


def run_prdit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.prdit import convert_prdit

    folder = convert_prdit(
        ckpt=_fetch_required(arguments, "ckpt"),
        cfg=_fetch(arguments, "cfg"),
        size=None if arguments.size is None else tuple(arguments.size),
        preset=arguments.preset,
        **_common(arguments),
    )
    _print_next_step(folder)


def run_weights(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.checkpoint import convert_weights

    say(f"Wrote {convert_weights(_fetch_required(arguments, 'checkpoint'), arguments.output)}.")


def _stages(arguments: argparse.Namespace) -> dict[str, Any]:
    files = {name: _fetch(arguments, name) for name in ("stage1_ckpt", "stage1_cfg", "diff_ckpt", "diff_cfg")}
    return {**files, **_common(arguments), "scale_factor": arguments.scale_factor}


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": arguments.output_dir,
        "spacing": None if arguments.spacing is None else tuple(arguments.spacing),
        "ema": not arguments.raw_weights,
    }


def _fetch(arguments: argparse.Namespace, name: str) -> Path | None:
    """Return the file of an option, downloaded if it is on the Hub; repositories often lack the configs."""
    file = getattr(arguments, name)
    if file is None or arguments.repo is None or (file.suffix in (".yaml", ".yml") and file.is_file()):
        return file
    from cardiodit.hub.client import download

    return download(arguments.repo, file.as_posix(), arguments.revision)


def _fetch_required(arguments: argparse.Namespace, name: str) -> Path:
    file = _fetch(arguments, name)
    assert file is not None  # the parser requires it
    return file


def _print_next_step(folder: Path, masks: str = "") -> None:
    say(f"Wrote {folder}. Try it: cardiodit sample {folder} {masks}--output_dir samples")
