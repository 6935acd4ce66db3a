"""`cardiodit convert`: the authors' checkpoints."""

import argparse
from pathlib import Path

from cardiodit.commands.adding import add_command


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
    cardiodit.set_defaults(run=run_cardiodit)


def run_cardiodit(arguments: argparse.Namespace) -> None:
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
