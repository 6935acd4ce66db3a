"""Rows that were computed once, found again by what they are of: a volume's voxels and a network's identity."""

import hashlib
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Triple
from cardiodit.writing import atomic_file


class FeatureCache:
    """A folder with one small file a row. An interrupted run goes on where it stopped; nobody's name is in it."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CardioDiTError(f"The cache {self.folder} cannot be made: {error.strerror}.") from error

    def read(self, key: str) -> np.ndarray | None:
        """A row, or None where there is none or where its file is damaged, which is said."""
        file = self._file(key)
        if not file.exists():
            return None
        try:
            with np.load(file, allow_pickle=False) as held:
                row = held["row"]  # the archive's checksum is verified here
            if row.ndim != 1 or row.dtype != np.float64:
                raise ValueError(f"a row of the shape {row.shape} and type {row.dtype}")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"The cached features {file} are damaged ({error}). They are computed anew.", stacklevel=2)
            return None
        return row

    def write(self, key: str, row: np.ndarray) -> None:
        try:
            with atomic_file(self._file(key)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, row=row)
        except OSError as error:
            raise CardioDiTError(f"The cache {self.folder} cannot be written: {error.strerror}.") from error

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"


def key_of(voxels: np.ndarray, spacing: Triple | None, identity: str) -> str:
    """SHA-256 over the voxels' type, shape and bytes, the spacing, and the network."""
    facts = [str(voxels.dtype), voxels.shape, None if spacing is None else [float(mm) for mm in spacing], identity]
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(np.ascontiguousarray(voxels))
    return digest.hexdigest()
