"""Read and write NIfTI files whose headers state what is known about space and time, and no more."""

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import IDENTITY, Geometry
from cardiodit.imaging.volume import Volume

UNKNOWN_SPACE, SCANNER_SPACE, ALIGNED_SPACE = 0, 1, 2  # NIfTI xform codes
SIZE_UNKNOWN = b"voxel size unknown"  # the only text we write into the header's description
TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SPACE_UNITS = {"mm": 1.0, "meter": 1e3, "micron": 1e-3, "unknown": 1.0}
BEAT_SECONDS = (0.25, 2.5)  # 24 to 240 beats per minute


def read_nifti(path: Path | str, time_unit: str | None = None, frame_time: float | None = None) -> Volume:
    """Read `(H, W, D)` or `(H, W, D, T)` in the file's own axis order and number type.

    Args:
        path: `.nii` or `.nii.gz` file.
        time_unit: "sec", "msec" or "usec"; overrides the unit in the header.
        frame_time: seconds between frames; overrides the value in the header.
    """
    path = Path(path)
    header, pixdim, affine, voxels = _load(path)
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4):
        raise CardioDiTError(f"{path} has the shape {voxels.shape}; axes (H, W, D) or (H, W, D, T) were expected.")
    if frame_time is None and voxels.ndim == 4:
        frame_time = _frame_time(path, pixdim[4], voxels.shape[3], time_unit or header.get_xyzt_units()[1])
    try:
        return Volume(voxels, _geometry(header, pixdim[1:4], affine, voxels.ndim).with_frame_time(frame_time))
    except CardioDiTError as error:
        raise CardioDiTError(f"{path}: {error}") from error


def read_labels(path: Path | str) -> Volume:
    """Read a label map or a single frame, ignoring the frame time in its header: only that of its image counts."""
    volume = read_nifti(path, frame_time=1.0)
    return replace(volume, geometry=volume.geometry.with_frame_time(None))


def write_nifti(path: Path, volume: np.ndarray, geometry: Geometry) -> None:
    """Write `(H, W, D)` or `(H, W, D, T)`. Without a spacing, the file states neither position nor units."""
    import nibabel

    image = nibabel.Nifti1Image(volume, geometry.affine)
    code = SCANNER_SPACE if geometry.in_scanner else ALIGNED_SPACE
    if geometry.spacing is None:
        code = UNKNOWN_SPACE
        image.header["descrip"] = SIZE_UNKNOWN
    image.set_sform(geometry.affine, code)
    image.set_qform(geometry.affine, code)
    has_frame_time = geometry.frame_time is not None and volume.ndim == 4
    image.header.set_xyzt_units("unknown" if geometry.spacing is None else "mm", "sec" if has_frame_time else "unknown")
    if volume.ndim == 4:
        image.header["pixdim"][4] = geometry.frame_time if has_frame_time else 0.0
    with atomic_file(path) as temporary:
        nibabel.save(image, temporary)


def _load(path: Path) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return header, raw pixdim, affine and voxels. A compressed file is read to its end, so that damage is noticed."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not path.is_file():
        raise CardioDiTError(f"{path} does not exist." if not path.exists() else f"{path} is a folder, not a file.")
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti2Image):
            raise CardioDiTError(f"{path} is not a single-file NIfTI-1 or NIfTI-2 image (.nii, .nii.gz).")
        proxy = image.dataobj
        if not all(n > 0 for n in proxy.shape):
            raise CardioDiTError(f"{path} has an empty axis: its shape is {proxy.shape}.")
        if proxy.dtype.fields or proxy.dtype.kind not in "iuf":
            raise CardioDiTError(f"{path} holds voxels of type {proxy.dtype}; grey values were expected.")
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CardioDiTError(f"{path} is damaged or was cut off ({error}). Copy it again from its source.") from error
    except (ImageFileError, HeaderDataError) as error:
        raise CardioDiTError(f"{path} cannot be read as NIfTI: {error}") from error
    count = int(np.prod(proxy.shape))
    if len(content) < proxy.offset + count * proxy.dtype.itemsize:
        raise CardioDiTError(
            f"{path} was cut off: its header promises {count} voxels, the file holds "
            f"{max(0, len(content) - proxy.offset) // proxy.dtype.itemsize}. Copy it again from its source."
        )
    raw = np.frombuffer(content, proxy.dtype, count, proxy.offset).reshape(proxy.shape, order="F")
    # nibabel turns a negative voxel size into a positive one, so pixdim is read from the bytes.
    number, start = ("f8", 104) if isinstance(image, nibabel.Nifti2Image) else ("f4", 76)
    number_type = np.dtype(number).newbyteorder(image.header.endianness)
    pixdim = np.frombuffer(content, number_type, 8, start).astype(float)
    return image.header, pixdim, image.affine, _scaled(raw, proxy.slope, proxy.inter)


def _scaled(raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if (slope, inter) == (1.0, 0.0):
        return raw
    if float(slope).is_integer() and float(inter).is_integer() and raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2:
        return raw.astype(np.int32) * int(slope) + int(inter)  # a CT stored as unsigned numbers
    return raw.astype(np.float32) * np.float32(slope) + np.float32(inter)


def _geometry(header: Any, sizes: np.ndarray, affine: np.ndarray, axes: int) -> Geometry:
    """Return the geometry in space of a file with 3 or 4 axes; `sizes` are its raw voxel sizes."""
    unit = header.get_xyzt_units()[0]
    code = int(header["sform_code"]) or int(header["qform_code"])
    if code == UNKNOWN_SPACE and unit == "unknown" and (sizes == 1).all():
        return Geometry()
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        stored = tuple(round(float(size), 6) for size in sizes)
        raise CardioDiTError(f"The header has the voxel size {stored} mm; three positive numbers were expected.")
    affine = np.diag([*sizes, 1.0]) if code == UNKNOWN_SPACE else np.array(affine, dtype=float)
    affine[:3] *= SPACE_UNITS.get(unit, 1.0)
    geometry = Geometry.of_affine(affine)
    has_size_only = code == UNKNOWN_SPACE or (code == ALIGNED_SPACE and _is_placeholder(geometry, axes))
    return replace(geometry, in_scanner=not has_size_only)


def _is_placeholder(geometry: Geometry, axes: int) -> bool:
    """Return True if a direction under the code "aligned" is a placeholder.

    No short axis runs parallel to an axis of the body, so a cine that does so has no true direction.
    """
    direction = np.array(geometry.direction)
    return bool(np.allclose(np.abs(direction).max(axis=0), 1)) if axes == 4 else np.allclose(direction, IDENTITY)


def _frame_time(path: Path, value: float, frames: int, unit: str) -> float | None:
    """Return seconds between frames; None if the header holds 0 or a placeholder that is no beat in any unit."""
    if not np.isfinite(value) or value <= 0:
        return None
    shortest, longest = BEAT_SECONDS
    plausible = [name for name, seconds in TIME_UNITS.items() if shortest <= value * seconds * frames <= longest]
    if unit in plausible:
        return value * TIME_UNITS[unit]
    if unit in TIME_UNITS and plausible:
        raise CardioDiTError(
            f"{path} says that a frame lasts {value:g} {unit}, so that its {frames} frames would be a beat of "
            f"{value * TIME_UNITS[unit] * frames:g} s. In {plausible[0]} it would be a plausible heart beat: fix the "
            f"header, or specify the time unit {plausible[0]}."
        )
    return value * TIME_UNITS[plausible[0]] if plausible else None
