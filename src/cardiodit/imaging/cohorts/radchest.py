"""RAD-ChestCT: `trn00001.npz`, `val…`, `tst…` with an array `ct`, resampled to 0.8 mm and cut at ±1000 HU, or NIfTI.

One patient may have several CT. Whose each is stands in the cohort's table of metadata alone.
"""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.folders import find_niftis
from cardiodit.imaging.cohorts.found import CTFile, Search
from cardiodit.imaging.manifest import read_table

SPACING = (0.8, 0.8, 0.8)
METADATA = "CT_Scan_Metadata_Complete_35747.csv"
IMAGE, PATIENT = "NoteAcc_DEID", "MRN_DEID"  # its columns of the volume's name and the patient's
PARTITIONS = {"trn": "training", "val": "validation", "tst": "test"}
RELEASED = re.compile(r"(trn|val|tst)\d+")


def find_radchest(source: Path, table: Path | None = None) -> Search[CTFile]:
    """Every npz and NIfTI file at any depth, its patient by the cohort's metadata or a table of `image`, `subject`."""
    niftis, notes = find_niftis(source)
    archives = {path: None for path in sorted(source.rglob("*.npz")) if path.is_file()}
    search = Search([_file(image, mask) for image, mask in {**archives, **niftis}.items()], notes=notes)
    if not search.files:
        raise CardioDiTError(
            f"No npz and no NIfTI file was found in {source}. Is it the folder that RAD-ChestCT was downloaded into?"
        )
    _find_doubles(search)
    if table is None:
        table = next((path for path in (source / METADATA, source.parent / METADATA) if path.is_file()), None)
    if table is not None:
        _add_patients(search, table)
    elif any(file.partition for file in search.files):
        search.no_split = (
            "Some patients of RAD-ChestCT have several CT, and the files' names do not tell which, so that a split by "
            f"a seed could put one patient on both sides. Give the cohort's {METADATA} by --table, or take its own "
            "split, which is by patient, with --own_split."
        )
    else:
        search.notes.append("each image counts as a patient of its own, since no --table says whose it is")
    return search


def _file(image: Path, mask: Path | None) -> CTFile:
    name = _name(image.name)
    released = RELEASED.match(name)
    return CTFile(image, name, mask=mask, partition=PARTITIONS[released[1]] if released else "")


def _name(text: str) -> str:
    return text.removesuffix(".gz").removesuffix(".nii").removesuffix(".npz")


def _find_doubles(search: Search[CTFile]) -> None:
    """Two files of one name would be written to one."""
    first: dict[str, CTFile] = {}
    for file in search.files:
        twin = first.setdefault(file.subject, file)
        if twin is not file:
            search.problems.append(f"{file.image}: {twin.image} has the same name. Keep one of them")
    search.files = list(first.values())


def _add_patients(search: Search[CTFile], table: Path) -> None:
    """Whose each image is; from a table of one's own also the label and other columns."""
    rows = [row for _, row in read_table(table, ())]
    is_metadata = IMAGE in rows[0] and PATIENT in rows[0]
    if not is_metadata and not {"image", "subject"} <= set(rows[0]):
        raise CardioDiTError(
            f"The table {table} must have the columns image and subject, or be RAD-ChestCT's own with {IMAGE} and "
            f"{PATIENT}. It has {', '.join(rows[0])}."
        )
    image, patient = (IMAGE, PATIENT) if is_metadata else ("image", "subject")
    known = {_name(row[image]): row for row in rows if row[patient]}
    missing = [file for file in search.files if file.subject not in known]
    search.problems += [f"{file.image}: the table {table} does not say whose {file.subject} is" for file in missing]
    search.files = [file for file in search.files if file.subject in known]
    for file in search.files:
        row = {name: cell for name, cell in known[file.subject].items() if name not in (image, patient)}
        file.subject = known[file.subject][patient]
        if not is_metadata:
            file.label, file.other = row.pop("label", ""), row
