"""LIDC-IDRI: `LIDC-IDRI-NNNN/study/series/*.dcm` with CT and radiographs, or NIfTI files named after their patient."""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.cohort import (
    CohortFile,
    Search,
    add_user_table,
    find_niftis,
    register_cohort,
    subfolders,
    subject_of,
    visible_files,
)

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")


@register_cohort(
    "lidc",
    "ct",
    title="LIDC-IDRI, or any chest CT: one folder of DICOM files per patient, or NIfTI files",
    table="the column subject, and optionally label; other columns are copied to the manifest",
    preset="prdit-lidc",
)
def find_lidc(source: Path, table: Path | None = None) -> Search:
    """List NIfTI files and patients' folders of DICOM files.

    If no folder is named LIDC-IDRI-NNNN, each folder in `source` belongs to one patient.
    """
    niftis, notes = find_niftis(source)
    files = [CohortFile(image, _patient_of(image.relative_to(source)), mask=mask) for image, mask in niftis.items()]
    search = Search(files, notes=notes)
    for folder in _patient_folders(source) or ([] if files else subfolders(source)):
        if not any(path.is_relative_to(folder) for path in niftis):
            _add_dicom(folder, search)
        elif visible_files(folder, ".dcm"):
            search.problems.append(f"{folder}: holds NIfTI and DICOM files. Keep only the ones to use")
            search.files = [file for file in search.files if not file.image.is_relative_to(folder)]
    if not search.files and not search.problems:
        raise CardioDiTError(
            f"No folder LIDC-IDRI-NNNN and no NIfTI file was found in {source}. Is it the folder that LIDC-IDRI was "
            "downloaded into?"
        )
    add_user_table(search, table)
    return search


def _patient_of(inner: Path) -> str:
    named = PATIENT.search(str(inner))
    return named.group() if named else subject_of(inner)


def _patient_folders(source: Path) -> list[Path]:
    """List the outermost folders with a patient's name, at any depth of the download."""
    named = sorted(path for path in source.rglob("LIDC-IDRI-*") if path.is_dir() and PATIENT.fullmatch(path.name))
    return [path for path in named if set(named).isdisjoint(path.parents)]


def _add_dicom(folder: Path, search: Search) -> None:
    twin = next((file.image for file in search.files if file.subject == folder.name), None)
    if twin is not None:
        search.problems.append(f"{folder}: {twin} is of the same patient. Merge the two folders or remove one")
    elif visible_files(folder):
        search.files.append(CohortFile(folder, folder.name))
    else:
        search.notes.append(f"{folder}: left out, there is no file in it")
