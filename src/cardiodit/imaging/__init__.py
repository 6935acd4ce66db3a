"""Volumes with their geometry, from disk to tensors and back; pictures; phantoms. Independent of all networks.

Names are imported on first use (PEP 562), so that `cardiodit.imaging.preprocessing` loads neither torch nor nibabel.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cardiodit.imaging.augmentation import Augmentation
    from cardiodit.imaging.cohorts import prepare_cohort
    from cardiodit.imaging.dicom import read_dicom
    from cardiodit.imaging.figures import write_curve
    from cardiodit.imaging.geometry import Geometry
    from cardiodit.imaging.intensity import Intensity
    from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_case, read_manifest
    from cardiodit.imaging.nifti import read_nifti, write_nifti
    from cardiodit.imaging.pictures import window_of, write_gif, write_overview, write_sheet, write_slices
    from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
    from cardiodit.imaging.resampling import resample
    from cardiodit.imaging.volume import Volume

__all__ = [
    "PRESETS",
    "Augmentation",
    "Geometry",
    "Intensity",
    "Preprocessing",
    "Volume",
    "prepare_case",
    "prepare_cohort",
    "prepare_mask",
    "read_case",
    "read_dicom",
    "read_manifest",
    "read_nifti",
    "resample",
    "window_of",
    "write_curve",
    "write_gif",
    "write_nifti",
    "write_overview",
    "write_sheet",
    "write_slices",
]

_MODULES = {
    "augmentation": ("Augmentation",),
    "cohorts": ("prepare_cohort",),
    "dicom": ("read_dicom",),
    "figures": ("write_curve",),
    "geometry": ("Geometry",),
    "intensity": ("Intensity",),
    "manifest": ("prepare_case", "prepare_mask", "read_case", "read_manifest"),
    "nifti": ("read_nifti", "write_nifti"),
    "pictures": ("window_of", "write_gif", "write_overview", "write_sheet", "write_slices"),
    "preprocessing": ("PRESETS", "Preprocessing"),
    "resampling": ("resample",),
    "volume": ("Volume",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
