"""From a cohort's folders to manifests that training can start from. The sources are only read."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.checks import Findings, check_cine, check_mask, content_of
from cardiodit.imaging.cohorts.acdc import find_acdc
from cardiodit.imaging.cohorts.folders import find_dicom, find_folder, find_ukbb
from cardiodit.imaging.cohorts.found import CineFile, Search
from cardiodit.imaging.cohorts.mnms import find_mnms, find_mnms2
from cardiodit.imaging.cohorts.report import Checked, write_report
from cardiodit.imaging.cohorts.split import SPLITS, split_subjects
from cardiodit.imaging.dicom import read_dicom
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_labels, read_nifti, write_nifti
from cardiodit.imaging.orientation import (
    APEX_TO_BASE,
    ASSUMED,
    BASE_TO_APEX,
    largest_pool,
    order_of_cine,
)
from cardiodit.imaging.overview import tile_of, write_overview
from cardiodit.imaging.volume import Volume
from cardiodit.writing import new_folder

LAYOUTS: dict[str, Callable[[Path, Path | None], Search]] = {
    "acdc": find_acdc,
    "mnms": find_mnms,
    "mnms2": find_mnms2,
    "ukbb": find_ukbb,
    "folder": find_folder,
    "dicom": find_dicom,
}
OWN_SPLITS = {"testing": "test", "training labeled": "training", "training unlabeled": "training"}


@dataclass(frozen=True)
class Preparation:
    """How a cohort is prepared.

    Args:
        fractions: of the patients for training, validation and test.
        seed: of the split.
        own_split: take the cohort's own split instead.
        exclude: leave files with problems out instead of stopping; the report names them.
        time_unit: "sec" or "msec", where the headers say something wrong.
        frame_time: seconds between frames, where the headers say nothing.
        workers: processes; the result is the same.
    """

    fractions: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    own_split: bool = False
    exclude: bool = False
    time_unit: str | None = None
    frame_time: float | None = None
    workers: int = 1


def prepare_cohort(
    layout: str, source: Path, output_dir: Path, table: Path | None = None, how: Preparation | None = None
) -> Path:
    """Writes `manifest.csv`, one manifest for each split, `report.md` and pictures into a new folder.

    Every file is read and checked. All problems come in one error, unless `how.exclude` leaves those files out.
    """
    how = how or Preparation()
    if layout not in LAYOUTS:
        raise CardioDiTError(f"There is no layout {layout!r}; choose from {', '.join(LAYOUTS)}.")
    source, output_dir = Path(source).resolve(), Path(output_dir).resolve()
    if output_dir == source or output_dir in source.parents:
        raise CardioDiTError(f"The output folder {output_dir} holds the source {source}. Choose another one.")
    search = LAYOUTS[layout](source, table)
    with new_folder(output_dir) as folder:
        checked = list(_check_all(search.files, folder if layout == "dicom" else None, how))
        _find_duplicates(checked)
        _stop_at_problems(search, checked, how)
        good = [entry for entry in checked if not entry.findings.problems]
        for entry in checked:
            if entry.converted and entry not in good:
                (folder / entry.converted).unlink(missing_ok=True)
        splits = _splits(good, how)
        rows = [_row(entry, splits[entry.file.subject], folder, output_dir) for entry in good]
        write_manifest(folder / "manifest.csv", rows)
        for split in SPLITS:
            if held := [row for row in rows if row["split"] == split]:
                write_manifest(folder / f"{split}.csv", held)
        write_overview(folder / "pictures", [entry.tile for entry in good if entry.tile is not None])
        write_report(folder / "report.md", layout, search, checked, splits, how.seed, how.own_split)
    return output_dir / "manifest.csv"


def _check_all(files: list[CineFile], converted: Path | None, how: Preparation) -> Iterator[Checked]:
    if converted is not None:
        (converted / "images").mkdir()
    check = partial(_check_one, converted=converted, how=how)
    if how.workers <= 1:
        yield from map(check, files)
        return
    with ProcessPoolExecutor(how.workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check, files)


def _check_one(file: CineFile, converted: Path | None, how: Preparation) -> Checked:
    """Reads and checks one cine with its masks; what cannot be read is a problem, not a crash."""
    entry = Checked(file)
    try:
        volume = _read(file, converted, how, entry)
        entry.findings += check_cine(volume)
        if not entry.findings.problems:
            _look_at(volume, entry, how)
    except CardioDiTError as error:
        said, name = str(error), str(file.image)
        is_of_file = said.startswith(f"{name} ")
        entry.findings.problems.append(said.removeprefix(f"{name} ") if is_of_file else f"cannot be read. {said}")
    return entry


def _read(file: CineFile, converted: Path | None, how: Preparation, entry: Checked) -> Volume:
    if converted is None:
        return read_nifti(file.image, how.time_unit)
    result = read_dicom(file.image)
    entry.findings.notes += result.notes
    entry.converted = Path("images") / f"{file.subject}.nii.gz"
    write_nifti(converted / entry.converted, result.volume.voxels, result.volume.geometry)
    return result.volume


def _look_at(volume: Volume, entry: Checked, how: Preparation) -> None:
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


def _read_mask(path: Path | None, volume: Volume, entry: Checked) -> np.ndarray | None:
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


def _settle_frames(volume: Volume, labels: np.ndarray | None, entry: Checked) -> None:
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


def _compare_with_labels(labels: np.ndarray, entry: Checked) -> None:
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


def _find_duplicates(checked: list[Checked]) -> None:
    first: dict[str, Checked] = {}
    for entry in checked:
        if not entry.content:
            continue
        twin = first.setdefault(entry.content, entry)
        if twin is not entry:
            entry.findings.problems.append(f"has the same content as {twin.file.image}")


def _stop_at_problems(search: Search, checked: list[Checked], how: Preparation) -> None:
    problems = Problems("The cohort has problems")
    for sentence in search.problems:
        problems.add(sentence)
    for entry in checked:
        for sentence in entry.findings.problems:
            problems.add(f"{entry.file.image} {sentence}")
    if not how.exclude:
        problems.raise_if_any("Nothing was written. Mend them, or leave those files out with --exclude_problems.")
    if all(entry.findings.problems for entry in checked):
        problems.raise_if_any("No file is left.")


def _splits(good: list[Checked], how: Preparation) -> dict[str, str]:
    if not how.own_split:
        return split_subjects({entry.file.subject: entry.file.label for entry in good}, how.fractions, how.seed)
    problems = Problems("The cohort's own split cannot be taken")
    for entry in good:
        if not entry.file.partition:
            problems.add(f"{entry.file.image} belongs to none of its parts")
    problems.raise_if_any("Split by a seed instead.")
    return {entry.file.subject: OWN_SPLITS.get(entry.file.partition, entry.file.partition) for entry in good}


def _row(entry: Checked, split: str, folder: Path, output_dir: Path) -> dict[str, str]:
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
