"""M&Ms and M&Ms-2: several vendors and centres, with a table of information.

M&Ms has `{Training/{Labeled,Unlabeled},Validation,Testing}/ID/ID_sa.nii.gz` with labels in two frames of a 4D mask.
M&Ms-2 has `dataset/NNN/` with the cine and, as files of their own, its end-diastolic and end-systolic frames.
"""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.found import (
    MNMS_ORDER,
    CineFile,
    Search,
    find_image,
    find_one,
    frame_number,
    subfolders,
    subject_table,
)

PARTITIONS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
MISLEADING = "Training/Unlabeled"  # its masks are empty or wrong
SPLITS = (("training", 160), ("validation", 200), ("testing", 360))  # the last subject of each, M&Ms-2


def find_mnms(source: Path, table: Path | None = None) -> Search:
    root = source / "OpenDataset" if (source / "OpenDataset").is_dir() else source
    search: Search[CineFile] = Search()
    known = _table_of(root, table, "External code", ("Vendor", "Centre", "ED", "ES"))
    for partition in PARTITIONS:
        if not (root / partition).is_dir():
            continue
        for folder in subfolders(root / partition):
            _add_mnms(folder, partition, known, search)
    if not search.files and not search.problems:
        raise CardioDiTError(
            f"None of {', '.join(PARTITIONS)} with folders of subjects was found in {root}. "
            "Is it the folder that M&Ms was unpacked into?"
        )
    return search


def _add_mnms(folder: Path, partition: str, known: dict[str, dict[str, str]], search: Search) -> None:
    name = folder.name
    image = find_image(folder, f"{name}_sa", search)
    if image is None:
        return
    row = _row_of(folder, known, search)
    mask = find_one(folder, f"{name}_sa_gt")
    if mask is not None and partition == MISLEADING:
        search.notes.append(f"{mask}: left out, the labels of the unlabelled part mislead")
        mask = None
    search.files.append(
        CineFile(
            image,
            name,
            label=row.get("Pathology", ""),
            mask=mask,
            ed_frame=frame_number(row.get("ED", ""), f"table, {name}", "ED", search, first=0),
            es_frame=frame_number(row.get("ES", ""), f"table, {name}", "ES", search, first=0),
            mask_order=MNMS_ORDER if mask else "",
            vendor=row.get("Vendor", ""),
            centre=row.get("Centre", ""),
            partition=partition.lower().replace("/", " "),
        )
    )


def find_mnms2(source: Path, table: Path | None = None) -> Search:
    root = source / "MnM2" if (source / "MnM2").is_dir() else source
    if not (root / "dataset").is_dir():
        raise CardioDiTError(f"There is no folder 'dataset' in {root}. Is it the folder that M&Ms-2 was unpacked into?")
    search: Search[CineFile] = Search()
    known = _table_of(root, table, "SUBJECT_CODE", ("DISEASE", "VENDOR"))
    rows = {code.zfill(3): row for code, row in known.items()}
    for folder in subfolders(root / "dataset"):
        name = folder.name
        image = find_image(folder, f"{name}_SA_CINE", search)
        if image is None:
            continue
        row = _row_of(folder, rows, search)
        search.files.append(
            CineFile(
                image,
                name,
                label=row.get("DISEASE", ""),
                ed_mask=find_one(folder, f"{name}_SA_ED_gt"),
                es_mask=find_one(folder, f"{name}_SA_ES_gt"),
                ed_image=find_one(folder, f"{name}_SA_ED"),
                es_image=find_one(folder, f"{name}_SA_ES"),
                mask_order=MNMS_ORDER,
                vendor=row.get("VENDOR", ""),
                partition=next((part for part, last in SPLITS if name.isdecimal() and int(name) <= last), ""),
            )
        )
    return search


def _row_of(folder: Path, known: dict[str, dict[str, str]], search: Search) -> dict[str, str]:
    """What the table says of a subject; a problem where it says nothing."""
    if folder.name not in known:
        search.problems.append(f"{folder}: the table has no row for {folder.name}")
    return known.get(folder.name, {})


def _table_of(root: Path, table: Path | None, key: str, columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The cohort's CSV: the one given, or the only one that lies in its folder or beside it."""
    if table is None:
        found = sorted({*root.glob("*.csv"), *root.parent.glob("*.csv")})
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise CardioDiTError(
                f"One table of information (CSV) was expected in {root}, found {names}. Give it by --table."
            )
        table = found[0]
    return subject_table(table, key, columns)
