"""`cardiodit encode`: encode images into latents."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import (
    DTYPES,
    PRESETS,
    TILING,
    TILING_HELP,
    add_command,
    add_electricity,
    join_processes,
)
from cardiodit.errors import CardioDiTError


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "encode",
        "Encode every image of a manifest with a VQ model, to train a transformer on the latents. The same command "
        "again resumes an interrupted run and encodes only what has changed. `accelerate launch -m cardiodit encode "
        "...` uses several GPUs.",
        "cardiodit encode --ids cohort/training.csv cohort/validation.csv --vae runs/vqgan --output_dir latents \\\n"
        "    --depth 10 --condition_keys mask",
    )
    parser.add_argument(
        "--ids",
        type=Path,
        required=True,
        nargs="+",
        metavar="CSV",
        help="manifest of the images; if there are several, each gets a folder of its own in the output folder",
    )
    parser.add_argument(
        "--vae", required=True, help="VQ model: its folder, a pipeline, a training run, or org/name on the Hub"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the latents; may contain those of an earlier run"
    )
    parser.add_argument(
        "--condition_keys",
        nargs="+",
        default=(),
        metavar="COLUMN",
        help="manifest columns with masks, for training an adapter. Masks are preprocessed like the images and stored "
        "with the latents. Cine masks must label every frame; heart labels in another order than ACDC's are relabelled "
        "if the column mask_order states it",
    )
    parser.add_argument(
        "--depth", type=int, help="number of slices to crop or pad to; default: as in the preprocessing"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size in mm to resample to; default: as in the preprocessing. Images of another voxel size than "
        "the VQ model's training volumes are refused",
    )
    parser.add_argument(
        "--shard_size",
        type=int,
        metavar="N",
        help="number of latents in a file; 1 writes a file for each image. Default: 1 for up to 10,000 images, and 256 "
        "for more, since file systems of clusters are slow with many small files. Training is the same",
    )
    parser.add_argument(
        "--any_size",
        action="store_true",
        help="allow latents of different sizes, for training with batch_strategy: bucket",
    )
    parser.add_argument("--preset", choices=PRESETS, help="preprocessing of the images; default: that of the VQ model")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="number of slices to encode at once, for speed (%(default)s)"
    )
    parser.add_argument("--tiling", choices=TILING, default="auto", help=TILING_HELP)
    parser.add_argument(
        "--device", help="device, such as cpu, cuda, cuda:1 or mps; default: one GPU per process if available"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="precision in which the VQ model runs (%(default)s)"
    )
    add_electricity(parser)
    parser.set_defaults(run=run, resumes=True)


def run(arguments: argparse.Namespace) -> None:
    import torch
    from accelerate.utils import gather_object

    from cardiodit._util.gpu import set_kernels
    from cardiodit.hub.load import open_vae
    from cardiodit.imaging.preprocessing import PRESETS as PREPROCESSINGS
    from cardiodit.latents import encode_cohort

    folders = folders_of(arguments.ids, arguments.output_dir)
    state = join_processes(arguments.device)
    set_kernels()
    vae = open_vae(arguments.vae)
    for manifest, folder in zip(arguments.ids, folders, strict=True):
        counts = encode_cohort(
            manifest,
            vae,
            folder,
            depth=arguments.depth,
            spacing=None if arguments.spacing is None else tuple(arguments.spacing),
            steps=PREPROCESSINGS[arguments.preset] if arguments.preset else None,
            batch_size=arguments.batch_size,
            device=arguments.device or state.device,
            dtype=getattr(torch, arguments.dtype),
            process_index=state.process_index,
            num_processes=state.num_processes,
            gather=gather_object,
            condition_keys=arguments.condition_keys,
            tiling=arguments.tiling,
            shard_size=arguments.shard_size,
            any_size=arguments.any_size,
        )
        if state.is_main_process:
            say(f"Wrote {folder / 'manifest.csv'}: {counts}.")


def folders_of(manifests: Sequence[Path], output_dir: Path) -> list[Path]:
    """Return the folder for each manifest's latents: the output folder, or with several manifests folders inside it."""
    if len(manifests) == 1:
        return [output_dir]
    names = [manifest.stem for manifest in manifests]
    if len(set(names)) < len(names):
        names = [manifest.resolve().parent.name for manifest in manifests]
    if len(set(names)) < len(names):
        raise CardioDiTError(
            f"--ids {' '.join(map(str, manifests))}: neither the files nor their folders have different names, so the "
            "latents would be written to one folder. Encode them one by one."
        )
    return [output_dir / name for name in names]
