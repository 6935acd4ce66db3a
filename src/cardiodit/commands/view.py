"""`cardiodit view`: a web page that plays volumes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError

if TYPE_CHECKING:
    from cardiodit.imaging.pictures import Window
    from cardiodit.viewer import Shown

NO_MASK = Path("-")
PAGE_NAME = "view.html"


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "view",
        "Write one HTML page that plays NIfTI volumes side by side in any browser, offline. File names become titles; "
        "folder names and image headers are not included in the page.",
        "cardiodit view heart.nii.gz other.nii.gz --mask heart-labels.nii.gz - --output hearts.html",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="NIfTI file, 3D or 4D, shown as stored")
    parser.add_argument(
        "--mask",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label maps (1 right ventricle, 2 myocardium, 3 left ventricle), one per FILE in the same order, with - "
        "for a FILE that has none. A mask with a single frame is shown in every frame",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="intensities shown as black and white, e.g. -160 240 for CT; values outside are clipped. Default: the "
        "0.1st and 99.9th percentiles of each volume",
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", type=Path, metavar="FILE.html", help="page to write; an existing one is replaced")
    output.add_argument("--output_dir", type=Path, help=f"folder in which to write {PAGE_NAME}")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from cardiodit.viewer import write_viewer

    path = arguments.output or arguments.output_dir / PAGE_NAME
    if path.suffix.lower() not in (".html", ".htm"):
        raise CardioDiTError(f"--output {path} must end in .html, so that a browser opens it.")
    window = tuple(arguments.window) if arguments.window else None
    write_viewer(path, read_shown(arguments.files, arguments.mask, window))
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


def read_shown(files: Sequence[Path], masks: Sequence[Path] | None, window: "Window | None") -> "list[Shown]":
    """Read volumes and their masks for `write_viewer`."""
    masks = masks or [NO_MASK] * len(files)
    if len(masks) != len(files):
        raise CardioDiTError(
            f"--mask names {len(masks)}, but there are {len(files)} volumes. Give one per FILE, - for a FILE without "
            "a mask."
        )
    return [_read(file, mask, window) for file, mask in zip(files, masks, strict=True)]


def _read(file: Path, mask: Path, window: "Window | None") -> "Shown":
    from cardiodit.imaging.nifti import read_labels, read_nifti
    from cardiodit.viewer import Shown

    volume = read_nifti(file)
    if mask == NO_MASK:
        return Shown(file.name, volume, window=window)
    labels = read_labels(mask)
    if not labels.geometry.is_close(volume.geometry):
        raise CardioDiTError(f"{mask} lies elsewhere in space than {file}. Resample the mask to the image's grid.")
    return Shown(file.name, volume, labels.voxels, window)
