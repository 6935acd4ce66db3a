"""UK Biobank's convention, and any folder of one's own, of NIfTI or DICOM files."""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.found import (
    CineFile,
    Search,
    find_one,
    frame_number,
    stem,
    subfolders,
    subject_table,
)

UKBB_ORDER = "LV=1 MYO=2 RV=3"
MASK_WORDS = ("gt", "seg", "segs", "segmentation", "segmentations", "mask", "masks", "label", "labels", "labelstr")
GENERAL_FOLDERS = ("image", "images", "imagestr", "imagests", "cine", "cines", "nifti", "data", *MASK_WORDS)


def find_ukbb(source: Path, table: Path | None = None) -> Search:
    """`ID/sa.nii.gz` with `seg_sa.nii.gz`; a table with a column `subject` may add labels."""
    search: Search[CineFile] = Search()
    for folder in subfolders(source):
        image = find_one(folder, "sa")
        if image is None:
            search.notes.append(f"{folder}: left out, there is no sa.nii.gz in it")
            continue
        mask = find_one(folder, "seg_sa")
        search.files.append(CineFile(image, folder.name, mask=mask, mask_order=UKBB_ORDER if mask else ""))
    if not search.files:
        raise CardioDiTError(f"No folder with a sa.nii.gz was found in {source}.")
    _add_table(search, table)
    return search


def find_folder(source: Path, table: Path | None = None) -> Search:
    """Every NIfTI file at any depth that is no mask.

    Its subject is the first folder below `source`, or its own name where there is none but such as `images`. A file is
    a mask when a word of its name or folder is one of `MASK_WORDS`; it belongs to the image of the same name without
    that word, in the same folder or else anywhere.
    """
    images, notes = find_niftis(source)
    if not images:
        raise CardioDiTError(f"No NIfTI file (.nii, .nii.gz) with an image was found in {source}.")
    files = [CineFile(path, subject_of(path.relative_to(source)), mask=mask) for path, mask in images.items()]
    search = Search(files, notes=notes)
    _add_table(search, table)
    return search


def find_niftis(source: Path) -> tuple[dict[Path, Path | None], list[str]]:
    """Every image at any depth with its mask, if there is one, and a note for each mask that is no image's."""
    if not source.is_dir():
        raise CardioDiTError(f"{source} is not a folder.")
    files = sorted(path for path in source.rglob("*") if path.name.endswith((".nii", ".nii.gz")) and path.is_file())
    masks = [path for path in files if _is_mask(path.relative_to(source))]
    left = set(masks)
    images = {path: _mask_of(path, masks) for path in files if path not in left}
    spare = sorted(left - set(images.values()))
    return images, [f"{mask}: left out, it looks like a mask and no image has its name" for mask in spare]


def subject_of(inner: Path) -> str:
    """The first folder that is no general one, or the file's own name."""
    return next((part for part in inner.parts[:-1] if part.lower() not in GENERAL_FOLDERS), stem(inner))


def _words(name: str) -> list[str]:
    return name.replace("-", "_").split("_")


def _is_mask(inner: Path) -> bool:
    return any(word.lower() in MASK_WORDS for part in (*inner.parts[:-1], stem(inner)) for word in _words(part))


def _mask_of(image: Path, masks: list[Path]) -> Path | None:
    """The mask with the image's name, beside it or, if there is just one such, elsewhere."""
    fitting = [mask for mask in masks if _bare(mask) == _bare(image)]
    beside = [mask for mask in fitting if mask.parent == image.parent]
    chosen = beside or fitting
    return chosen[0] if len(chosen) == 1 else None


def _bare(path: Path) -> str:
    return "_".join(word for word in _words(stem(path)) if word.lower() not in MASK_WORDS)


def _add_table(search: Search, table: Path | None) -> None:
    """What a user's own table says of each subject: `label`, `vendor`, `centre`, `ed_frame`, `es_frame`, and others."""
    if table is None:
        return
    rows = subject_table(table, "subject")
    for file in search.files:
        row = dict(rows.get(file.subject, {}))
        if not row:
            search.problems.append(f"{file.image}: the table {table} has no row for the subject {file.subject}")
        row.pop("subject", None)
        for name in ("label", "vendor", "centre", "mask_order"):
            setattr(file, name, row.pop(name, "") or getattr(file, name))
        for name in ("ed_frame", "es_frame"):
            setattr(file, name, frame_number(row.pop(name, ""), f"table, {file.subject}", name, search, first=0))
        file.other = row
    spare = sorted(set(rows) - {file.subject for file in search.files})
    search.notes += [f"{table}: the subject {subject} has no image" for subject in spare]


def find_dicom(source: Path, table: Path | None = None) -> Search:
    """One folder of DICOM files, at any depth, for each subject."""
    search = Search([CineFile(folder, folder.name) for folder in subfolders(source)])
    if not search.files:
        raise CardioDiTError(f"No folder was found in {source}: one for each subject was expected.")
    _add_table(search, table)
    return search
