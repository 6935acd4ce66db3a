"""CT numbers as they are written: whole Hounsfield units in 16 bits."""

import numpy as np

from cardiodit.errors import CardioDiTError

HELD = np.iinfo(np.int16)


def whole_hounsfield(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The voxels as int16, and a note where that rounded them; an error where they do not fit."""
    if voxels.dtype == np.int16:
        return voxels, []
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise CardioDiTError("The CT holds values that are not numbers (NaN or infinite).")
    low, high = float(voxels.min()), float(voxels.max())
    if low < HELD.min or high > HELD.max:
        raise CardioDiTError(
            f"The CT has values from {low:g} to {high:g}. Hounsfield units lie within {HELD.min} and {HELD.max}."
        )
    whole = np.rint(voxels).astype(np.int16)
    lost = float(np.abs(voxels - whole).max()) if voxels.dtype.kind == "f" else 0.0
    return whole, [f"was rounded to whole Hounsfield units, by at most {lost:.2g}"] if lost else []
