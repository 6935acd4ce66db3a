"""Public cohorts as they lie on disk, and one's own folders: found, checked, split and listed in manifests."""

from cardiodit.imaging.cohorts.cohort_checks import Preparation
from cardiodit.imaging.cohorts.found import CineFile, CTFile, Search
from cardiodit.imaging.cohorts.prepare import LAYOUTS, prepare_cohort
from cardiodit.imaging.cohorts.prepare_ct import CT_LAYOUTS, prepare_ct
from cardiodit.imaging.cohorts.view import VIEWS

__all__ = [
    "CT_LAYOUTS",
    "LAYOUTS",
    "VIEWS",
    "CTFile",
    "CineFile",
    "Preparation",
    "Search",
    "prepare_cohort",
    "prepare_ct",
]
