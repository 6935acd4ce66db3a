"""`cardiodit view`: volumes that play in a browser."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.pictures import Window
from cardiodit.viewer import Shown, write_viewer

NO_MASK = Path("-")
PAGE_NAME = "view.html"


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "view",
        "Write one HTML page that plays NIfTI volumes side by side in any browser: from disk, without network. Titles "
        "are the files' names; the page holds no folder and no header.",
        "cardiodit view heart.nii.gz other.nii.gz --mask heart-labels.nii.gz - --output hearts.html",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="NIfTI, 4D or 3D, shown as it is stored")
    parser.add_argument(
        "--mask",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label maps (RV 1, myocardium 2, LV 3), one for each FILE in order; - for a FILE without one. One of a "
        "single frame is shown in every frame",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values that are black and white, e.g. -160 240 for a CT; beyond, they are cut (default: each volume's "
        "own, all but a thousandth at each end)",
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", type=Path, metavar="FILE.html", help="the page; one that exists is replaced")
    output.add_argument("--output_dir", type=Path, help=f"the folder in which the page becomes {PAGE_NAME}")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    path = arguments.output or arguments.output_dir / PAGE_NAME
    if path.suffix.lower() not in (".html", ".htm"):
        raise CardioDiTError(f"--output {path} must end in .html, so that a browser opens it.")
    window = tuple(arguments.window) if arguments.window else None
    write_viewer(path, read_shown(arguments.files, arguments.mask, window))
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


def read_shown(files: Sequence[Path], masks: Sequence[Path] | None, window: Window | None) -> list[Shown]:
    """Volumes with their masks, as `write_viewer` takes them."""
    masks = masks or [NO_MASK] * len(files)
    if len(masks) != len(files):
        raise CardioDiTError(
            f"--mask names {len(masks)}, but there are {len(files)} volumes. Name one for each FILE, - for one without."
        )
    return [_read(file, mask, window) for file, mask in zip(files, masks, strict=True)]


def _read(file: Path, mask: Path, window: Window | None) -> Shown:
    volume = read_nifti(file)
    if mask == NO_MASK:
        return Shown(file.name, volume, window=window)
    labels = read_labels(mask)
    if not labels.geometry.is_close(volume.geometry):
        raise CardioDiTError(f"{mask} lies elsewhere in space than {file}. Resample the mask to its image's grid.")
    return Shown(file.name, volume, labels.voxels, window)
