"""From a cohort's folder to manifests for training: find, check, split, write. The source is only read.

DICOM series and npz archives become NIfTI files on their own grid; resampling, clipping, cropping and padding are left
to a preset when training reads them.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from cardiodit._util.atomic_io import new_folder
from cardiodit._util.interrupts import ignore_interrupts
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.cohorts.cohort import COHORTS, Cohort, CohortFile, Search, find_cohort
from cardiodit.imaging.cohorts.file_checks import KINDS, CheckedFile, Preparation, check_file, find_preset
from cardiodit.imaging.cohorts.report import (
    describe_left_out,
    describe_repeats,
    recommend_spacing,
    summarize_views,
    write_report,
)
from cardiodit.imaging.cohorts.split import SPLITS, own_splits, split_subjects
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.pictures import write_overview


class Prepared(NamedTuple):
    """The manifest of all images, and lines for the user: what was left out, and what to know before training."""

    manifest: Path
    summary: list[str]


def prepare_cohort(
    layout: str, source: Path, output_dir: Path, table: Path | None = None, how: Preparation | None = None
) -> Path:
    """Write `manifest.csv`, one manifest for each split that is not empty, `report.md` and pictures to a new folder.

    Every file is read and checked. All problems come in one error, unless `how.exclude` leaves those files out.

    Args:
        layout: name of a registered cohort, such as "acdc".
        source: the cohort's folder.
        output_dir: new or empty folder.
        table: CSV of the cohort.
        how: further settings.
    """
    return prepare_with_summary(layout, source, output_dir, table, how).manifest


def prepare_with_summary(
    layout: str, source: Path, output_dir: Path, table: Path | None = None, how: Preparation | None = None
) -> Prepared:
    """Prepare a cohort like `prepare_cohort`, and return the text that the command prints."""
    cohort, how = find_cohort(layout), how or Preparation()
    kind = KINDS[cohort.kind]
    how = _check_settings(cohort, how)
    source, output_dir = Path(source).resolve(), Path(output_dir).resolve()
    if output_dir == source or output_dir in source.parents:
        raise CardioDiTError(f"The output folder {output_dir} contains the source {source}. Choose another one.")
    if source in output_dir.parents and cohort.kind == "ct":
        raise CardioDiTError(f"The output folder {output_dir} lies in the source {source}, which is only read.")
    search = _matching(cohort.find(source, table), source, how.pattern)
    if how.spacing is not None and not any(file.image.suffix == ".npz" for file in search.files):
        raise CardioDiTError(f"--spacing is for npz files, which do not store it; there is no npz file in {source}.")
    if search.no_split and not how.own_split:
        raise CardioDiTError(search.no_split)
    how = replace(how, spacing=how.spacing or cohort.npz_spacing)
    with new_folder(output_dir) as folder:
        checked = list(_check_files(search.files, cohort, folder, how))
        _find_duplicates(checked)
        if cohort.kind == "cine" and not how.all_cines:
            _choose_cines(checked)
        _stop_at_problems(search, checked, how.exclude)
        good = [entry for entry in checked if entry.is_used]
        _remove_unused_images(folder, checked)
        files = [entry.file for entry in good]
        labels = {file.subject: file.label for file in files}
        splits = own_splits(files) if how.own_split else split_subjects(labels, how.fractions, how.seed)
        rows = _manifest_rows(good, cohort, splits, output_dir)
        write_manifest(folder / "manifest.csv", rows)
        for split in SPLITS:
            if members := [row for row in rows if row["split"] == split]:
                write_manifest(folder / f"{split}.csv", members)
        write_overview(folder / "pictures", [entry.tile for entry in good if entry.tile is not None])
        specific = summarize_views(good, source, how.preset) if how.preset else recommend_spacing(good)
        summary = [*describe_left_out(search, checked), *describe_repeats(good), *specific]
        write_report(folder / "report.md", cohort, kind, source, search, checked, splits, how)
    return Prepared(output_dir / "manifest.csv", summary)


def _matching(search: Search, source: Path, pattern: str | None) -> Search:
    """Keep the files whose path below the source, or whose name, matches a glob."""
    if pattern is None:
        return search
    names = {file.image: file.image.relative_to(source).as_posix() for file in search.files}
    kept = [f for f in search.files if fnmatch(names[f.image], pattern) or fnmatch(f.image.name, pattern)]
    if not kept:
        some = ", ".join(list(names.values())[:3])
        raise CardioDiTError(f"--pattern {pattern!r} matches none of {len(names)} files in {source}, such as {some}.")
    note = f"{len(search.files) - len(kept)} of {len(search.files)} files were left out by --pattern {pattern!r}"
    return replace(search, files=kept, notes=[*search.notes, note])


def _check_settings(cohort: Cohort, how: Preparation) -> Preparation:
    """Refuse settings of the other kind, and fill in the cohort's preset."""
    if cohort.kind == "cine":
        if how.spacing is not None or how.preset is not None:
            names = ", ".join(name for name, other in COHORTS.items() if other.kind == "ct")
            raise CardioDiTError(f"--spacing and --preset are for CT ({names}), not for the cines of {cohort.name}.")
        return how
    if how.time_unit is not None or how.frame_time is not None:
        raise CardioDiTError(f"--time_unit and --frame_time are for cines; the CT of {cohort.name} have no frames.")
    how = replace(how, preset=how.preset or cohort.preset)
    find_preset(how.preset or "")
    return how


def _check_files(files: list[CohortFile], cohort: Cohort, folder: Path, how: Preparation) -> Iterator[CheckedFile]:
    (folder / "images").mkdir()
    plural = KINDS[cohort.kind].plural
    check = partial(check_file, kind=cohort.kind, folder=folder, how=how)
    bar = partial(progress, total=len(files), description=f"Checking {plural}", unit="file")
    if how.workers <= 1:
        yield from bar(map(check, files))
        return
    with ProcessPoolExecutor(how.workers, get_context("spawn"), ignore_interrupts) as pool:
        yield from bar(pool.map(check, files))


def _find_duplicates(checked: Sequence[CheckedFile]) -> None:
    first: dict[str, CheckedFile] = {}
    for entry in checked:
        twin = first.setdefault(entry.content, entry) if entry.content else entry
        if twin is not entry:
            entry.findings.problems.append(f"has the same content as {twin.file.image}")


def _choose_cines(checked: Sequence[CheckedFile]) -> None:
    """Keep one cine of every subject: two of one heart would count as two patients."""
    cines: dict[str, list[CheckedFile]] = {}
    for entry in checked:
        if entry.is_used:
            cines.setdefault(entry.file.subject, []).append(entry)
    for subject, entries in cines.items():
        chosen = max(entries, key=lambda entry: entry.shape[2])
        for entry in entries:
            if entry is not chosen:
                entry.not_used = (
                    f"is one of {len(entries)} cines of {subject}, of which {chosen.file.image.name} has the most "
                    "slices or is the first (kept with --all_cines, or choose with --pattern)"
                )


def _stop_at_problems(search: Search, checked: Sequence[CheckedFile], exclude: bool) -> None:
    problems = Problems("The cohort has problems")
    for sentence in [*search.problems, *(sentence for entry in checked for sentence in entry.problems)]:
        problems.add(sentence)
    if not exclude:
        problems.raise_if_any("Nothing was written. Fix them, or leave those files out with --exclude_problems.")
    for entry in checked:
        if entry.not_used:
            problems.add(f"{entry.file.image} {entry.not_used}")
    if not any(entry.is_used for entry in checked):
        problems.raise_if_any("No usable file is left.")


def _remove_unused_images(folder: Path, checked: Sequence[CheckedFile]) -> None:
    """Delete converted files that turned out to have problems, and the folder of images if it is empty."""
    for entry in checked:
        if entry.converted and not entry.is_used:
            (folder / entry.converted).unlink()
    if not any((folder / "images").iterdir()):
        (folder / "images").rmdir()


def _manifest_rows(
    good: Sequence[CheckedFile], cohort: Cohort, splits: dict[str, str], output_dir: Path
) -> list[dict[str, str]]:
    """Return the rows of the manifest; their paths are relative to its folder."""
    others = list(dict.fromkeys(name for entry in good for name in entry.file.other))

    def path(target: Path | None) -> str:
        return "" if target is None else os.path.relpath(target, output_dir)

    def row(entry: CheckedFile) -> dict[str, str]:
        file = entry.file
        frame_masks = {"ed_mask": path(file.ed_mask), "es_mask": path(file.es_mask)} if cohort.kind == "cine" else {}
        return {
            "image": str(entry.converted) if entry.converted else path(file.image),
            "subject": file.subject,
            "split": splits[file.subject],
            "label": file.label,
            "mask": path(file.mask),
            **frame_masks,
            **KINDS[cohort.kind].columns(entry),
            "partition": file.partition,
            **{name: file.other.get(name, "") for name in others},
        }

    return [row(entry) for entry in good]
