"""`cardiodit convert`: the authors' checkpoints."""

import argparse
from pathlib import Path
from typing import Any

from cardiodit.commands.subcommand import PRESETS, add_command


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "convert",
        "Make a pipeline folder of the checkpoints that the authors of a published system released or trained.",
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
    cardiodit.add_argument("--frame_time", type=float, metavar="S", help="seconds between frames")
    cardiodit.set_defaults(run=run_cardiodit)
    voldit = add_command(
        systems,
        "voldit",
        "Convert a VolDiT VQ-GAN and transformer, and with --tgca_ckpt the adapter that steers it by masks.",
        "cardiodit convert voldit --stage1_ckpt vqgan/best_model.pth --stage1_cfg vqgan_ds8.yaml \\\n"
        "    --diff_ckpt dit/best_model.pth --diff_cfg dit_ds8_b4.yaml --scale_factor 1.3 \\\n"
        "    --tgca_ckpt tgca/best_model.pth --tgca_cfg tgca_ds8.yaml \\\n"
        "    --spacing 0.7 0.7 1.25 --repo org/name --output_dir my-model",
    )
    _add_stages(voldit)
    voldit.add_argument("--tgca_ckpt", type=Path, help="checkpoint of the adapter (.pth)")
    voldit.add_argument("--tgca_cfg", type=Path, help="its YAML")
    voldit.set_defaults(run=run_voldit)
    prdit = add_command(
        systems,
        "prdit",
        "Convert a PRDiT checkpoint of either stage; its config is usually inside.",
        "cardiodit convert prdit --ckpt 008000.pt --preset prdit-lidc-128 --output_dir my-model",
    )
    prdit.add_argument("--ckpt", type=Path, required=True, help="checkpoint (.pt)")
    prdit.add_argument("--cfg", type=Path, help="YAML of its training, where the checkpoint does not hold it")
    prdit.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxels of the training volumes; default: what the config says",
    )
    prdit.add_argument(
        "--preset",
        choices=PRESETS,
        help="how the training volumes were prepared; without it samples carry no units",
    )
    _add_source_and_output(prdit)
    prdit.set_defaults(run=run_prdit)
    weights = add_command(
        systems,
        "weights",
        "Make a safetensors file of a published network's torch file, for `cardiodit evaluate`; only tensors are read.",
        "cardiodit convert weights resnet_50_23dataset.pth --repo TencentMedicalNet/MedicalNet-Resnet50 \\\n"
        "    --output medicalnet50.safetensors",
    )
    weights.add_argument("checkpoint", type=Path, help="torch file (.pth, .pt)")
    _add_repository(weights)
    weights.add_argument("--output", type=Path, required=True, help="new file that ends in .safetensors")
    weights.set_defaults(run=run_weights)


def _add_stages(parser: argparse.ArgumentParser) -> None:
    for name, what in [
        ("stage1_ckpt", "checkpoint of the VQ-GAN (.pth)"),
        ("stage1_cfg", "its YAML, compact or expanded"),
        ("diff_ckpt", "checkpoint of the transformer (.pth)"),
        ("diff_cfg", "its YAML, compact or expanded"),
    ]:
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument(
        "--scale_factor", type=float, help="1 / standard deviation of the latents; default: the one in diff_cfg"
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
        help="voxel size in mm; without it samples carry no space",
    )
    parser.add_argument("--raw_weights", action="store_true", help="take the raw weights instead of the EMA")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repo", metavar="ORG/NAME", help="on the Hub, whose files these are; without it, they lie on this machine"
    )
    parser.add_argument("--revision", help="of the repository: a branch, a tag or a commit")


def run_cardiodit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.cardiodit import convert_cardiodit

    _tell(convert_cardiodit(**_common(arguments), frame_time=arguments.frame_time))


def run_voldit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.voldit import convert_voldit

    adapter: dict[str, Any] = {name: _fetched(arguments, name) for name in ("tgca_ckpt", "tgca_cfg")}
    folder = convert_voldit(**_common(arguments), **adapter)
    _tell(folder, "--masks masks.csv " if arguments.tgca_ckpt else "")


def run_prdit(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.prdit import convert_prdit

    folder = convert_prdit(
        ckpt=_required(arguments, "ckpt"),
        cfg=_fetched(arguments, "cfg"),
        output_dir=arguments.output_dir,
        size=None if arguments.size is None else tuple(arguments.size),
        preset=arguments.preset,
        spacing=_spacing(arguments),
        ema=not arguments.raw_weights,
    )
    _tell(folder)


def run_weights(arguments: argparse.Namespace) -> None:
    from cardiodit.convert.weights import convert_weights

    print(f"Wrote {convert_weights(_required(arguments, 'checkpoint'), arguments.output)}.")


def _common(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        **{name: _fetched(arguments, name) for name in ("stage1_ckpt", "stage1_cfg", "diff_ckpt", "diff_cfg")},
        "output_dir": arguments.output_dir,
        "scale_factor": arguments.scale_factor,
        "spacing": _spacing(arguments),
        "ema": not arguments.raw_weights,
    }


def _spacing(arguments: argparse.Namespace) -> tuple[float, float, float] | None:
    return None if arguments.spacing is None else tuple(arguments.spacing)


def _fetched(arguments: argparse.Namespace, name: str) -> Path | None:
    """A file that was named, downloaded where it lies on the Hub."""
    file = getattr(arguments, name)
    if file is None or arguments.repo is None:
        return file
    from cardiodit.hub.downloading import download

    return download(arguments.repo, file.as_posix(), arguments.revision)


def _required(arguments: argparse.Namespace, name: str) -> Path:
    file = _fetched(arguments, name)
    assert file is not None  # the parser requires it
    return file


def _tell(folder: Path, masks: str = "") -> None:
    print(f"Wrote {folder}. Try it: cardiodit sample {folder} {masks}--output_dir samples")
