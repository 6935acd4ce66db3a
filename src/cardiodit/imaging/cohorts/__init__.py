"""Public cohorts as they lie on disk, and one's own folders: found, checked, split and listed in manifests."""

from cardiodit.imaging.cohorts.found import CineFile, Search
from cardiodit.imaging.cohorts.prepare import LAYOUTS, Preparation, prepare_cohort

__all__ = ["LAYOUTS", "CineFile", "Preparation", "Search", "prepare_cohort"]
