"""One picture of a DICOM file: where and when it was taken, and its pixels.

Names, dates and every other attribute stay behind: only voxels and geometry are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])

# Phases of a beat are ordered by the first of these that every picture of a slice has, each with a value of its own.
PHASE_KEYS = ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber")


@dataclass(frozen=True)
class Picture:
    """One plane at one moment, before its pixels are needed."""

    path: Path
    frame: int  # within a multi-frame file
    series: str
    series_number: int
    description: str
    direction: np.ndarray  # (3, 2): unit vectors along a row's and a column's pixels, patient's left, back, head
    position: np.ndarray  # (3,) of the first pixel, mm
    pixel: tuple[float, float]  # mm along a row and along a column
    shape: tuple[int, int]  # pixels along a row and along a column
    thickness: float | None
    phase: dict[str, float]
    beat: float | None  # ms from beat to beat

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.direction[:, 0], self.direction[:, 1])

    @property
    def height(self) -> float:
        """Where the plane lies along its normal, mm."""
        return float(self.position @ self.normal)


def import_pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise CardioDiTError("Reading DICOM needs pydicom: pip install 'cardiodit[dicom]'.") from error
    return pydicom


def picture_of(path: Path, data: Any, frame: int) -> Picture | None:
    """None for what has no place in the patient, such as a screenshot."""
    find = finder_of(data, frame)
    orientation, position = find("ImageOrientationPatient"), find("ImagePositionPatient")
    spacing = find("PixelSpacing")
    if orientation is None or position is None or spacing is None:
        return None
    delay = find("NominalCardiacTriggerDelayTime")
    values = {key: find(key) for key in PHASE_KEYS}
    values["TriggerTime"] = values["TriggerTime"] if values["TriggerTime"] is not None else delay
    if values["TemporalPositionIdentifier"] is None:
        values["TemporalPositionIdentifier"] = find("TemporalPositionIndex")
    if values["InstanceNumber"] is not None:
        values["InstanceNumber"] = int(values["InstanceNumber"]) + frame
    thickness, beat = find("SliceThickness"), find("NominalInterval") or find("RRIntervalTimeNominal")
    return Picture(
        path,
        frame,
        str(data.get("SeriesInstanceUID", "")),
        int(data.get("SeriesNumber", 0) or 0),
        str(data.get("SeriesDescription", "")).lower(),
        np.array(orientation, dtype=float).reshape(2, 3).T,
        np.array(position, dtype=float),
        (float(spacing[1]), float(spacing[0])),
        (int(data.Columns), int(data.Rows)),
        float(thickness) if thickness else None,
        {key: float(value) for key, value in values.items() if value is not None and str(value) != ""},
        float(beat) if beat else None,
    )


def finder_of(data: Any, frame: int) -> Callable[[str], Any]:
    """Looks an attribute up in a frame's groups, then in those that frames share, then in the file."""
    groups: list[Any] = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if name in data:
            group = data[name].value[index]
            groups += [sequence.value[0] for sequence in group if sequence.VR == "SQ" and len(sequence.value)]
    groups.append(data)

    def find(keyword: str) -> Any:
        return next((group[keyword].value for group in groups if keyword in group), None)

    return find


def affine_of(first: Picture, along: np.ndarray) -> np.ndarray:
    """Voxel index → mm, x to the right, of slices that begin with `first` and lie `along` (3,) mm from each other."""
    affine = np.eye(4)
    affine[:3, 0] = LPS_TO_RAS @ first.direction[:, 0] * first.pixel[0]
    affine[:3, 1] = LPS_TO_RAS @ first.direction[:, 1] * first.pixel[1]
    affine[:3, 2] = LPS_TO_RAS @ along
    affine[:3, 3] = LPS_TO_RAS @ first.position
    return affine


def voxels_of(slices: list[list[Picture]]) -> np.ndarray:
    """(H, W, D, T): H along a row's pixels, W along a column's."""
    pydicom = import_pydicom()
    opened: dict[Path, Any] = {}
    planes = []
    for pictures in slices:
        for picture in pictures:
            if picture.path not in opened:
                opened = {picture.path: pydicom.dcmread(picture.path)}  # one at a time: they may be large
            data = opened[picture.path]
            pixels = _pixels(data, picture.path)
            plane = (pixels[picture.frame] if pixels.ndim == 3 else pixels).T
            find = finder_of(data, picture.frame)
            planes.append(_rescaled(plane, float(find("RescaleSlope") or 1), float(find("RescaleIntercept") or 0)))
    depth, frames = len(slices), len(slices[0])
    return np.stack(planes, axis=-1).reshape(*planes[0].shape, depth, frames)


def _pixels(data: Any, path: Path) -> np.ndarray:
    try:
        return data.pixel_array
    except (AttributeError, ValueError, RuntimeError, NotImplementedError, EOFError) as error:
        raise CardioDiTError(
            f"The pixels of {path} cannot be read ({str(error).splitlines()[0]}). Copy it anew from its source, or, if "
            "it is compressed, decompress it first."
        ) from error


def _rescaled(plane: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    values = plane * slope + intercept
    fits = slope.is_integer() and intercept.is_integer() and np.abs(values).max() <= np.iinfo(np.int16).max
    return values.astype(np.int16 if fits else np.float32)
