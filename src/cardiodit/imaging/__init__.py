"""Volumes with their geometry: files out, pictures out. Knows nothing of networks."""

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.pictures import window_of, write_gif, write_sheet

__all__ = ["Geometry", "window_of", "write_gif", "write_nifti", "write_sheet"]
