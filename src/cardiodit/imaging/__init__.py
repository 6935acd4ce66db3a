"""Volumes with their geometry: files out, pictures out. Knows nothing of networks."""

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.pictures import write_gif

__all__ = ["Geometry", "write_gif", "write_nifti"]
