"""LIDC-IDRI: `LIDC-IDRI-NNNN/study/series/*.dcm` with CT and radiographs, or NIfTI files named by their patient."""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.folders import find_niftis, subject_of
from cardiodit.imaging.cohorts.found import CTFile, Search, subfolders, subject_table

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")


def find_lidc(source: Path, table: Path | None = None) -> Search[CTFile]:
    """A NIfTI file, or else a patient's folder of DICOM files, for each CT; a table may add columns by `subject`.

    Where no folder is named as LIDC-IDRI's are, each folder in `source` is a patient's.
    """
    niftis, notes = find_niftis(source)
    files = [CTFile(image, _patient_of(image, source), mask=mask) for image, mask in niftis.items()]
    search = Search(files, notes=notes)
    for folder in _patient_folders(source) or ([] if files else subfolders(source)):
        if not any(path.is_relative_to(folder) for path in niftis):
            _add_dicom(folder, search)
        elif next(folder.rglob("*.dcm"), None) is not None:
            search.problems.append(f"{folder}: holds NIfTI and DICOM files. Keep those that are meant")
            search.files = [file for file in search.files if not file.image.is_relative_to(folder)]
    if not search.files and not search.problems:
        raise CardioDiTError(
            f"No folder LIDC-IDRI-NNNN and no NIfTI file was found in {source}. Is it the folder that LIDC-IDRI was "
            "downloaded into?"
        )
    _add_table(search, table)
    return search


def _patient_of(image: Path, source: Path) -> str:
    inner = image.relative_to(source)
    named = PATIENT.search(str(inner))
    return named.group() if named else subject_of(inner)


def _patient_folders(source: Path) -> list[Path]:
    """The outermost folders with a patient's name, whatever folders a download has put around them."""
    named = sorted(path for path in source.rglob("LIDC-IDRI-*") if path.is_dir() and PATIENT.fullmatch(path.name))
    known = set(named)
    return [path for path in named if known.isdisjoint(path.parents)]


def _add_dicom(folder: Path, search: Search[CTFile]) -> None:
    twin = next((file.image for file in search.files if file.subject == folder.name), None)
    if twin is not None:
        search.problems.append(f"{folder}: {twin} is of the same patient. Put their files together, or take one away")
    elif any(path.is_file() for path in folder.rglob("*")):
        search.files.append(CTFile(folder, folder.name))
    else:
        search.notes.append(f"{folder}: left out, there is no file in it")


def _add_table(search: Search[CTFile], table: Path | None) -> None:
    if table is None:
        return
    rows = subject_table(table, "subject")
    spare = sorted(set(rows) - {file.subject for file in search.files})
    search.notes += [f"{table}: the subject {subject} has no image" for subject in spare]
    missing = [file for file in search.files if file.subject not in rows]
    search.problems += [f"{file.image}: the table {table} has no row for {file.subject}" for file in missing]
    search.files = [file for file in search.files if file.subject in rows]
    for file in search.files:
        row = {name: cell for name, cell in rows[file.subject].items() if name != "subject"}
        file.label, file.other = row.pop("label", ""), row
