"""What a search through a cohort's folders finds, before any voxel is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import read_table

ACDC_ORDER = "RV=1 MYO=2 LV=3"
MNMS_ORDER = "LV=1 MYO=2 RV=3"


@dataclass
class CineFile:
    """A short-axis cine and what its cohort says of it. Frames count from 0.

    Args:
        image: the file, or for DICOM the folder.
        subject: whose heart it is.
        label: group or pathology, as the cohort spells it.
        mask: labels of every frame (or of the labelled ones, the others empty).
        ed_mask, es_mask: labels of one frame each.
        ed_image, es_image: one frame each as a file of its own, by which the frame's number can be found.
        partition: the cohort's own split.
    """

    image: Path
    subject: str
    label: str = ""
    mask: Path | None = None
    ed_mask: Path | None = None
    es_mask: Path | None = None
    ed_image: Path | None = None
    es_image: Path | None = None
    ed_frame: int | None = None
    es_frame: int | None = None
    mask_order: str = ""
    vendor: str = ""
    centre: str = ""
    partition: str = ""
    other: dict[str, str] = field(default_factory=dict)


@dataclass
class CTFile:
    """A CT and what its cohort says of it.

    Args:
        image: the NIfTI or npz file, or for DICOM the patient's folder.
        subject: whose chest it is.
        label: group or finding, as the cohort spells it.
        mask: labels, as a NIfTI file on the image's grid.
        partition: the cohort's own split.
    """

    image: Path
    subject: str
    label: str = ""
    mask: Path | None = None
    partition: str = ""
    other: dict[str, str] = field(default_factory=dict)


File = TypeVar("File", bound=CineFile | CTFile)


@dataclass
class Search(Generic[File]):
    """The files of a cohort, and what was wrong or noteworthy on the way.

    `no_split`: why they cannot be split by patient, but only as their cohort did; empty where they can.
    """

    files: list[File] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    no_split: str = ""


def stem(path: Path) -> str:
    """The name without `.nii` or `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def find_one(folder: Path, *names: str) -> Path | None:
    """The first of some names that is there, compressed or not."""
    for name in names:
        for ending in (".nii.gz", ".nii"):
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    return None


def find_image(folder: Path, name: str, search: Search) -> Path | None:
    """A subject's cine; a problem where it is missing."""
    image = find_one(folder, name)
    if image is None:
        search.problems.append(f"{folder}: there is no {name}.nii.gz in it")
    return image


def subject_table(path: Path, key: str, columns: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """A cohort's table by subject."""
    return {row[key]: row for _, row in read_table(path, (key, *columns))}


def frame_number(text: str, whose: str, name: str, search: Search, first: int) -> int | None:
    """A frame's number counted from 0; `first` is what the cohort calls the first."""
    if not text:
        return None
    try:
        return int(float(text)) - first
    except ValueError:
        search.problems.append(f"{whose}: {name}={text!r} is no frame number")
        return None


def subfolders(source: Path) -> list[Path]:
    if not source.is_dir():
        raise CardioDiTError(f"{source} is not a folder.")
    return sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
