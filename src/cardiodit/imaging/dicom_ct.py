"""A patient's CT in DICOM files: of all series the largest, in Hounsfield units, its slices evenly one above the other.

What is no CT, such as the radiographs of LIDC-IDRI, is named and left out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.dicom import DicomVolume
from cardiodit.imaging.dicom_pictures import Picture, affine_of, finder_of, import_pydicom, picture_of, voxels_of
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import whole_hounsfield
from cardiodit.imaging.volume import Volume

SAME_PLACE = 0.02  # mm along the normal; thin slices lie half a millimetre apart
SAME_DIRECTION = 2  # decimals of a direction cosine
UNEVEN = 0.1  # of the slice distance
TILTED = 0.5  # degrees between the way from slice to slice and their normal
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
MOST_NAMED = 5


@dataclass
class Scan:
    """What lies in a patient's folder.

    Args:
        stacks: pictures of CT by series, orientation and matrix.
        unscaled: files that do not say how their numbers become Hounsfield units.
        others: what is no CT, or no slice of one, and how many files it has.
        strangers: files that are no DICOM.
    """

    stacks: dict[tuple, list[Picture]] = field(default_factory=lambda: defaultdict(list))
    unscaled: set[Path] = field(default_factory=set)
    others: Counter[str] = field(default_factory=Counter)
    strangers: list[Path] = field(default_factory=list)


def read_ct(folder: Path | str) -> DicomVolume:
    """The largest CT series below a folder as `(H, W, D)` int16: H along a row's pixels, W along a column's.

    Everything that was left out is in the notes. Slices that are missing, double, shifted or tilted are an error that
    names them.
    """
    folder = Path(folder)
    scan = _look_through(folder)
    notes = [f"left out {name}, {_number(n, 'file')}: no slices of a CT" for name, n in scan.others.items()]
    if not any(len(stack) > 1 for stack in scan.stacks.values()):
        raise CardioDiTError(". ".join([f"No CT series of two slices or more was found in {folder}", *notes]) + ".")
    if scan.strangers:
        some = _some(path.name for path in scan.strangers)
        notes.append(f"passed over {_number(len(scan.strangers), 'file')} of another kind than DICOM: {some}")
    stack, others = _choose(scan)
    notes += others
    _check_stack(stack, scan, folder)
    along = (stack[-1].position - stack[0].position) / (len(stack) - 1)
    try:
        voxels, rounded = whole_hounsfield(voxels_of([[picture] for picture in stack])[..., 0])
    except CardioDiTError as error:
        raise CardioDiTError(f"The CT in {folder} cannot be used. {error}") from error
    return DicomVolume(Volume(voxels, Geometry.of_affine(affine_of(stack[0], along))), notes + rounded)


def _look_through(folder: Path) -> Scan:
    scan = Scan()
    problems = Problems(f"Files in {folder} cannot be read")
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            data = _header(path)
        except CardioDiTError as error:
            problems.add(str(error))
            continue
        if data is None:
            scan.strangers.append(path)
        elif "DirectoryRecordSequence" not in data:
            _add(path, data, scan)
    problems.raise_if_any("Copy them anew from their source, or take them out.")
    return scan


def _header(path: Path) -> Any | None:
    """None for what is no DICOM and does not claim to be."""
    pydicom = import_pydicom()
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError as error:
        if path.suffix.lower() in DICOM_ENDINGS:
            raise CardioDiTError(f"{path} is damaged: it does not begin as a DICOM file does.") from error
        return None
    except (OSError, EOFError, ValueError, NotImplementedError) as error:
        raise CardioDiTError(f"{path} is damaged or was cut off ({error}).") from error


def _add(path: Path, data: Any, scan: Scan) -> None:
    """The pictures of a file to their stack, or the file to the others."""
    modality = str(data.get("Modality", "") or "file of unknown modality")
    name = f"{modality} {_described(data)}"
    if modality != "CT" or "Rows" not in data:
        scan.others[name] += 1
        return
    is_scout = "LOCALIZER" in (data.get("ImageType") or [])
    pictures = [picture_of(path, data, frame) for frame in range(int(data.get("NumberOfFrames", 1) or 1))]
    if is_scout or None in pictures:
        scan.others[f"{name} ({'localizer' if is_scout else 'without a place in the patient'})"] += 1
        return
    for frame, picture in enumerate(filter(None, pictures)):
        direction = picture.direction.round(SAME_DIRECTION).ravel() + 0.0
        scan.stacks[(picture.series, *direction, *picture.shape, *np.round(picture.pixel, 3))].append(picture)
        if finder_of(data, frame)("RescaleIntercept") is None:
            scan.unscaled.add(path)


def _described(data: Any) -> str:
    return f"series {data.get('SeriesNumber', None) or 'without a number'} {str(data.get('SeriesDescription', ''))!r}"


def _choose(scan: Scan) -> tuple[list[Picture], list[str]]:
    """The stack with most slices, of equal ones the earliest series, from one end to the other."""
    ordered = sorted(
        scan.stacks.values(), key=lambda stack: (-len(stack), stack[0].series_number, str(stack[0].series))
    )
    chosen, rest = ordered[0], ordered[1:]
    notes = []
    if rest:
        others = "; ".join(map(_said, rest))
        notes.append(f"took the largest of {len(ordered)} CT series, {_said(chosen)}, and left out {others}")
    return sorted(chosen, key=lambda picture: picture.height), notes


def _said(stack: list[Picture]) -> str:
    return f"series {stack[0].series_number} {stack[0].description!r} of {_number(len(stack), 'slice')}"


def _check_stack(stack: list[Picture], scan: Scan, folder: Path) -> None:
    problems = Problems(f"The CT in {folder}, {_said(stack)}, is no even stack of slices in Hounsfield units")
    if unscaled := sorted({picture.path.name for picture in stack if picture.path in scan.unscaled}):
        problems.add(f"{_some(unscaled)}: no RescaleIntercept says how the numbers become Hounsfield units")
    for sentence in _uneven(stack):
        problems.add(sentence)
    if not problems.found:
        for sentence in _askew(stack):
            problems.add(sentence)
    problems.raise_if_any("Add what is missing, or leave this patient out.")


def _uneven(stack: list[Picture]) -> list[str]:
    """Slices that are double, and gaps unlike the others."""
    gaps = np.diff([picture.height for picture in stack])
    apart = gaps[gaps > SAME_PLACE]
    distance = float(np.median(apart)) if len(apart) else 0.0
    sentences = []
    for (below, above), gap in zip(pairwise(stack), gaps, strict=True):
        names = f"{below.path.name} and {above.path.name}"
        if gap <= SAME_PLACE:
            sentences.append(f"{names} lie at the same place, {below.height:.2f} mm: keep one of them")
        elif abs(gap - distance) > UNEVEN * distance:
            missing = ": slices are missing between them" if gap > distance else ""
            sentences.append(f"{names} lie {gap:.2f} mm apart, most slices {distance:.2f} mm{missing}")
    more = len(sentences) - MOST_NAMED
    return sentences if more <= 0 else [*sentences[:MOST_NAMED], f"{more} more pairs of slices are like these"]


def _askew(stack: list[Picture]) -> list[str]:
    """Slices that do not lie straight above each other: a tilted gantry, or a table that moved."""
    first, last = stack[0], stack[-1]
    way = last.position - first.position
    tilt = float(np.degrees(np.arccos(np.clip(way @ first.normal / np.linalg.norm(way), -1, 1))))
    if tilt > TILTED:
        return [
            f"each slice lies beside the one below it: the gantry was tilted by {tilt:.1f} degrees. Straighten the "
            "volume with a tool that resamples tilted CT, such as dcm2niix, and prepare its NIfTI file instead"
        ]
    heights = np.array([picture.height for picture in stack]) - first.height
    on_line = first.position + np.outer(heights / heights[-1], way)
    aside = np.linalg.norm(np.array([picture.position for picture in stack]) - on_line, axis=1)
    worst = int(aside.argmax())
    if aside[worst] > min(first.pixel):
        return [f"{stack[worst].path.name} lies {aside[worst]:.1f} mm beside the line of the others"]
    return []


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MOST_NAMED]) + (" and more" if len(listed) > MOST_NAMED else "")
