"""CT volumes in NumPy archives, as in RAD-ChestCT: voxels without any geometry."""

import math
import zipfile
from pathlib import Path

import numpy as np

from cardiodit._util.foreign_files import check_expansion, check_file
from cardiodit.errors import COPY_AGAIN, CardioDiTError, reading
from cardiodit.imaging.geometry import Geometry, Triple
from cardiodit.imaging.intensity import whole_hounsfield
from cardiodit.imaging.volume import Volume

KEY = "ct"


def read_npz(path: Path, spacing: Triple) -> tuple[Volume, list[str]]:
    """Read the array `ct` as `(H, W, D)` int16, and return it with notes on what was changed.

    The axes in the file are slices from head to foot, rows from front to back, and columns to the patient's left. The
    position in the scanner is unknown: the origin is placed at the centre.

    Args:
        path: NumPy archive.
        spacing: voxel size in mm along columns, rows and slices.
    """
    stored = _read_array(path)
    if stored.ndim != 3 or stored.dtype.kind not in "iuf" or not stored.size:
        raise CardioDiTError(
            f"{path} holds {KEY!r} of shape {stored.shape} and type {stored.dtype}; numbers along slices, rows and "
            "columns were expected."
        )
    try:
        voxels, notes = whole_hounsfield(stored)
    except CardioDiTError as error:
        raise CardioDiTError(f"{path} cannot be used. {error}") from error
    voxels = voxels.transpose(2, 1, 0)
    affine = np.diag([-spacing[0], -spacing[1], -spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(voxels.shape) - 1) / 2
    return Volume(voxels, Geometry.of_affine(affine, in_scanner=False)), notes


def _read_array(path: Path) -> np.ndarray:
    """Read the array, after comparing the size that its header promises with that of the archive."""
    check_file(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            is_array = file.read(6) == np.lib.format.MAGIC_PREFIX
        if is_array:
            raise CardioDiTError(f"{path} is not a NumPy archive although it is named .npz.")
    with reading(path, "a NumPy archive"):
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if KEY not in entries:
                raise CardioDiTError(f"{path} has no array {KEY!r}. It has {', '.join(entries) or 'none'}.")
            size = entries[KEY].file_size
            check_expansion(path, size, entries[KEY].compress_size)
            with archive.open(entries[KEY]) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
            raise CardioDiTError(f"{path} promises an array of {shape}, but holds only {size} bytes. {COPY_AGAIN}")
        with np.load(path, allow_pickle=False) as stored:
            return stored[KEY]
