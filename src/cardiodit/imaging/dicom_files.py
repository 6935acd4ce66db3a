"""Headers and pixels of DICOM files: which planes they hold, where and when each was taken.

Only voxels and geometry are read; names, dates and all other attributes are ignored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.foreign_files import check_expansion, check_file
from cardiodit.errors import COPY_AGAIN, CardioDiTError, Problems, reading, reason_of

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
NOT_PERPENDICULAR = 0.05  # largest error of a direction cosine's length or right angle
SAME_DIRECTION = 2  # decimals of a direction cosine
MAGNITUDE = "magnitude"
COMPONENTS = {  # words of the attribute ImageType
    "phase": {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP"},
    "real": {"R", "REAL"},
    "imaginary": {"I", "IMAGINARY"},
}
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")

# The phases of a beat are ordered by the first of these attributes that has a different value in each plane of a slice.
PHASE_KEYS = ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber")


@dataclass(frozen=True)
class Plane:
    """One 2D image at one moment, before its pixels are read.

    Args:
        frame: index in a multi-frame file.
        direction: (3, 2): unit vectors along a row's and a column's pixels, to the patient's left, back and head.
        position: (3,): centre of the first pixel, mm.
        pixel: mm along a row and along a column.
        shape: pixels along a row and along a column.
        phase: value of each of `PHASE_KEYS` that the file has.
        beat: ms from beat to beat.
        has_intercept: whether the file says how its numbers become Hounsfield units.
        component: "magnitude", or the part of a complex image that an MR scanner stored beside it, such as "phase".
        is_inverted: whether low numbers are bright (MONOCHROME1).
    """

    path: Path
    frame: int
    series: str
    series_number: int
    description: str
    direction: np.ndarray
    position: np.ndarray
    pixel: tuple[float, float]
    shape: tuple[int, int]
    thickness: float | None
    phase: dict[str, float]
    beat: float | None
    has_intercept: bool
    component: str = MAGNITUDE
    is_inverted: bool = False

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.direction[:, 0], self.direction[:, 1])

    @property
    def height(self) -> float:
        """Position along the plane's normal, mm."""
        return float(self.position @ self.normal)

    def stack_key(self, decimals: int) -> tuple:
        """Properties that the planes of one stack share: orientation, matrix, and rounded pixel size."""
        direction = self.direction.round(SAME_DIRECTION).ravel() + 0.0
        return (*direction, *self.shape, *np.round(self.pixel, decimals), self.component)


def read_headers(folder: Path) -> tuple[list[tuple[Path, Any]], list[Path]]:
    """Return the headers of all DICOM files below a folder, and the other files; damaged files are one error."""
    try:
        import pydicom
    except ImportError as error:
        raise CardioDiTError("Reading DICOM needs pydicom: pip install 'cardiodit[dicom]'.") from error
    headers, others = [], []
    problems = Problems(f"Files in {folder} cannot be read")
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            check_file(path)
            data = pydicom.dcmread(path, stop_before_pixels=True)
        except CardioDiTError as error:
            problems.add(str(error))
        except pydicom.errors.InvalidDicomError:
            if path.suffix.lower() in DICOM_ENDINGS:
                problems.add(f"{path} is damaged: it does not begin as a DICOM file does.")
            others.append(path)
        except Exception as error:  # on damaged files, pydicom raises errors of all kinds
            problems.add(f"{path} is damaged or was cut off ({reason_of(error)}).")
        else:
            if "DirectoryRecordSequence" not in data:
                headers.append((path, data))
    problems.raise_if_any("Copy them again from their source, or remove them.")
    return headers, others


def planes_of(path: Path, data: Any) -> list[Plane | None]:
    """Return the planes of a file; None for one without a position in the patient, such as a screenshot."""
    with reading(path, "DICOM", "Leave it out, or correct its header."):
        return [_plane(path, data, frame) for frame in range(count_frames(path, data))]


def count_frames(path: Path, data: Any) -> int:
    """Return the number of frames of a file; raise an error if the file is too short for its pixels."""
    with reading(path, "DICOM", "Leave it out, or correct its header."):
        frames = int(data.get("NumberOfFrames", 1) or 1)
        sizes = [int(data.get(name, 1) or 1) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
        length = check_file(path)
        if not 0 < frames <= length or min(sizes) < 1:
            raise CardioDiTError(f"{path} promises {frames} frames, for which it is too short. {COPY_AGAIN}")
        check_expansion(path, frames * math.prod(sizes) // 8, length)
    return frames


def _plane(path: Path, data: Any, frame: int) -> Plane | None:
    find = _finder(data, frame)
    orientation, position, spacing = (
        find(name) for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    )
    if orientation is None or position is None or spacing is None:
        return None
    values = {key: find(key) for key in PHASE_KEYS}
    for key, other in (
        ("TriggerTime", "NominalCardiacTriggerDelayTime"),
        ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    ):
        values[key] = values[key] if values[key] is not None else find(other)
    direction, place = (np.array(values, dtype=float) for values in (orientation, position))
    if direction.shape != (6,) or place.shape != (3,) or not np.isfinite([*direction, *place]).all():
        raise ValueError(f"its position is {_shown(position)} and its orientation {_shown(orientation)}")
    if not np.allclose(direction.reshape(2, 3) @ direction.reshape(2, 3).T, np.eye(2), atol=NOT_PERPENDICULAR):
        raise ValueError(f"its orientation {_shown(orientation)} is not that of two perpendicular axes")
    pixel = (float(spacing[1]), float(spacing[0]))
    if len(spacing) != 2 or not all(0 < size < math.inf for size in pixel):
        raise ValueError(f"its pixel spacing is {_shown(spacing)}; two positive numbers were expected")
    if missing := [name for name in ("Rows", "Columns") if name not in data]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    if values["InstanceNumber"] is not None:
        values["InstanceNumber"] = int(values["InstanceNumber"]) + frame
    thickness, beat = find("SliceThickness"), find("NominalInterval") or find("RRIntervalTimeNominal")
    return Plane(
        path,
        frame,
        str(data.get("SeriesInstanceUID", "")),
        int(data.get("SeriesNumber", 0) or 0),
        str(data.get("SeriesDescription", "")).lower(),
        direction.reshape(2, 3).T,
        place,
        pixel,
        (int(data.Columns), int(data.Rows)),
        _finite("SliceThickness", thickness) if thickness else None,
        {key: _finite(key, value) for key, value in values.items() if value is not None and str(value) != ""},
        _finite("NominalInterval", beat) if beat else None,
        find("RescaleIntercept") is not None,
        _component(data, find),
        str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1",
    )


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"its {name} is {value}")
    return number


def _shown(value: Any) -> str:
    return str(value)[:60]


def _component(data: Any, find: Callable[[str], Any]) -> str:
    """Return which part of a complex MR image a file holds; most files do not say and hold the magnitude."""
    stated = str(find("ComplexImageComponent") or "").lower()
    if stated in (*COMPONENTS, MAGNITUDE):
        return stated
    stored = data.get("ImageType") or []
    words = [str(word).upper() for word in ([stored] if isinstance(stored, str) else stored)]
    return next((name for name, signs in COMPONENTS.items() if signs.intersection(words)), MAGNITUDE)


def _finder(data: Any, frame: int) -> Callable[[str], Any]:
    """Return a function that looks up an attribute in a frame's groups, the shared groups, then the file."""
    groups: list[Any] = []
    for name, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        if name in data:
            group = data[name].value[index]
            groups += [sequence.value[0] for sequence in group if sequence.VR == "SQ" and len(sequence.value)]
    groups.append(data)
    return lambda keyword: next((group[keyword].value for group in groups if keyword in group), None)


def affine_of(first: Plane, step: np.ndarray) -> np.ndarray:
    """Return the matrix from voxel indices to mm (RAS) of slices that begin at `first` and are `step` (3,) mm apart."""
    affine = np.eye(4)
    affine[:3, 0] = LPS_TO_RAS @ first.direction[:, 0] * first.pixel[0]
    affine[:3, 1] = LPS_TO_RAS @ first.direction[:, 1] * first.pixel[1]
    affine[:3, 2] = LPS_TO_RAS @ step
    affine[:3, 3] = LPS_TO_RAS @ first.position
    return affine


def is_colour(path: Path, data: Any) -> bool:
    """Return whether a file holds colours, such as a screenshot or an overlay, instead of grey values."""
    with reading(path, "DICOM", "Leave it out, or correct its header."):
        return int(data.get("SamplesPerPixel", 1) or 1) > 1


def read_voxels(slices: list[list[Plane]], upright: bool = False) -> np.ndarray:
    """Read the pixels as (H, W, D, T), rescaled; H runs along a row's pixels, W along a column's.

    With `upright`, numbers that are stored inverted are inverted again, so that high ones are bright.
    """
    import pydicom

    path, data, planes = None, None, []
    for plane in (plane for phases in slices for plane in phases):
        if plane.path != path:  # only one file at a time is kept: they may be large
            with reading(plane.path, "DICOM"):
                path, data = plane.path, pydicom.dcmread(plane.path)
        with reading(plane.path, "DICOM", "Leave it out, or correct its header."):
            find = _finder(data, plane.frame)
            slope, intercept = (
                _finite(name, find(name) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
            )
        pixels = _read_pixels(data, plane.path)
        with reading(plane.path, "DICOM"):
            values = (pixels[plane.frame] if pixels.ndim == 3 else pixels).T
            if upright and plane.is_inverted:
                values = _inverted(values, data)
        values = values * slope + intercept
        fits = slope.is_integer() and intercept.is_integer() and np.abs(values).max() <= np.iinfo(np.int16).max
        planes.append(values.astype(np.int16 if fits else np.float32))
    return np.stack(planes, axis=-1).reshape(*planes[0].shape, len(slices), len(slices[0]))


def _inverted(values: np.ndarray, data: Any) -> np.ndarray:
    """Exchange the ends of the range in which a file stores its numbers."""
    is_signed = int(data.get("PixelRepresentation", 0))
    return (-1 if is_signed else 2 ** int(data.BitsStored) - 1) - values.astype(np.int32)


def _read_pixels(data: Any, path: Path) -> np.ndarray:
    try:
        return data.pixel_array
    except Exception as error:  # on damaged or compressed files, pydicom and its decoders raise errors of all kinds
        raise CardioDiTError(
            f"The pixels of {path} cannot be read ({reason_of(error)}). Copy it again from its source, or, "
            "if it is compressed, decompress it first."
        ) from error
