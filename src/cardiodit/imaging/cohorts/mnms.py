"""M&Ms and M&Ms-2: several vendors and centres, with a table of information.

M&Ms has `{Training/{Labeled,Unlabeled},Validation,Testing}/ID/ID_sa.nii.gz` with labels in two frames of a 4D mask.
M&Ms-2 has `dataset/NNN/` with the cine and, as separate files, its end-diastolic and end-systolic frames.
"""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.cohort import (
    CohortFile,
    Search,
    find_image,
    find_one,
    parse_frame,
    read_subjects,
    register_cohort,
    subfolders,
)
from cardiodit.imaging.label_order import MNMS_ORDER

PARTITIONS = ("Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
MISLEADING = "Training/Unlabeled"  # its masks are empty or wrong
LAST_SUBJECT = (("training", 160), ("validation", 200), ("testing", 360))  # of each partition of M&Ms-2
TABLE = "the cohort's information table; by default the only CSV in or beside its folder"


@register_cohort("mnms", "cine", title="M&Ms as published: OpenDataset/{Training,Validation,Testing}/", table=TABLE)
def find_mnms(source: Path, table: Path | None = None) -> Search:
    """List the subjects of all partitions of M&Ms."""
    root = source / "OpenDataset" if (source / "OpenDataset").is_dir() else source
    search = Search()
    rows = _read_information(root, table, "External code", ("Vendor", "Centre", "ED", "ES"))
    for partition in PARTITIONS:
        for folder in subfolders(root / partition) if (root / partition).is_dir() else ():
            _add_mnms(folder, partition, rows, search)
    if not search.files and not search.problems:
        raise CardioDiTError(
            f"None of {', '.join(PARTITIONS)} with folders of subjects was found in {root}. "
            "Is it the folder that M&Ms was unpacked into?"
        )
    return search


def _add_mnms(folder: Path, partition: str, rows: dict[str, dict[str, str]], search: Search) -> None:
    name = folder.name
    image = find_image(folder, f"{name}_sa", search)
    if image is None:
        return
    row, problems = _row_of(folder, rows)
    mask = find_one(folder, f"{name}_sa_gt")
    if mask is not None and partition == MISLEADING:
        search.notes.append(f"{mask}: left out, the labels of the unlabelled part are misleading")
        mask = None
    search.files.append(
        CohortFile(
            image,
            name,
            label=row.get("Pathology", ""),
            mask=mask,
            partition=partition.lower().replace("/", " "),
            problems=problems,
            ed_frame=parse_frame(row.get("ED", ""), 0, f"table, {name}: ED", problems),
            es_frame=parse_frame(row.get("ES", ""), 0, f"table, {name}: ES", problems),
            mask_order=MNMS_ORDER if mask else "",
            vendor=row.get("Vendor", ""),
            centre=row.get("Centre", ""),
            other=_body_size(row),
        )
    )


@register_cohort("mnms2", "cine", title="M&Ms-2 as published: MnM2/dataset/NNN/", table=TABLE)
def find_mnms2(source: Path, table: Path | None = None) -> Search:
    """List the subjects of M&Ms-2."""
    root = source / "MnM2" if (source / "MnM2").is_dir() else source
    if not (root / "dataset").is_dir():
        raise CardioDiTError(f"There is no folder 'dataset' in {root}. Is it the folder that M&Ms-2 was unpacked into?")
    search = Search()
    by_code = _read_information(root, table, "SUBJECT_CODE", ("DISEASE", "VENDOR"))
    rows = {code.zfill(3): row for code, row in by_code.items()}
    for folder in subfolders(root / "dataset"):
        name = folder.name
        image = find_image(folder, f"{name}_SA_CINE", search)
        if image is None:
            continue
        row, problems = _row_of(folder, rows)
        search.files.append(
            CohortFile(
                image,
                name,
                label=row.get("DISEASE", ""),
                partition=next((part for part, last in LAST_SUBJECT if name.isdecimal() and int(name) <= last), ""),
                problems=problems,
                ed_mask=find_one(folder, f"{name}_SA_ED_gt"),
                es_mask=find_one(folder, f"{name}_SA_ES_gt"),
                ed_image=find_one(folder, f"{name}_SA_ED"),
                es_image=find_one(folder, f"{name}_SA_ES"),
                mask_order=MNMS_ORDER,
                vendor=row.get("VENDOR", ""),
                other=_body_size(row),
            )
        )
    return search


def _body_size(row: dict[str, str]) -> dict[str, str]:
    """Return height in cm and weight in kg, where the table has them."""
    columns = {name.lower(): value for name, value in row.items()}
    return {name: columns[name] for name in ("height", "weight") if columns.get(name)}


def _row_of(folder: Path, rows: dict[str, dict[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return a subject's row of the table, and a problem if there is none."""
    missing = [] if folder.name in rows else [f"{folder}: the table has no row for {folder.name}"]
    return rows.get(folder.name, {}), missing


def _read_information(root: Path, table: Path | None, key: str, columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    if table is None:
        tables = sorted({*root.glob("*.csv"), *root.parent.glob("*.csv")})
        if len(tables) != 1:
            names = ", ".join(path.name for path in tables) or "none"
            raise CardioDiTError(
                f"One table of information (CSV) was expected in {root}, found {names}. Choose one with --table."
            )
        table = tables[0]
    return read_subjects(table, key, columns)
