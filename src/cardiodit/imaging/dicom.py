"""Cine and CT series in DICOM files, put together by where and when each picture was taken.

Names, dates and every other attribute stay behind: only voxels and geometry are read.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.dicom_pictures import (
    PHASE_KEYS,
    Picture,
    affine_of,
    import_pydicom,
    picture_of,
    voxels_of,
)
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.volume import Volume

SAME_PLACE = 0.5  # mm along the normal
SAME_DIRECTION = 2  # decimals of a direction cosine
UNEVEN = 0.1  # of the slice distance
SHORT_AXIS_WORDS = ("sax", "short", "sa_", "_sa", "kurzachse")


@dataclass(frozen=True)
class DicomVolume:
    """A volume and what was noteworthy in putting it together."""

    volume: Volume
    notes: list[str]


def read_dicom(folder: Path | str) -> DicomVolume:
    """The short-axis cine `(H, W, D, T)`, or the CT `(H, W, D)`, among all DICOM files below a folder.

    Slices are ordered along the normal of their plane, phases by trigger time or what else tells them. Where slices
    have unequal numbers of phases, that is an error that lists them.
    """
    folder = Path(folder)
    pictures = list(_pictures(folder))
    if not pictures:
        raise CardioDiTError(f"No DICOM file with an image and its place in the patient was found in {folder}.")
    stack, notes = _choose_stack(pictures, folder)
    slices, again = _slices(stack)
    notes += again
    _check_equal(slices, folder)
    ordered = [_in_time(pictures_of_slice, folder) for pictures_of_slice in slices]
    geometry, more = _geometry(ordered, folder)
    voxels = voxels_of(ordered)
    return DicomVolume(Volume(voxels if voxels.shape[3] > 1 else voxels[..., 0], geometry), notes + more)


def _pictures(folder: Path) -> Iterator[Picture]:
    pydicom = import_pydicom()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue  # a DICOMDIR's neighbour, a text
        if "Rows" not in data:
            continue
        for frame in range(int(data.get("NumberOfFrames", 1) or 1)):
            picture = picture_of(path, data, frame)
            if picture is not None:
                yield picture


def _choose_stack(pictures: list[Picture], folder: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of one orientation and matrix that are a short axis, or else those with most slices."""
    stacks: dict[tuple, list[Picture]] = defaultdict(list)
    for picture in pictures:
        key = (*picture.direction.round(SAME_DIRECTION).ravel() + 0.0, *picture.shape, *np.round(picture.pixel, 2))
        stacks[key].append(picture)

    def rank(stack: list[Picture]) -> tuple[bool, bool, int, int]:
        places = len({round(p.height / SAME_PLACE) for p in stack})
        is_named = any(word in p.description for p in stack[:1] for word in SHORT_AXIS_WORDS)
        return places > 1 and len(stack) > places, is_named, places, len(stack)

    ordered = sorted(stacks.values(), key=rank, reverse=True)
    chosen, rest = ordered[0], ordered[1:]
    notes = []
    if rest:
        others = ", ".join(sorted({p.description or "without a description" for stack in rest for p in stack}))
        name = chosen[0].description or "without a description"
        notes.append(f"took the stack {name!r} of {len(chosen)} pictures and left others out: {others}")
    if rest and rank(rest[0]) == rank(chosen):
        raise CardioDiTError(
            f"{folder} holds several stacks that may be the short axis, each of {len(chosen)} pictures. Keep one."
        )
    return chosen, notes


def _slices(stack: list[Picture]) -> tuple[list[list[Picture]], list[str]]:
    """Pictures of each place along the normal; of a place that was taken again, the last series."""
    stack = sorted(stack, key=lambda picture: picture.height)
    slices: list[list[Picture]] = []
    for picture in stack:
        if slices and picture.height - slices[-1][0].height < SAME_PLACE:
            slices[-1].append(picture)
        else:
            slices.append([picture])
    notes = []
    for number, pictures in enumerate(slices):
        series = sorted({(p.series_number, p.series) for p in pictures})
        if len(series) > 1:
            notes.append(f"slice {number} was taken {len(series)} times; the last was used")
            slices[number] = [p for p in pictures if (p.series_number, p.series) == series[-1]]
    return slices, notes


def _check_equal(slices: list[list[Picture]], folder: Path) -> None:
    if len({len(pictures) for pictures in slices}) == 1:
        return
    problems = Problems(f"The slices in {folder} have unequal numbers of phases")
    for number, pictures in enumerate(slices):
        problems.add(f"slice {number} at {pictures[0].height:.1f} mm has {len(pictures)} ({pictures[0].path.name}, …)")
    problems.raise_if_any("Remove the incomplete slices or add the missing files.")


def _in_time(pictures: list[Picture], folder: Path) -> list[Picture]:
    for key in PHASE_KEYS:
        values = [picture.phase.get(key) for picture in pictures]
        if None not in values and len(set(values)) == len(values):
            return sorted(pictures, key=lambda picture: picture.phase[key])
    raise CardioDiTError(
        f"The {len(pictures)} pictures of the slice at {pictures[0].height:.1f} mm in {folder} cannot be ordered in "
        f"time: none of {', '.join(PHASE_KEYS)} is there with different values."
    )


def _geometry(slices: list[list[Picture]], folder: Path) -> tuple[Geometry, list[str]]:
    notes = []
    first, last = slices[0][0], slices[-1][0]
    heights = np.array([pictures[0].height for pictures in slices])
    if len(slices) > 1:
        gaps = np.diff(heights)
        distance = float(np.median(gaps))
        if np.abs(gaps - distance).max() > UNEVEN * distance:
            listed = ", ".join(f"{gap:.1f}" for gap in gaps)
            raise CardioDiTError(f"The slices in {folder} lie {listed} mm apart: one seems to be missing or double.")
        along = (last.position - first.position) / (len(slices) - 1)
    else:
        if first.thickness is None:
            raise CardioDiTError(f"{first.path} is a single slice that does not say how thick it is.")
        along = first.normal * first.thickness
    frame_time, beat = _frame_time(slices), first.beat
    frames = len(slices[0])
    if frame_time and beat and abs(frame_time * frames * 1000 / beat - 1) > 0.1:
        notes.append(f"its {frames} frames last {frame_time * frames:.2f} s, a beat lasts {beat / 1000:.2f} s")
    return Geometry.of_affine(affine_of(first, along), frame_time), notes


def _frame_time(slices: list[list[Picture]]) -> float | None:
    """Seconds between frames, by the trigger times of all slices or by the beat that they divide."""
    frames = len(slices[0])
    if frames < 2:
        return None
    steps = [
        b.phase["TriggerTime"] - a.phase["TriggerTime"]
        for pictures in slices
        for a, b in pairwise(pictures)
        if "TriggerTime" in a.phase and "TriggerTime" in b.phase
    ]
    if steps and np.median(steps) > 0:
        return float(np.median(steps)) / 1000
    beat = slices[0][0].beat
    return beat / frames / 1000 if beat else None
