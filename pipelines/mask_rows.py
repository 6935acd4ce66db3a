"""Read and check a table of masks, one row per volume, before anything is generated."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.label_order import check_orders, order_of_row
from cardiodit.imaging.manifest import Case, beat_of_case, order_of_case, read_case, read_table
from cardiodit.imaging.masks import read_label_map
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume
from cardiodit.pipelines.mask_control import MaskControlMixin

REFERENCE = "image"  # image on the masks' grid; gives the geometry if the masks' headers lack it


class MaskRows:
    """Rows of a CSV with paths of NIfTI label maps, in one column for each mask that an adapter takes.

    Masks are preprocessed like the training volumes; `ed_frame`, `slices` and `mask_order` are read as in manifests.

    Args:
        table: path of the CSV, to which relative paths refer. A column `image` can name an image whose geometry is
            used.
        pipe: the pipeline that the masks steer.
    """

    def __init__(self, table: Path, pipe: MaskControlMixin) -> None:
        steps = pipe.vae.config.preprocessing
        self.steps = None if steps is None else Preprocessing.from_dict(steps)
        self.conditions = pipe.mask_adapter.conditions
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
                self._check_row(number - 1, pipe)
            except (CardioDiTError, OSError) as error:
                problems.add(f"row {number}: {str(error).rstrip('.')}")
        problems.raise_if_any()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], Geometry]:
        """Return the masks of a row on the model's grid, and the geometry of that grid in the scanner."""
        return prepared_masks(self.cases[index], self.conditions.keys, self.steps)

    def _check_row(self, index: int, pipe: MaskControlMixin) -> None:
        """Record a row's mask identities and shape, or raise an error if the model cannot generate its volume."""
        masks, _ = self[index]
        channels = self.conditions.channels_of(masks)
        shape = masks[self.conditions.keys[0]].shape
        pipe.latent_size_of(shape)
        if not channels.any():  # allowed in Python, where an empty mask means no steering; in a table it is a mistake
            keys = self.conditions.keys
            subject = f"the mask {keys[0]} has" if len(keys) == 1 else f"the masks {', '.join(keys)} have"
            raise CardioDiTError(f"{subject} no label in any frame" if len(shape) == 4 else f"{subject} no label")
        self.shapes.append(shape)
        self.identities.append(self.conditions.identity(masks))


def prepared_masks(
    case: Case, keys: Sequence[str], steps: Preprocessing | None
) -> tuple[dict[str, np.ndarray], Geometry]:
    """Return a row's masks, preprocessed like the training volumes, and the geometry of their grid."""
    volumes = _read(case, keys)
    first = volumes[keys[0]]
    if steps is None:
        return {key: volume.voxels for key, volume in volumes.items()}, first.geometry
    # Preprocessing of masks depends on the grid alone; any intensity mapping will do.
    steps = replace(steps, intensity=Intensity(0, 1))
    order = order_of_case(case, first, steps)
    prepared = steps(replace(first, voxels=first.voxels.astype(np.float32)), order, beat_of_case(case, steps))
    return {key: prepared.apply_to_mask(volume) for key, volume in volumes.items()}, prepared.volume.geometry


def _read(case: Case, keys: Sequence[str]) -> dict[str, Volume]:
    """Read a row's masks, with the best available geometry and frame time."""
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
    """Check that all masks lie on the grid of the reference or, without one, of the first mask."""
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
    """Return the frame time of the table or, if missing, that of the mask's header if it is plausible."""
    given = case.number("frame_time")
    if given is not None:
        return given
    try:
        return read_nifti(mask).geometry.frame_time
    except CardioDiTError:
        return None  # only the mask's frame time is invalid, and the model has one
