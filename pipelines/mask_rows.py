"""Masks to generate volumes for, from a table: one row a volume, read and checked before anything is generated."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.manifest import read_table
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume
from cardiodit.models.conditions import Conditions

REFERENCE = "image"  # of the same grid as the masks; gives the geometry where the masks' headers do not know it


class MaskRows:
    """Rows of a CSV with a column for each mask that an adapter takes, pointing at NIfTI files.

    Args:
        table: relative paths are relative to it. A column `image` may name a reference, whose geometry is taken.
        conditions: what the adapter takes.
        steps: how the model's training volumes were prepared; masks go the same way. None: they are taken as they are.
    """

    def __init__(self, table: Path, conditions: Conditions, steps: Preprocessing | None) -> None:
        self.folder, self.conditions, self.steps = table.parent, conditions, steps
        self.rows = [row for _, row in read_table(table, conditions.keys)]
        self.identities: list[str] = []
        problems = Problems(f"The masks of {table} cannot be used, and nothing was generated")
        for number, _ in enumerate(self.rows, start=1):
            try:
                masks, _ = self[number - 1]
                self.identities.append(_identity(masks, conditions.keys))
            except (CardioDiTError, OSError) as error:
                problems.add(f"row {number}: {str(error).rstrip('.')}")
        problems.raise_if_any()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], Geometry]:
        """The masks of a row as the model's volumes lie, and where that is in the scanner."""
        volumes = self._read(self.rows[index])
        first = volumes[self.conditions.keys[0]]
        if self.steps is None:
            masks = {key: volume.voxels for key, volume in volumes.items()}
            geometry = first.geometry
        else:
            # The way depends on the grid alone; any intensities do.
            steps = replace(self.steps, intensity=Intensity(0, 1))
            prepared = steps(replace(first, voxels=first.voxels.astype(np.float32)))
            masks = {key: prepared.follow(volume) for key, volume in volumes.items()}
            geometry = prepared.volume.geometry
        self.conditions.channels_of(masks)  # labels that are none are errors
        return masks, geometry

    def _read(self, row: dict[str, str]) -> dict[str, Volume]:
        missing = [key for key in self.conditions.keys if not row.get(key)]
        if missing:
            raise CardioDiTError(f"the mask {', '.join(missing)} is missing")
        volumes = {key: read_labels(self.folder / row[key]) for key in self.conditions.keys}
        first = volumes[self.conditions.keys[0]]
        if row.get(REFERENCE):
            reference = read_nifti(self.folder / row[REFERENCE])
            if reference.voxels.shape != first.voxels.shape:
                raise CardioDiTError(
                    f"the masks have the shape {first.voxels.shape}, the reference image {reference.voxels.shape}"
                )
            if first.geometry.spacing is not None and not first.geometry.is_close(reference.geometry):
                raise CardioDiTError("the masks lie elsewhere in space than the reference image")
            volumes = {key: replace(volume, geometry=reference.geometry) for key, volume in volumes.items()}
        for key, volume in volumes.items():
            if volume.voxels.shape != first.voxels.shape or not volume.geometry.is_close(
                volumes[self.conditions.keys[0]].geometry
            ):
                raise CardioDiTError(f"the mask {key} has another grid than {self.conditions.keys[0]}")
        return volumes


def _identity(masks: dict[str, np.ndarray], keys: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{key} {masks[key].shape}".encode())
        digest.update(np.ascontiguousarray(masks[key]).astype(np.int32).tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"
