"""Cine and CT series in DICOM files, assembled by the position and time of each plane."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError, Problems, reading
from cardiodit.imaging.dicom_files import (
    MAGNITUDE,
    PHASE_KEYS,
    Plane,
    affine_of,
    count_frames,
    is_colour,
    planes_of,
    read_headers,
    read_voxels,
)
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import whole_hounsfield
from cardiodit.imaging.volume import Volume

SAME_PLACE = 0.5  # mm along the normal between planes of one cine slice
SAME_CT_PLACE = 0.02  # thin CT slices are half a millimetre apart
OTHER_BEAT = 0.1  # relative difference between the frames' time and the beat's that is more than rounding
UNEVEN = 0.1  # of the slice distance
TILTED = 0.5  # degrees between the line through the slices and their normal
SHORT_AXIS_WORDS = ("sax", "short", "sa_", "_sa", "kurzachse")
MOST_NAMED = 5


@dataclass(frozen=True)
class DicomVolume:
    """A volume, notes on what was chosen and left out, and the share of the beat that a cine covers, if known."""

    volume: Volume
    notes: list[str]
    beat_share: float | None = None


# ---- Cine


def read_dicom(folder: Path | str) -> DicomVolume:
    """Read the short-axis cine `(H, W, D, T)`, or a single stack `(H, W, D)`, among all DICOM files below a folder.

    Slices are ordered along their normal, phases by trigger time or the next best attribute. Slices with different
    numbers of phases are an error that lists them.
    """
    folder = Path(folder)
    headers, _ = read_headers(folder)
    colours = [path for path, data in headers if is_colour(path, data)]
    grey = [(path, data) for path, data in headers if "Rows" in data and path not in set(colours)]
    planes = [plane for path, data in grey for plane in planes_of(path, data) if plane is not None]
    if not planes:
        names = _some(path.name for path in colours)
        more = f" {_count(len(colours), 'file')} with colours cannot be used: {names}." if colours else ""
        raise CardioDiTError(f"No DICOM file with an image and a position in the patient was found in {folder}.{more}")
    stack, notes = _choose_short_axis(planes, folder)
    if colours:
        notes.append(f"left out {_count(len(colours), 'image')} with colours: {_some(path.name for path in colours)}")
    if any(plane.is_inverted for plane in stack):
        notes.append("was stored inverted (MONOCHROME1); its grey values were inverted back")
    slices, repeated = _group_slices(stack)
    if len({len(phases) for phases in slices}) > 1:
        problems = Problems(f"The slices in {folder} have different numbers of phases")
        for number, phases in enumerate(slices):
            problems.add(f"slice {number} at {phases[0].height:.1f} mm has {len(phases)} ({phases[0].path.name}, …)")
        problems.raise_if_any("Remove the incomplete slices or add the missing files.")
    slices = [_sort_phases(phases, folder) for phases in slices]
    step = _slice_step([phases[0] for phases in slices], folder)
    frames, frame_time, beat = len(slices[0]), _frame_time(slices), slices[0][0].beat
    notes += repeated
    share = frame_time * frames * 1000 / beat if frame_time and beat else None
    if share and beat and abs(share - 1) > OTHER_BEAT:
        notes.append(
            f"its {frames} frames last {share * beat / 1000:.2f} s, but a beat lasts {beat / 1000:.2f} s: "
            + ("part of the beat is missing (prospective gating)" if share < 1 else "it holds more than one beat")
            + ", so that it is not a closed cycle and peak filling and ejection rates are withheld"
        )
    voxels = read_voxels(slices, upright=True)
    geometry = Geometry.of_affine(affine_of(slices[0][0], step), frame_time)
    return DicomVolume(Volume(voxels if frames > 1 else voxels[..., 0], geometry), notes, share)


def _choose_short_axis(planes: list[Plane], folder: Path) -> tuple[list[Plane], list[str]]:
    """Return the stack of one orientation and matrix that is a short axis, or else the one with most slices."""
    stacks: dict[tuple, list[Plane]] = defaultdict(list)
    for plane in planes:
        stacks[plane.stack_key(decimals=2)].append(plane)

    def rank(stack: list[Plane]) -> tuple[bool, bool, bool, int, int]:
        places = len({round(plane.height / SAME_PLACE) for plane in stack})
        is_named = any(word in stack[0].description for word in SHORT_AXIS_WORDS)
        is_cine = places > 1 and len(stack) > places
        return is_cine, stack[0].component == MAGNITUDE, is_named, places, len(stack)

    def name(plane: Plane) -> str:
        part = "" if plane.component == MAGNITUDE else f" ({plane.component})"
        return (plane.description or "without a description") + part

    chosen, *rest = sorted(stacks.values(), key=rank, reverse=True)
    if not rest:
        return chosen, []
    if rank(rest[0]) == rank(chosen):
        raise CardioDiTError(
            f"{folder} holds several stacks that may be the short axis, each of {len(chosen)} images. Keep one."
        )
    others = ", ".join(sorted({name(plane) for stack in rest for plane in stack}))
    return chosen, [f"used the stack {name(chosen[0])!r} of {len(chosen)} images and left out others: {others}"]


def _group_slices(stack: list[Plane]) -> tuple[list[list[Plane]], list[str]]:
    """Group planes by their position along the normal; of a slice that was acquired again, keep the last series."""
    slices: list[list[Plane]] = []
    for plane in sorted(stack, key=lambda plane: plane.height):
        if slices and plane.height - slices[-1][0].height < SAME_PLACE:
            slices[-1].append(plane)
        else:
            slices.append([plane])
    notes = []
    for number, phases in enumerate(slices):
        series = sorted({(plane.series_number, plane.series) for plane in phases})
        if len(series) > 1:
            notes.append(f"slice {number} was acquired {len(series)} times; the last was used")
            slices[number] = [plane for plane in phases if (plane.series_number, plane.series) == series[-1]]
    return slices, notes


def _sort_phases(phases: list[Plane], folder: Path) -> list[Plane]:
    for key in PHASE_KEYS:
        values = [plane.phase.get(key) for plane in phases]
        if None not in values and len(set(values)) == len(values):
            return sorted(phases, key=lambda plane: plane.phase[key])
    raise CardioDiTError(
        f"The {len(phases)} images of the slice at {phases[0].height:.1f} mm in {folder} cannot be ordered in time: "
        f"none of {', '.join(PHASE_KEYS)} has a different value in each."
    )


def _slice_step(stack: list[Plane], folder: Path) -> np.ndarray:
    """Return the vector in mm from slice to slice (3,)."""
    first = stack[0]
    if len(stack) == 1:
        if first.thickness is None:
            raise CardioDiTError(f"{first.path} is a single slice without a SliceThickness.")
        return first.normal * first.thickness
    problems = Problems(f"The slices in {folder} are not evenly spaced")
    for sentence in _uneven_gaps(stack):
        problems.add(sentence)
    problems.raise_if_any("Add the missing files or remove the double ones.")
    if sentence := _shifted_slice(stack):
        raise CardioDiTError(
            f"The slices in {folder} do not lie above each other: {sentence}. Was it acquired again after the patient "
            "or the plane had moved? Remove it or the slices that it does not belong to."
        )
    return (stack[-1].position - first.position) / (len(stack) - 1)


def _frame_time(slices: list[list[Plane]]) -> float | None:
    """Return seconds between frames, from the trigger times of all slices or from the length of the beat."""
    frames, beat = len(slices[0]), slices[0][0].beat
    if frames < 2:
        return None
    steps = [
        b.phase["TriggerTime"] - a.phase["TriggerTime"]
        for phases in slices
        for a, b in pairwise(phases)
        if "TriggerTime" in a.phase and "TriggerTime" in b.phase
    ]
    if steps and np.median(steps) > 0:
        return float(np.median(steps)) / 1000
    return beat / frames / 1000 if beat else None


# ---- CT


def read_dicom_ct(folder: Path | str) -> DicomVolume:
    """Read the largest CT series below a folder as `(H, W, D)` int16 in Hounsfield units.

    H runs along a row's pixels, W along a column's. The notes name everything that was left out, such as the
    radiographs of LIDC-IDRI. Slices that are missing, double, shifted or tilted are an error that names them.
    """
    folder = Path(folder)
    headers, unexpected = read_headers(folder)
    stacks: dict[tuple, list[Plane]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for path, data in headers:
        with reading(path, "DICOM", "Leave it out, or correct its header."):
            planes, reason = _ct_planes(path, data)
        if reason:
            left_out[reason] += 1
        for plane in planes:
            stacks[(plane.series, *plane.stack_key(decimals=3))].append(plane)
    notes = [f"left out {name}, {_count(n, 'file')}: no slices of a CT" for name, n in left_out.items()]
    if not any(len(stack) > 1 for stack in stacks.values()):
        raise CardioDiTError(". ".join([f"No CT series of two slices or more was found in {folder}", *notes]) + ".")
    if unexpected:
        names = _some(path.name for path in unexpected)
        notes.append(f"ignored {_count(len(unexpected), 'non-DICOM file')}: {names}")
    # The largest series; of equal ones, the earliest.
    ordered = sorted(stacks.values(), key=lambda stack: (-len(stack), stack[0].series_number, stack[0].series))
    if len(ordered) > 1:
        chosen, *others = map(_describe, ordered)
        notes.append(f"used the largest of {len(ordered)} CT series, {chosen}, and left out {'; '.join(others)}")
    stack = sorted(ordered[0], key=lambda plane: plane.height)
    _check_ct_stack(stack, folder)
    step = (stack[-1].position - stack[0].position) / (len(stack) - 1)
    try:
        voxels, rounded = whole_hounsfield(read_voxels([[plane] for plane in stack])[..., 0])
    except CardioDiTError as error:
        raise CardioDiTError(f"The CT in {folder} cannot be used. {error}") from error
    return DicomVolume(Volume(voxels, Geometry.of_affine(affine_of(stack[0], step))), notes + rounded)


def _ct_planes(path: Path, data: Any) -> tuple[list[Plane], str]:
    """Return the CT planes of a file, or none and the name of what the file is instead."""
    modality = str(data.get("Modality", "") or "file of unknown modality")
    number, description = data.get("SeriesNumber", None) or "without a number", str(data.get("SeriesDescription", ""))
    name = f"{modality} series {number} {description!r}"
    if modality != "CT" or "Rows" not in data or is_colour(path, data):
        return [], name
    if "LOCALIZER" in (data.get("ImageType") or []):
        return [], f"{name} (localizer)"
    planes = [plane for plane in planes_of(path, data) if plane is not None]
    if len(planes) < count_frames(path, data):
        return [], f"{name} (without a position in the patient)"
    return planes, ""


def _check_ct_stack(stack: list[Plane], folder: Path) -> None:
    problems = Problems(f"The CT in {folder}, {_describe(stack)}, is not an even stack of slices in Hounsfield units")
    if unscaled := sorted({plane.path.name for plane in stack if not plane.has_intercept}):
        problems.add(f"{_some(unscaled)}: no RescaleIntercept converts the values to Hounsfield units")
    for sentence in _uneven_gaps(stack, SAME_CT_PLACE):
        problems.add(sentence)
    if not problems.found and (sentence := _misalignment(stack)):
        problems.add(sentence)
    problems.raise_if_any("Add what is missing, or leave this patient out.")


def _misalignment(stack: list[Plane]) -> str:
    """Describe slices that are not straight above each other: a tilted gantry, or a table that moved."""
    first, way = stack[0], stack[-1].position - stack[0].position
    tilt = float(np.degrees(np.arccos(np.clip(way @ first.normal / np.linalg.norm(way), -1, 1))))
    if tilt > TILTED:
        return (
            f"each slice is shifted against the one below it: the gantry was tilted by {tilt:.1f} degrees. Straighten "
            "the volume with a tool that resamples tilted CT, such as dcm2niix, and prepare its NIfTI file instead"
        )
    return _shifted_slice(stack)


# ---- Both


def _shifted_slice(stack: list[Plane]) -> str:
    """Describe the slice that is shifted most against the line through most others, if by more than a pixel."""
    positions = np.array([plane.position for plane in stack])
    heights = np.array([plane.height for plane in stack])
    slope = np.median(np.diff(positions, axis=0) / np.diff(heights)[:, None], axis=0)
    beside = positions - np.outer(heights, slope)
    offsets = np.linalg.norm(beside - np.median(beside, axis=0), axis=1)
    worst = int(offsets.argmax())
    if offsets[worst] <= min(stack[0].pixel):
        return ""
    return f"{stack[worst].path.name} is {offsets[worst]:.1f} mm beside the line through the others"


def _uneven_gaps(stack: list[Plane], same_place: float = SAME_PLACE) -> list[str]:
    """Describe slices at the same place, and gaps unlike the others."""
    gaps = np.diff([plane.height for plane in stack])
    distance = float(np.median(gaps[gaps > same_place])) if (gaps > same_place).any() else 0.0
    sentences = []
    for (below, above), gap in zip(pairwise(stack), gaps, strict=True):
        names = f"{below.path.name} and {above.path.name}"
        if gap <= same_place:
            sentences.append(f"{names} are at the same place, {below.height:.2f} mm: keep one of them")
        elif abs(gap - distance) > UNEVEN * distance:
            missing = ": slices are missing between them" if gap > distance else ""
            sentences.append(f"{names} are {gap:.2f} mm apart, most slices {distance:.2f} mm{missing}")
    more = len(sentences) - MOST_NAMED
    return sentences if more <= 0 else [*sentences[:MOST_NAMED], f"{more} more pairs of slices are like these"]


def _describe(stack: list[Plane]) -> str:
    return f"series {stack[0].series_number} {stack[0].description!r} of {_count(len(stack), 'slice')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MOST_NAMED]) + (" and more" if len(listed) > MOST_NAMED else "")
