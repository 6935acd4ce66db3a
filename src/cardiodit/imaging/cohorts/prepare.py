"""From a cohort's folders to manifests that training can start from. The sources are only read."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from cardiodit._util.atomic_io import new_folder
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.checks import Findings, check_cine, check_mask, content_of
from cardiodit.imaging.cohorts.acdc import find_acdc
from cardiodit.imaging.cohorts.checked import CheckedCine
from cardiodit.imaging.cohorts.cohort_checks import (
    Preparation,
    check_output,
    find_duplicates,
    splits_of,
    stop_at_problems,
    write_manifests,
)
from cardiodit.imaging.cohorts.folders import find_dicom, find_folder, find_ukbb
from cardiodit.imaging.cohorts.found import CineFile, Search
from cardiodit.imaging.cohorts.mnms import find_mnms, find_mnms2
from cardiodit.imaging.cohorts.prepare_ct import CT_LAYOUTS, prepare_ct
from cardiodit.imaging.cohorts.report import write_report
from cardiodit.imaging.dicom import read_dicom
from cardiodit.imaging.nifti import read_labels, read_nifti, write_nifti
from cardiodit.imaging.orientation import (
    APEX_TO_BASE,
    ASSUMED,
    BASE_TO_APEX,
    largest_pool,
    order_of_cine,
)
from cardiodit.imaging.pictures import tile_of, write_overview
from cardiodit.imaging.volume import Volume

CINE_LAYOUTS: dict[str, Callable[[Path, Path | None], Search[CineFile]]] = {
    "acdc": find_acdc,
    "mnms": find_mnms,
    "mnms2": find_mnms2,
    "ukbb": find_ukbb,
    "folder": find_folder,
    "dicom": find_dicom,
}
LAYOUTS = (*CINE_LAYOUTS, *CT_LAYOUTS)


def prepare_cohort(
    layout: str, source: Path, output_dir: Path, table: Path | None = None, how: Preparation | None = None
) -> Path:
    """Writes `manifest.csv`, one manifest for each split that is not empty, `report.md` and pictures into a new folder.

    Every file is read and checked. All problems come in one error, unless `how.exclude` leaves those files out.
    """
    how = how or Preparation()
    if layout not in LAYOUTS:
        raise CardioDiTError(f"There is no layout {layout!r}; choose from {', '.join(LAYOUTS)}.")
    if layout in CT_LAYOUTS:
        return prepare_ct(layout, source, output_dir, table, how).manifest
    if how.spacing is not None or how.preset is not None:
        raise CardioDiTError(
            f"A spacing and a preset are for CT ({', '.join(CT_LAYOUTS)}), not for the cines of {layout}."
        )
    source, output_dir = check_output(source, output_dir)
    search = CINE_LAYOUTS[layout](source, table)
    with new_folder(output_dir) as folder:
        checked = list(_check_all(search.files, folder if layout == "dicom" else None, how))
        find_duplicates(checked)
        stop_at_problems(search, checked, how.exclude)
        good = [entry for entry in checked if not entry.findings.problems]
        for entry in checked:
            if entry.converted and entry not in good:
                (folder / entry.converted).unlink(missing_ok=True)
        splits = splits_of(good, how)
        rows = [_row(entry, splits[entry.file.subject], folder, output_dir) for entry in good]
        write_manifests(folder, rows)
        write_overview(folder / "pictures", [entry.tile for entry in good if entry.tile is not None])
        write_report(folder / "report.md", layout, search, checked, splits, how.seed, how.own_split)
    return output_dir / "manifest.csv"


def _check_all(files: list[CineFile], converted: Path | None, how: Preparation) -> Iterator[CheckedCine]:
    if converted is not None:
        (converted / "images").mkdir()
    check = partial(_check_one, converted=converted, how=how)
    if how.workers <= 1:
        yield from map(check, files)
        return
    with ProcessPoolExecutor(how.workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check, files)


def _check_one(file: CineFile, converted: Path | None, how: Preparation) -> CheckedCine:
    """Reads and checks one cine with its masks; what cannot be read is a problem, not a crash."""
    entry = CheckedCine(file)
    try:
        volume = _read(file, converted, how, entry)
        entry.findings += check_cine(volume)
        if not entry.findings.problems:
            _look_at(volume, entry, how)
    except CardioDiTError as error:
        entry.add_error(error)
    return entry


def _read(file: CineFile, converted: Path | None, how: Preparation, entry: CheckedCine) -> Volume:
    if converted is None:
        return read_nifti(file.image, how.time_unit)
    result = read_dicom(file.image)
    entry.findings.notes += result.notes
    entry.converted = Path("images") / f"{file.subject}.nii.gz"
    write_nifti(converted / entry.converted, result.volume.voxels, result.volume.geometry)
    return result.volume


def _look_at(volume: Volume, entry: CheckedCine, how: Preparation) -> None:
    """What the voxels tell of the file: frames, order of slices, content, a picture."""
    file = entry.file
    entry.shape, entry.spacing = volume.voxels.shape, volume.geometry.spacing
    entry.frame_time = volume.geometry.frame_time or how.frame_time
    entry.content = content_of(volume.voxels)
    masks = {name: _read_mask(getattr(file, name), volume, entry) for name in ("mask", "ed_mask", "es_mask")}
    _settle_frames(volume, masks["mask"], entry)
    labels = next((mask for mask in (masks["mask"], masks["ed_mask"]) if mask is not None), None)
    order = order_of_cine(volume, labels, file.ed_frame)
    entry.order = order
    if order.slices_from != ASSUMED:
        entry.slices = APEX_TO_BASE if 2 in order.flips else BASE_TO_APEX
    else:
        entry.findings.notes.append("does not tell which end is the base; its slices are taken as stored")
    if file.ed_frame is None and order.first_frame_from == "mask":
        file.ed_frame = order.first_frame
    ours = order.apply(volume)
    shown = None if labels is None else order.apply(Volume(_four(labels), volume.geometry))
    entry.tile = tile_of(file.subject, ours, None if shown is None else shown.voxels)


def _four(labels: np.ndarray) -> np.ndarray:
    """Labels of one frame as those of a cine of one frame."""
    return labels if labels.ndim == 4 else labels[..., None]


def _read_mask(path: Path | None, volume: Volume, entry: CheckedCine) -> np.ndarray | None:
    if path is None:
        return None
    try:
        mask = read_labels(path)
        found = check_mask(mask, volume)
    except CardioDiTError as error:
        entry.findings.problems.append(f"its mask: {error}")
        return None
    entry.findings += Findings([f"its mask {path.name} {p}" for p in found.problems])
    return None if found.problems else mask.voxels


def _settle_frames(volume: Volume, labels: np.ndarray | None, entry: CheckedCine) -> None:
    """End-diastole and end-systole, by the cohort's table, by single frames that lie beside, or by labelled ones."""
    file, frames = entry.file, volume.voxels.shape[3]
    for name in ("ed", "es"):
        image = getattr(file, f"{name}_image")
        if image is not None and getattr(file, f"{name}_frame") is None:
            number = _frame_like(read_labels(image).voxels, volume.voxels)
            if number is None:
                entry.findings.notes.append(f"{image.name} is none of its frames")
            setattr(file, f"{name}_frame", number)
        number = getattr(file, f"{name}_frame")
        if number is not None and not 0 <= number < frames:
            entry.findings.problems.append(
                f"its {name.upper()} frame {number} (counted from 0) is none of its {frames} frames"
            )
    if labels is not None and labels.ndim == 4:
        _compare_with_labels(labels, entry)


def _compare_with_labels(labels: np.ndarray, entry: CheckedCine) -> None:
    """Where a mask labels two frames, the fuller one is end-diastole; a table that says otherwise is noted."""
    labelled = np.flatnonzero(labels.any(axis=(0, 1, 2))).tolist()
    if len(labelled) != 2:
        return
    file = entry.file
    fuller = labelled[largest_pool(labels[..., labelled])]
    found = (fuller, sum(labelled) - fuller)
    told = (file.ed_frame, file.es_frame)
    if None not in told and told != found:
        entry.findings.notes.append(
            f"has labels in the frames {found[0]} (fuller) and {found[1]}, while the table calls {told[0]} and "
            f"{told[1]} end-diastole and end-systole; the labels were followed"
        )
    file.ed_frame, file.es_frame = found


def _frame_like(frame: np.ndarray, cine: np.ndarray) -> int | None:
    """The number of the frame with the same voxels."""
    if frame.shape != cine.shape[:3]:
        return None
    return next((t for t in range(cine.shape[3]) if np.array_equal(frame, cine[..., t])), None)


def _row(entry: CheckedCine, split: str, folder: Path, output_dir: Path) -> dict[str, str]:
    """A manifest's row; paths start at the folder that the manifest will lie in."""
    file = entry.file

    def path(target: Path | None) -> str:
        return "" if target is None else os.path.relpath(target, output_dir)

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    return {
        "image": str(entry.converted) if entry.converted else path(file.image),
        "subject": file.subject,
        "split": split,
        "label": file.label,
        "mask": path(file.mask),
        "ed_mask": path(file.ed_mask),
        "es_mask": path(file.es_mask),
        "mask_order": file.mask_order,
        "ed_frame": number(file.ed_frame),
        "es_frame": number(file.es_frame),
        "slices": entry.slices,
        "frame_time": number(entry.frame_time),
        "vendor": file.vendor,
        "centre": file.centre,
        "partition": file.partition,
        **file.other,
    }
