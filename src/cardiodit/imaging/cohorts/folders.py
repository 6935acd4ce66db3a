"""UK Biobank's layout, and your own folders of NIfTI or DICOM files."""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.cohort import (
    GENERAL_FOLDERS,
    MASK_WORDS,
    CohortFile,
    Search,
    add_user_table,
    find_niftis,
    find_one,
    register_cohort,
    subfolders,
    subject_of,
)
from cardiodit.imaging.label_order import MNMS_ORDER

UKBB_ORDER = MNMS_ORDER
TABLE = (
    "the column subject, and optionally label, vendor, centre, mask (path of a label map, relative to the table; or "
    "ed_mask and es_mask), mask_order (such as RV=1 MYO=2 LV=3), ed_frame and es_frame (frames are counted from 0); "
    "other columns are copied to the manifest"
)
FOLDER_RULES = (
    "The subject of a file is the first folder below SOURCE, without folders of a general name "
    f"({', '.join(GENERAL_FOLDERS)}); if there is none, the file's name without its ending. A file is a mask if a word "
    f"of its name or of a folder is one of {', '.join(MASK_WORDS)}; it belongs to the image with the same name without "
    "that word, such as scan_1_seg.nii.gz to scan_1.nii.gz. Hidden files are skipped"
)


@register_cohort("ukbb", "cine", title="UK Biobank: ID/sa.nii.gz with seg_sa.nii.gz", table=TABLE)
def find_ukbb(source: Path, table: Path | None = None) -> Search:
    """List the folders with a `sa.nii.gz`."""
    search = Search()
    for folder in subfolders(source):
        image = find_one(folder, "sa")
        if image is None:
            search.notes.append(f"{folder}: left out, there is no sa.nii.gz in it")
            continue
        mask = find_one(folder, "seg_sa")
        search.files.append(CohortFile(image, folder.name, mask=mask, mask_order=UKBB_ORDER if mask else ""))
    if not search.files:
        raise CardioDiTError(f"No folder with a sa.nii.gz was found in {source}.")
    add_user_table(search, table)
    return search


@register_cohort(
    "folder",
    "cine",
    title="NIfTI files in folders of any depth; a folder or a file name stands for a subject",
    table=TABLE,
    rules=FOLDER_RULES,
)
def find_folder(source: Path, table: Path | None = None) -> Search:
    """List every NIfTI file at any depth that is not a mask.

    Its subject is the first folder below `source` that has not a general name such as `images`, or else the file name.
    """
    images, notes = find_niftis(source)
    if not images:
        raise CardioDiTError(f"No NIfTI file (.nii, .nii.gz) with an image was found in {source}.")
    files = [CohortFile(path, subject_of(path.relative_to(source)), mask=mask) for path, mask in images.items()]
    search = Search(files, notes=notes)
    add_user_table(search, table)
    return search


@register_cohort(
    "dicom", "cine", title="one folder of DICOM files per subject; they are converted to NIfTI", table=TABLE
)
def find_dicom(source: Path, table: Path | None = None) -> Search:
    """List the folders in `source`, each with one subject's DICOM files at any depth."""
    search = Search([CohortFile(folder, folder.name) for folder in subfolders(source)])
    if not search.files:
        raise CardioDiTError(f"No folder was found in {source}: one for each subject was expected.")
    add_user_table(search, table)
    return search
