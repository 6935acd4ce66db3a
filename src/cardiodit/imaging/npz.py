"""CT volumes in NumPy archives, as in RAD-ChestCT: voxels without any geometry."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
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
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CardioDiTError(f"{path} is not a NumPy archive although it is named .npz.")
        with archive:
            if KEY not in archive.files:
                raise CardioDiTError(f"{path} has no array {KEY!r}. It has {', '.join(archive.files) or 'none'}.")
            return archive[KEY]
    except CardioDiTError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CardioDiTError(f"{path} is damaged or was cut off ({error}). Copy it again from its source.") from error
