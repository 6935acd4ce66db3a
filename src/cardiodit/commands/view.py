"""`cardiodit view`: a web page that plays volumes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import add_command
from cardiodit.errors import CardioDiTError

if TYPE_CHECKING:
    import numpy as np

    from cardiodit.imaging.orientation import StorageOrder
    from cardiodit.imaging.pictures import Window
    from cardiodit.imaging.volume import Volume
    from cardiodit.viewer import Shown

NO_MASK = Path("-")
PAGE_NAME = "view.html"
THICK = 2.0  # times the voxel size in the plane, above which slices are those of a stack and not of a CT volume


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "view",
        "Write one HTML page that plays NIfTI volumes side by side in any browser, offline. File names become titles; "
        "folder names and image headers are not included in the page.",
        "cardiodit view heart.nii.gz other.nii.gz --mask heart-labels.nii.gz - --output hearts.html",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="NIfTI file, 3D or 4D")
    parser.add_argument(
        "--mask",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label maps, one per FILE in the same order, with - for a FILE that has none. A mask with a single frame "
        "is shown in every frame",
    )
    parser.add_argument(
        "--mask_order",
        metavar="ORDER",
        help="which label is which structure of the heart, as in mask_order of a manifest, such as 'RV=1 MYO=2 LV=3' "
        "(ACDC, and this package's segmenters and phantoms) or 'LV=1 MYO=2 RV=3' (M&Ms, UK Biobank). With it, the "
        "ventricles' volumes over the beat and the ejection fraction are shown, too; without it, labels have no names",
    )
    parser.add_argument(
        "--titles",
        nargs="+",
        metavar="TITLE",
        help="captions, one per FILE in the same order; default: the file names, with a number if some are equal",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="intensities shown as black and white, e.g. -160 240 for CT; values outside are clipped. Default: the "
        "0.1st and 99.9th percentiles of each volume",
    )
    parser.add_argument(
        "--as_stored",
        action="store_true",
        help="show the axes of the files; otherwise hearts are upright, with the right ventricle on the left and "
        "slices from base to apex, and CT is seen from the feet, as far as headers and masks with --mask_order tell",
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
    titles = choose_titles(arguments.files, arguments.titles)
    how = (window, arguments.mask_order, titles, arguments.as_stored)
    write_viewer(path, read_shown(arguments.files, arguments.mask, *how))
    say(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


def choose_titles(files: Sequence[Path], titles: Sequence[str] | None) -> list[str]:
    """Return a caption for each file: those given, or file names, numbered where several files have the same."""
    if titles is not None and len(titles) != len(files):
        raise CardioDiTError(f"--titles gives {len(titles)}, but there are {len(files)} volumes. Give one per FILE.")
    names = [file.name for file in files]
    numbered = [
        f"{name} ({names[: i + 1].count(name)} of {names.count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
    return list(titles or numbered)


def read_shown(
    files: Sequence[Path],
    masks: Sequence[Path] | None,
    window: "Window | None",
    order: str | None = None,
    titles: Sequence[str] | None = None,
    as_stored: bool = False,
) -> "list[Shown]":
    """Read volumes and their masks for `write_viewer`.

    Args:
        files: NIfTI files.
        masks: label maps, one for each file, `NO_MASK` for none.
        window: values shown as black and white.
        order: label order of the masks, such as "LV=1 MYO=2 RV=3"; without it, structures have no names.
        titles: captions; default: the file names.
        as_stored: show the axes of the files; otherwise hearts are upright, with the right ventricle on the left and
            slices from base to apex, as far as headers and masks tell.
    """
    masks = masks or [NO_MASK] * len(files)
    if len(masks) != len(files):
        raise CardioDiTError(
            f"--mask names {len(masks)}, but there are {len(files)} volumes. Give one per FILE, - for a FILE without "
            "a mask."
        )
    shown = zip(files, masks, titles or choose_titles(files, None), strict=True)
    return [_read(file, mask, window, order, title, as_stored) for file, mask, title in shown]


def _read(
    file: Path, mask: Path, window: "Window | None", order: str | None, title: str, as_stored: bool = False
) -> "Shown":
    from cardiodit.imaging.masks import reorder
    from cardiodit.imaging.nifti import read_labels, read_nifti
    from cardiodit.imaging.volume import Volume
    from cardiodit.viewer import Shown

    volume = read_nifti(file)
    if mask == NO_MASK:
        turned = volume if as_stored else _turned(volume).apply(volume)
        return Shown(title, turned, window=window)
    labels = read_labels(mask)
    if not labels.geometry.is_close(volume.geometry):
        raise CardioDiTError(f"{mask} lies elsewhere in space than {file}. Resample the mask to the image's grid.")
    try:
        voxels = labels.voxels if order is None else reorder(labels.voxels, order)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask}: {error}") from error
    if not as_stored:
        turn = _turned(volume, voxels if order is not None else None)
        voxels, volume = turn.apply(Volume(voxels, volume.geometry)).voxels, turn.apply(volume)
    return Shown(title, volume, voxels, window, has_heart_labels=order is not None)


def _turned(volume: "Volume", labels: "np.ndarray | None" = None) -> "StorageOrder":
    """Return how a volume is turned for a reader: as models see it, but with the frames as stored."""
    from dataclasses import replace

    from cardiodit.imaging.label_order import OURS
    from cardiodit.imaging.orientation import order_of_cine, order_of_ct

    spacing = volume.geometry.spacing
    has_thick_slices = spacing is not None and spacing[2] > THICK * max(spacing[:2])
    if not volume.is_cine and not has_thick_slices:
        return order_of_ct(volume)
    ventricles = (OURS["RV"], OURS["LV"])
    return replace(order_of_cine(volume, labels, ventricles=ventricles), first_frame=0)
