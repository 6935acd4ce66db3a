"""Read and write NIfTI files whose headers state what is known about space and time, and no more."""

import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import check_expansion, check_file
from cardiodit.errors import CardioDiTError, reading
from cardiodit.imaging.geometry import IDENTITY, SAME_SPACING, Geometry
from cardiodit.imaging.volume import Volume

UNKNOWN_SPACE, SCANNER_SPACE, ALIGNED_SPACE = 0, 1, 2  # NIfTI xform codes
SIZE_UNKNOWN = b"voxel size unknown"  # the only text we write into the header's description
HERTZ = "hz"  # a frequency instead of a time between frames
TIME_UNITS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
SPACE_UNITS = {"mm": 1.0, "meter": 1e3, "micron": 1e-3, "unknown": 1.0}
LONGEST_HEADER = 540  # bytes, of NIfTI-2
CHUNK, MOST_TRAILING = 2**20, 2**26  # bytes
SAME_PLACE = 1.0  # mm between sform and qform over the extent of a heart
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


def read_header(path: Path) -> Any:
    """Read and check the header of a single-file NIfTI-1 or NIfTI-2 image, without its extensions and voxels."""
    check_file(path)
    with reading(path, "NIfTI"), _open(path) as stream:
        return _parse_header(stream.read(LONGEST_HEADER))


def has_extensions(path: Path, header: Any) -> bool:
    """Return whether the four bytes after the header announce extensions, in which programs store free text."""
    with reading(path, "NIfTI"), _open(path) as stream:
        return any(stream.read(header.sizeof_hdr + 4)[header.sizeof_hdr :][:1])


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _parse_header(block: bytes) -> Any:
    import nibabel

    length = [int.from_bytes(block[:4], order) for order in ("little", "big")]
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.sizeof_hdr in length and len(block) >= kind.sizeof_hdr:
            header = kind(block[: kind.sizeof_hdr])
            if header["magic"].item().startswith(kind.single_magic):
                return header
    raise ValueError("it is not a single-file NIfTI-1 or NIfTI-2 image (.nii, .nii.gz)")


def _load(path: Path) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Return header, raw pixdim, affine and voxels. A compressed file is read to its end, so that damage is noticed.

    No more is allocated than the header promises, which is checked against the file's length first.
    """
    length, is_gzip = check_file(path), path.suffix == ".gz"
    with reading(path, "NIfTI"), _open(path) as stream:
        header = _parse_header(stream.read(LONGEST_HEADER))
        header.get_xyzt_units()  # raises on unknown codes
        affine, (slope, inter) = header.get_best_affine(), header.get_slope_inter()
        shape, dtype, offset = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        if not shape or not all(n > 0 for n in shape):
            raise CardioDiTError(f"{path} has an empty axis: its shape is {tuple(shape)}.")
        if dtype.fields or dtype.kind not in "iuf":
            raise CardioDiTError(f"{path} holds voxels of type {dtype}; grey values were expected.")
        count = math.prod(map(int, shape))
        expected = offset + count * dtype.itemsize
        if is_gzip:
            check_expansion(path, expected, length)
        stream.seek(0)
        content = stream.read(expected if is_gzip else min(expected, length))
        if len(content) < expected:
            raise CardioDiTError(
                f"{path} was cut off: its header promises {count} voxels, the file holds "
                f"{max(0, len(content) - offset) // dtype.itemsize}. Copy it again from its source."
            )
        if is_gzip:
            _read_to_end(path, stream)
    raw = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    # nibabel turns a negative voxel size into a positive one, so pixdim is read from the bytes.
    number, start = ("f8", 104) if header.sizeof_hdr == 540 else ("f4", 76)
    pixdim = np.frombuffer(content, np.dtype(number).newbyteorder(header.endianness), 8, start).astype(float)
    voxels = _scaled(raw, 1.0 if slope is None else slope, 0.0 if inter is None else inter)
    if raw.dtype.kind != "f" and voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise CardioDiTError(f"{path} has the scale factor {slope:g}, with which its voxels are no finite numbers.")
    return header, pixdim, affine, voxels


def _read_to_end(path: Path, stream: Any) -> None:
    """Read what follows the voxels, without keeping it: the checksum of a compressed file stands at its end."""
    left = MOST_TRAILING
    while chunk := stream.read(CHUNK):
        left -= len(chunk)
        if left < 0:
            raise CardioDiTError(f"{path} continues after its last voxel for more than {MOST_TRAILING} bytes.")


def _scaled(raw: np.ndarray, slope: float, inter: float) -> np.ndarray:
    if (slope, inter) == (1.0, 0.0):
        return raw
    if float(slope).is_integer() and float(inter).is_integer() and raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2:
        held = np.iinfo(raw.dtype)
        ends = [int(value) * int(slope) + int(inter) for value in (held.min, held.max)]
        if max(map(abs, ends)) <= np.iinfo(np.int32).max:
            return raw.astype(np.int32) * int(slope) + int(inter)  # a CT stored as unsigned numbers
    with np.errstate(over="ignore"):
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
    by_affine = np.linalg.norm(affine[:3, :3], axis=0)
    if by_affine.all() and np.abs(sizes / by_affine - 1).max() > SAME_SPACING:
        raise CardioDiTError(
            f"The header contradicts itself: voxels are {_times(by_affine)} by its sform (the affine) and "
            f"{_times(sizes)} by its pixdim. Find out which is true, for example from the scanner's protocol, and "
            "correct the other one."
        )
    affine[:3] *= SPACE_UNITS.get(unit, 1.0)
    geometry = Geometry.of_affine(affine)
    has_size_only = code == UNKNOWN_SPACE or (code == ALIGNED_SPACE and _is_placeholder(geometry, axes))
    return replace(geometry, in_scanner=not has_size_only)


def notes_on_header(path: Path | str) -> list[str]:
    """Return a note if the two affines of a header, sform and qform, place the image differently."""
    header = read_header(Path(path))
    try:
        affines = [affine for affine, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    except ValueError:
        return ["has a qform whose quaternion is impossible. The sform was used"]
    if len(affines) < 2:
        return []
    sform, qform = (Geometry.of_affine(affine) for affine in affines)
    if sform.is_close(qform, mm=SAME_PLACE):
        return []
    cosines = np.clip((np.array(sform.direction) * np.array(qform.direction)).sum(axis=0), -1, 1)
    angle = np.degrees(np.arccos(cosines)).max()
    return [
        f"has two affines that differ: its first voxel is at {_point(sform)} by the sform and at {_point(qform)} by "
        f"the qform, and the axes differ by up to {angle:.0f} degrees. The sform was used"
    ]


def _times(sizes: np.ndarray) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes) + " mm"


def _point(geometry: Geometry) -> str:
    return f"({', '.join(f'{mm:.4g}' for mm in geometry.origin)}) mm"


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
    if unit == HERTZ:
        if not shortest <= frames / value <= longest:
            raise CardioDiTError(
                f"{path} says that there are {value:g} frames a second ({unit}), so that its {frames} frames would be "
                f"a beat of {frames / value:.3g} s. Fix the header, or specify the time unit."
            )
        return 1 / value
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
