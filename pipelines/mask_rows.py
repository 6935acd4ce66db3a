"""Masks to generate volumes for, from a table: one row a volume, read and checked before anything is generated."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.manifest import Case, order_of_case, read_case, read_table
from cardiodit.imaging.masks import check_orders, order_of_row, read_label_map
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume
from cardiodit.pipelines.mask_control import MaskControlMixin

REFERENCE = "image"  # of the same grid as the masks; gives the geometry where the masks' headers do not know it


class MaskRows:
    """Rows of a CSV with a column for each mask that an adapter takes, pointing at NIfTI files.

    Masks go the way that training volumes went, with a row's `ed_frame`, `slices` and `mask_order` as in manifests.

    Args:
        table: relative paths are relative to it. A column `image` may name a reference, whose geometry is taken.
        pipe: the model that they are for.
    """

    def __init__(self, table: Path, pipe: MaskControlMixin) -> None:
        steps = pipe.vae.config.preprocessing
        self.steps = None if steps is None else Preprocessing.from_dict(steps)
        self.conditions = pipe.adapter.conditions
        rows = [row for _, row in read_table(table, self.conditions.keys)]
        self.cases = [_case(row, self.conditions.keys[0], table.parent) for row in rows]
        self.identities: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        problems = Problems(f"The masks of {table} cannot be used, and nothing was generated")
        try:
            check_orders(rows, self.conditions.keys)
        except CardioDiTError as error:
            problems.add(str(error).rstrip("."))
        for number, _ in enumerate(rows, start=1):
            try:
                self._look_at(number - 1, pipe)
            except (CardioDiTError, OSError) as error:
                problems.add(f"row {number}: {str(error).rstrip('.')}")
        problems.raise_if_any()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], Geometry]:
        """The masks of a row as the model's volumes lie, and where that is in the scanner."""
        case = self.cases[index]
        volumes = self._read(case)
        first = volumes[self.conditions.keys[0]]
        if self.steps is None:
            return {key: volume.voxels for key, volume in volumes.items()}, first.geometry
        # The way depends on the grid alone; any intensities do.
        steps = replace(self.steps, intensity=Intensity(0, 1))
        order = order_of_case(case, first, steps)
        prepared = steps(replace(first, voxels=first.voxels.astype(np.float32)), order)
        return {key: prepared.apply_to_mask(volume) for key, volume in volumes.items()}, prepared.volume.geometry

    def _look_at(self, index: int, pipe: MaskControlMixin) -> None:
        """Keeps what a row's masks are known by; an error where the model cannot make a volume of them."""
        masks, _ = self[index]
        channels = self.conditions.channels_of(masks)
        shape = masks[self.conditions.keys[0]].shape
        pipe.latent_size_of(shape)
        if not channels.any():  # in Python it asks for nothing; whoever names a file asks for something
            keys = self.conditions.keys
            subject = f"the mask {keys[0]} has" if len(keys) == 1 else f"the masks {', '.join(keys)} have"
            raise CardioDiTError(f"{subject} no label in any frame" if len(shape) == 4 else f"{subject} no label")
        self.shapes.append(shape)
        self.identities.append(self.conditions.identity(masks))

    def _read(self, case: Case) -> dict[str, Volume]:
        """A row's masks on one grid, with the best that is known of where it lies and how long a frame lasts."""
        keys = self.conditions.keys
        if missing := [key for key in keys if not case.row.get(key)]:
            raise CardioDiTError(f"the mask {', '.join(missing)} is missing")
        volumes = {key: read_label_map(case.folder / case.row[key], order_of_row(case.row, key)) for key in keys}
        reference = read_case(case) if case.row.get(REFERENCE) else None
        _check_grids(volumes, reference)
        geometry = volumes[keys[0]].geometry if reference is None else reference.geometry
        if geometry.frame_time is None and volumes[keys[0]].is_cine:
            geometry = geometry.with_frame_time(_frame_time(case, case.folder / case.row[keys[0]]))
        return {key: replace(volume, geometry=geometry) for key, volume in volumes.items()}


def _case(row: dict[str, str], key: str, folder: Path) -> Case:
    image = row.get(REFERENCE) or row[key]
    return Case(folder / image, row.get("subject") or image, row, folder)


def _check_grids(volumes: dict[str, Volume], reference: Volume | None) -> None:
    """All masks lie on the reference's grid or, without one, on that of the first of them."""
    first = next(iter(volumes))
    grid, name = (volumes[first], f"the mask {first}") if reference is None else (reference, "the reference image")
    wrong = []
    for key, volume in volumes.items():
        is_known = reference is None or volume.geometry.spacing is not None
        if volume.voxels.shape != grid.voxels.shape:
            wrong.append(f"the mask {key} has the shape {volume.voxels.shape}, {name} {grid.voxels.shape}")
        elif is_known and not volume.geometry.is_close(grid.geometry):
            wrong.append(f"the mask {key} lies elsewhere in space than {name}")
    if wrong:
        raise CardioDiTError("; ".join(wrong))


def _frame_time(case: Case, mask: Path) -> float | None:
    """As the table says it, else the mask's header where that makes sense."""
    told = case.number("frame_time")
    if told is not None:
        return told
    try:
        return read_nifti(mask).geometry.frame_time
    except CardioDiTError:
        return None  # the mask itself was read: its time alone is wrong, and the model knows one
