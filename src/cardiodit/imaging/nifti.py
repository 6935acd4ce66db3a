"""NIfTI files that say what is known of space and time, and no more."""

from pathlib import Path

import numpy as np

from cardiodit.imaging.geometry import Geometry
from cardiodit.writing import atomic_file

UNKNOWN_SPACE, ALIGNED_SPACE = 0, 2  # NIfTI xform codes


def write_nifti(path: Path, volume: np.ndarray, geometry: Geometry) -> None:
    """Writes `(H, W, D)` or `(H, W, D, T)`. Without a spacing the file carries no space and no unit."""
    import nibabel

    image = nibabel.Nifti1Image(volume, geometry.affine)
    code = UNKNOWN_SPACE if geometry.spacing is None else ALIGNED_SPACE
    image.set_sform(geometry.affine, code)
    image.set_qform(geometry.affine, code)
    knows_time = geometry.frame_time is not None and volume.ndim == 4
    image.header.set_xyzt_units("unknown" if geometry.spacing is None else "mm", "sec" if knows_time else "unknown")
    if geometry.spacing is None:
        image.header["descrip"] = b"voxel size unknown"
    if volume.ndim == 4:
        image.header["pixdim"][4] = geometry.frame_time if knows_time else 0.0
    with atomic_file(path) as temporary:
        nibabel.save(image, temporary)
