"""Volumes with their geometry, from disk to tensors and back; pictures; phantoms. Knows nothing of networks."""

from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cases import prepare_case, prepare_mask, read_case
from cardiodit.imaging.cohorts import prepare_cohort
from cardiodit.imaging.curve import write_curve
from cardiodit.imaging.dicom import read_dicom
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.overview import write_overview
from cardiodit.imaging.pictures import window_of, write_gif, write_sheet, write_slices
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
