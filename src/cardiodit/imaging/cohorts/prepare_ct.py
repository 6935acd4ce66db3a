"""From a cohort of chest CT to manifests that training can start from. The sources are only read.

CT in DICOM or npz files become NIfTI files in whole Hounsfield units, on the grid that they have: what is resampled,
cut, cropped and padded is declared in a preset and done when training reads them.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cardiodit._util.atomic_io import new_folder
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.checks import Findings, check_ct, check_mask, content_of
from cardiodit.imaging.cohorts.checked import CheckedCT
from cardiodit.imaging.cohorts.cohort_checks import (
    Preparation,
    check_output,
    find_duplicates,
    splits_of,
    stop_at_problems,
    write_manifests,
)
from cardiodit.imaging.cohorts.ct_report import say_views, write_ct_report
from cardiodit.imaging.cohorts.found import CTFile, Search
from cardiodit.imaging.cohorts.lidc import find_lidc
from cardiodit.imaging.cohorts.radchest import SPACING, find_radchest
from cardiodit.imaging.cohorts.view import find_view, view_of
from cardiodit.imaging.dicom_ct import read_ct
from cardiodit.imaging.nifti import read_labels, read_nifti, write_nifti
from cardiodit.imaging.npz import read_npz
from cardiodit.imaging.orientation import order_of_ct
from cardiodit.imaging.pictures import Tile, tile_of, write_overview
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume

CT_LAYOUTS: dict[str, Callable[[Path, Path | None], Search[CTFile]]] = {"lidc": find_lidc, "radchest": find_radchest}
OWN_VIEWS = {"lidc": "prdit-lidc", "radchest": "prdit-radchest"}
SHOWN_HU = (-1000, 1000)


class PreparedCT(NamedTuple):
    """The manifest of all images, and what a user should hear of their fields of view."""

    manifest: Path
    said: list[str]


def prepare_ct(layout: str, source: Path, output_dir: Path, table: Path | None, how: Preparation) -> PreparedCT:
    """As `prepare_cohort`, which see."""
    if how.time_unit is not None or how.frame_time is not None:
        raise CardioDiTError(f"A time unit and a frame time are for cines; the CT of {layout} have no frames.")
    view_name = how.preset or OWN_VIEWS[layout]
    steps = find_view(view_name)
    source, output_dir = check_output(source, output_dir)
    if source in output_dir.parents:
        raise CardioDiTError(f"The output folder {output_dir} lies in the source {source}, which is only read.")
    search = CT_LAYOUTS[layout](source, table)
    if how.spacing is not None and not any(file.image.suffix == ".npz" for file in search.files):
        raise CardioDiTError(f"A spacing is for npz files, which do not say theirs; there is none in {source}.")
    if search.no_split and not how.own_split:
        raise CardioDiTError(search.no_split)
    with new_folder(output_dir) as folder:
        checked = list(_check_all(search.files, folder, steps, how))
        find_duplicates(checked)
        stop_at_problems(search, checked, how.exclude)
        good = [entry for entry in checked if not entry.findings.problems]
        for entry in checked:
            if entry.converted and entry not in good:
                (folder / entry.converted).unlink(missing_ok=True)
        splits = splits_of(good, how)
        write_manifests(folder, _rows(good, splits, output_dir))
        write_overview(folder / "pictures", [entry.tile for entry in good if entry.tile is not None])
        said = say_views(view_name, steps, good, source)
        write_ct_report(folder / "report.md", layout, source, search, checked, splits, said, how)
    return PreparedCT(output_dir / "manifest.csv", said)


def _check_all(files: list[CTFile], folder: Path, steps: Preprocessing, how: Preparation) -> Iterator[CheckedCT]:
    from tqdm import tqdm

    (folder / "images").mkdir()
    check = partial(_check_one, folder=folder, steps=steps, how=how)
    bar = partial(tqdm, total=len(files), desc="Checking CT", unit="CT", disable=None)  # silent in a log
    if how.workers <= 1:
        yield from bar(map(check, files))
    else:
        with ProcessPoolExecutor(how.workers, mp_context=get_context("spawn")) as pool:
            yield from bar(pool.map(check, files))
    if not any((folder / "images").iterdir()):
        (folder / "images").rmdir()


def _check_one(file: CTFile, folder: Path, steps: Preprocessing, how: Preparation) -> CheckedCT:
    """Reads and checks one CT with its mask, and writes it where it is no NIfTI file."""
    entry = CheckedCT(file)
    try:
        volume = _read(file, entry, how)
        entry.findings += check_ct(volume)
        if entry.findings.problems:
            return entry
        _look_at(volume, entry, steps)
        if not _is_nifti(file.image):
            entry.converted = Path("images") / f"{file.image.name.removesuffix('.npz')}.nii.gz"
            write_nifti(folder / entry.converted, volume.voxels, volume.geometry)
    except CardioDiTError as error:
        entry.add_error(error)
    return entry


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _read(file: CTFile, entry: CheckedCT, how: Preparation) -> Volume:
    if _is_nifti(file.image):
        return read_nifti(file.image)
    if file.image.suffix == ".npz":
        volume, notes = read_npz(file.image, how.spacing or SPACING)
    else:
        result = read_ct(file.image)
        volume, notes = result.volume, result.notes
    entry.findings.notes += notes
    return volume


def _look_at(volume: Volume, entry: CheckedCT, steps: Preprocessing) -> None:
    """What the voxels tell of the file: size, units, content, a picture; and whether its mask lies on them."""
    entry.shape, entry.spacing = volume.voxels.shape, volume.geometry.spacing
    entry.units = float(volume.voxels.min()), float(volume.voxels.max())
    entry.content = content_of(volume.voxels)
    entry.view = view_of(volume, steps)
    entry.tile = _tile(entry.file.subject, volume)
    if entry.file.mask is not None:
        try:
            found = check_mask(read_labels(entry.file.mask), volume)
        except CardioDiTError as error:
            found = Findings([f"cannot be read. {error}"])
        entry.findings += Findings([f"its mask {entry.file.mask.name} {problem}" for problem in found.problems])


def _tile(name: str, volume: Volume) -> Tile:
    """The middle slice from the feet, the patient's left at the right, within the units of a body."""
    ours = order_of_ct(volume).apply(volume)
    middle = ours.voxels.shape[2] // 2
    plane = ours.voxels[:, :, middle : middle + 1]
    return tile_of(name, Volume(np.clip(plane, *SHOWN_HU), ours.geometry))


def _rows(good: list[CheckedCT], splits: dict[str, str], output_dir: Path) -> list[dict[str, str]]:
    """The manifest; its paths start at the folder that it will lie in."""
    others = list(dict.fromkeys(name for entry in good for name in entry.file.other))

    def path(target: Path | None) -> str:
        return "" if target is None else os.path.relpath(target, output_dir)

    return [
        {
            "image": str(entry.converted) if entry.converted else path(entry.file.image),
            "subject": entry.file.subject,
            "split": splits[entry.file.subject],
            "label": entry.file.label,
            "mask": path(entry.file.mask),
            "partition": entry.file.partition,
            **{name: entry.file.other.get(name, "") for name in others},
        }
        for entry in good
    ]
