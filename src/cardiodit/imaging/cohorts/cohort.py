"""The registry of cohorts that `cardiodit prepare` offers, and tools for finding a cohort's files.

A new cohort is one module in this folder. It registers a function that lists the files without reading a voxel, and
imports numpy and the like only inside functions, because `cardiodit prepare --help` imports every cohort:

    @register_cohort("mine", "cine", title="folders NNN/ with cine.nii.gz")
    def find_mine(source: Path, table: Path | None = None) -> Search:
        return Search([CohortFile(folder / "cine.nii.gz", folder.name) for folder in subfolders(source)])
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.label_order import HEARTS

if TYPE_CHECKING:
    from cardiodit.imaging.geometry import Triple

MASK_WORDS = ("gt", "seg", "segs", "segmentation", "segmentations", "mask", "masks", "label", "labels", "labelstr")
RESERVED = ("image", "split", "partition")  # columns that every manifest has, and no table may change
GENERAL_FOLDERS = ("image", "images", "imagestr", "imagests", "cine", "cines", "nifti", "data", *MASK_WORDS)


@dataclass
class CohortFile:
    """A cine or CT and what its cohort records about it. Frames count from 0; fields from `ed_mask` on are for cines.

    Args:
        image: NIfTI or npz file, or the folder of a DICOM series.
        subject: patient identifier.
        label: group or diagnosis, spelled as in the cohort.
        mask: label map on the image's grid; for a cine of all frames, or of the labelled ones with the others empty.
        partition: the cohort's own split.
        other: further columns of the manifest.
        problems: full sentences; a file with problems cannot be used.
        ed_mask, es_mask: label maps of one frame each.
        ed_image, es_image: separate files of one frame each, from which the frame number can be found.
        mask_order: label order, such as "LV=1 MYO=2 RV=3".
    """

    image: Path
    subject: str
    label: str = ""
    mask: Path | None = None
    partition: str = ""
    other: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ed_mask: Path | None = None
    es_mask: Path | None = None
    ed_image: Path | None = None
    es_image: Path | None = None
    ed_frame: int | None = None
    es_frame: int | None = None
    mask_order: str = ""
    vendor: str = ""
    centre: str = ""


@dataclass
class Search:
    """The files of a cohort.

    Args:
        files: every cine or CT, in the order of the manifest.
        problems: what is wrong with files or folders that are not in `files`.
        notes: what a reader of the report should know.
        no_split: why the files cannot be split by patient, only by the cohort's own split; empty if they can.
    """

    files: list[CohortFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    no_split: str = ""


Find = Callable[[Path, Path | None], Search]


@dataclass(frozen=True)
class Cohort:
    """A cohort that `cardiodit prepare NAME` can read.

    Args:
        name: as typed on the command line.
        kind: what its files hold.
        title: one line for `--help`: how the files are laid out.
        rules: how subjects and masks are recognised, for `--help`, if that needs more than a line.
        find: function of the cohort's folder and an optional table (CSV); lists the files.
        table: columns that `--table` may or must have, for `--help`; empty if there is no table.
        preset: CT only: preset whose field of view the report compares with.
        npz_spacing: mm between the voxels of npz files, which do not store it.
    """

    name: str
    kind: Literal["cine", "ct"]
    title: str
    find: Find
    table: str = ""
    preset: str = ""
    npz_spacing: "Triple | None" = None
    rules: str = ""


COHORTS: dict[str, Cohort] = {}


def register_cohort(
    name: str,
    kind: Literal["cine", "ct"],
    *,
    title: str,
    table: str = "",
    preset: str = "",
    npz_spacing: "Triple | None" = None,
    rules: str = "",
) -> Callable[[Find], Find]:
    """Decorate a search function so that `cardiodit prepare NAME` uses it. The arguments are those of `Cohort`."""
    if kind == "ct" and not preset:
        raise ValueError(f"The CT cohort {name!r} needs a preset for its report.")

    def register(find: Find) -> Find:
        COHORTS[name] = Cohort(name, kind, title, find, table, preset, npz_spacing, rules)
        return find

    return register


def find_cohort(name: str) -> Cohort:
    """Return the registered cohort of a name."""
    if name not in COHORTS:
        raise CardioDiTError(f"There is no layout {name!r}; choose from {', '.join(COHORTS)}.")
    return COHORTS[name]


def stem(path: Path) -> str:
    """Return the file name without `.nii`, `.nii.gz` or `.npz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".npz")


def subfolders(source: Path) -> list[Path]:
    """List the visible folders in `source`, sorted."""
    if not source.is_dir():
        raise CardioDiTError(f"{source} is not a folder.")
    return sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))


def visible_files(folder: Path, *endings: str) -> list[Path]:
    """List the files at any depth with one of these endings, sorted, without hidden ones such as `._a` of a Mac."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.endswith(endings or "")
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def find_one(folder: Path, name: str) -> Path | None:
    """Return `name.nii.gz` or `name.nii` in a folder, or None."""
    paths = (folder / f"{name}{ending}" for ending in (".nii.gz", ".nii"))
    return next((path for path in paths if path.is_file()), None)


def find_image(folder: Path, name: str, search: Search) -> Path | None:
    """Return the image like `find_one`; a missing image is a problem."""
    image = find_one(folder, name)
    if image is None:
        search.problems.append(f"{folder}: there is no {name}.nii.gz in it")
    return image


def find_niftis(source: Path) -> tuple[dict[Path, Path | None], list[str]]:
    """Find every NIfTI image at any depth and its mask, if any; add a note for each mask without an image.

    A file is a mask if a word of its name or folder is one of `MASK_WORDS`. It belongs to the image with the same name
    without that word, in the same folder or else anywhere.
    """
    if not source.is_dir():
        raise CardioDiTError(f"{source} is not a folder.")
    files = visible_files(source, ".nii", ".nii.gz")
    masks = {path for path in files if _is_mask(path.relative_to(source))}
    by_name: dict[str, list[Path]] = {}
    for path in sorted(masks):
        by_name.setdefault(_bare(path), []).append(path)
    images = {path: _mask_of(path, by_name.get(_bare(path), [])) for path in files if path not in masks}
    unused = sorted(masks - set(images.values()))
    return images, [f"{mask}: left out, it looks like a mask and no image has its name" for mask in unused]


def subject_of(inner: Path) -> str:
    """Return the first folder of a relative path that is not a general one such as `images`, or the file's own name."""
    return next((part for part in inner.parts[:-1] if part.lower() not in GENERAL_FOLDERS), stem(inner))


def _words(name: str) -> list[str]:
    return name.replace("-", "_").split("_")


def _is_mask(inner: Path) -> bool:
    return any(word.lower() in MASK_WORDS for part in (*inner.parts[:-1], stem(inner)) for word in _words(part))


def _bare(path: Path) -> str:
    """Return the name of a file without the words that make it a mask."""
    return "_".join(word for word in _words(stem(path)) if word.lower() not in MASK_WORDS)


def _mask_of(image: Path, matching: list[Path]) -> Path | None:
    """Return the mask of the image's name that lies beside it or, if there is only one, elsewhere."""
    chosen = [mask for mask in matching if mask.parent == image.parent] or matching
    return chosen[0] if len(chosen) == 1 else None


def read_subjects(path: Path, key: str, columns: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """Read a cohort's table as rows by subject; `key` is the column of subjects, `columns` must exist too."""
    from cardiodit.imaging.manifest import read_table

    rows: dict[str, dict[str, str]] = {}
    problems = Problems(f"The table {path} cannot be used")
    for line, row in read_table(path, (key, *columns)):
        if rows.setdefault(row[key], row) is not row:
            problems.add(f"line {line}: there is an earlier row for the {key} {row[key]}")
    problems.raise_if_any(f"Keep one row for each {key}.")
    return rows


def add_user_table(search: Search, table: Path | None) -> None:
    """Add the columns of a user's own table, by `subject`; unknown columns are passed on to the manifest.

    Paths of masks start at the table's folder; they replace masks that were found by their names.
    """
    if table is None:
        return
    rows = read_subjects(table, "subject")
    if overwritten := [name for name in RESERVED if name in next(iter(rows.values()))]:
        search.notes.append(f"{table}: not copied, because the manifest has its own: {', '.join(overwritten)}")
    for file in search.files:
        if file.subject not in rows:
            file.problems.append(f"{file.image}: the table {table} has no row for the subject {file.subject}")
            continue
        row = {name: cell for name, cell in rows[file.subject].items() if name not in ("subject", *RESERVED)}
        for name in ("label", "vendor", "centre", "mask_order"):
            setattr(file, name, row.pop(name, "") or getattr(file, name))
        for name in HEARTS:
            if cell := row.pop(name, ""):
                mask = table.parent / cell
                setattr(file, name, mask if mask.is_file() else None)
                if not mask.is_file():
                    file.problems.append(f"{table}, subject {file.subject}: the {name} {cell} ({mask}) does not exist")
        for name in ("ed_frame", "es_frame"):
            where = f"{table}, subject {file.subject}: {name}"
            setattr(file, name, parse_frame(row.pop(name, ""), 0, where, file.problems))
        file.other = row
    unused = sorted(set(rows) - {file.subject for file in search.files})
    search.notes += [f"{table}: the subject {subject} has no image" for subject in unused]


def parse_frame(text: str, first: int, where: str, problems: list[str]) -> int | None:
    """Return a frame number counted from 0, given the cohort's number of the first frame; None if empty or wrong."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        problems.append(f"{where}={text!r} is not a frame number, a whole number")
        return None
    return int(number) - first
