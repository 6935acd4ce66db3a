"""RAD-ChestCT: `trn00001.npz`, `val…`, `tst…` with an array `ct` at 0.8 mm, clipped at ±1000 HU, or NIfTI files.

A patient may have several CT; only the cohort's metadata table says which ones.
"""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.cohort import CohortFile, Search, find_niftis, register_cohort, stem, visible_files

METADATA = "CT_Scan_Metadata_Complete_35747.csv"
IMAGE, PATIENT = "NoteAcc_DEID", "MRN_DEID"  # its columns of volume names and patients
PARTITIONS = {"trn": "training", "val": "validation", "tst": "test"}
RELEASED = re.compile(r"(trn|val|tst)\d+")


@register_cohort(
    "radchest",
    "ct",
    title="RAD-ChestCT: npz archives as published, or NIfTI files",
    table=f"{METADATA}, or your own table with the columns image and subject, and "
    "optionally label; other columns are copied to the manifest",
    preset="prdit-radchest",
    npz_spacing=(0.8, 0.8, 0.8),
)
def find_radchest(source: Path, table: Path | None = None) -> Search:
    """List every npz and NIfTI file at any depth; patients come from the cohort's metadata or a user's table."""
    niftis, notes = find_niftis(source)
    archives = dict.fromkeys(visible_files(source, ".npz"))
    search = Search(notes=notes)
    first: dict[str, Path] = {}
    for image, mask in {**archives, **niftis}.items():
        name = stem(image)
        if name in first:  # both would be written to one file
            search.problems.append(f"{image}: {first[name]} has the same name. Keep one of them")
            continue
        first[name] = image
        released = RELEASED.match(name)
        partition = PARTITIONS[released[1]] if released else ""
        search.files.append(CohortFile(image, name, mask=mask, partition=partition))
    if not search.files:
        raise CardioDiTError(
            f"No npz and no NIfTI file was found in {source}. Is it the folder that RAD-ChestCT was downloaded into?"
        )
    if table is None:
        table = next((path for path in (source / METADATA, source.parent / METADATA) if path.is_file()), None)
    if table is not None:
        _add_patients(search, table)
    elif any(file.partition for file in search.files):
        search.no_split = (
            "Some patients of RAD-ChestCT have several CT, and the file names do not tell which. A random split could "
            f"put one patient into two splits. Give the cohort's {METADATA} with --table, or use its own split, which "
            "is by patient, with --own_split."
        )
    else:
        search.notes.append("each image counts as a separate patient because no --table names the patients")
    return search


def _add_patients(search: Search, table: Path) -> None:
    """Set each image's patient; a user's own table also sets the label and other columns."""
    from cardiodit.imaging.manifest import read_table

    rows = [row for _, row in read_table(table, ())]
    is_metadata = IMAGE in rows[0] and PATIENT in rows[0]
    if not is_metadata and not {"image", "subject"} <= set(rows[0]):
        raise CardioDiTError(
            f"The table {table} must have the columns image and subject, or be RAD-ChestCT's own with {IMAGE} and "
            f"{PATIENT}. It has {', '.join(rows[0])}."
        )
    image, patient = (IMAGE, PATIENT) if is_metadata else ("image", "subject")
    by_name = {stem(Path(row[image])): row for row in rows if row[patient]}
    for file in search.files:
        if file.subject not in by_name:
            file.problems.append(f"{file.image}: the table {table} does not name the patient of {file.subject}")
            continue
        row = dict(by_name[file.subject])
        file.subject = row.pop(patient)
        if not is_metadata:
            del row[image]
            file.label, file.other = row.pop("label", ""), row
