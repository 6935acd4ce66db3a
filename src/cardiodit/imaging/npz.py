"""A CT in a NumPy archive, as RAD-ChestCT has it: voxels without a word of where they lie."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Geometry, Triple
from cardiodit.imaging.hounsfield import whole_hounsfield
from cardiodit.imaging.volume import Volume

KEY = "ct"


def read_npz(path: Path, spacing: Triple) -> tuple[Volume, list[str]]:
    """The array `ct` as `(H, W, D)` in int16, and what is noteworthy of it.

    In the file its axes are slices from head to foot, rows from front to back, and columns to the patient's left. Where
    it lay in the scanner is not known: the origin is put into its centre.

    Args:
        path: of the archive.
        spacing: mm along columns, rows and slices.
    """
    stored = _array(path)
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


def _array(path: Path) -> np.ndarray:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CardioDiTError(f"{path} is no NumPy archive (.npz) although its name says so.")
        with archive:
            if KEY not in archive.files:
                raise CardioDiTError(f"{path} has no array {KEY!r}. It has {', '.join(archive.files) or 'none'}.")
            return archive[KEY]
    except CardioDiTError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CardioDiTError(f"{path} is damaged or was cut off ({error}). Copy it anew from its source.") from error
