"""Public cohorts and your own folders: find the files, check them, split them by patient, write manifests."""

from importlib import import_module
from pkgutil import iter_modules

from cardiodit.imaging.cohorts.cohort import COHORTS, Cohort, CohortFile, Search, register_cohort
from cardiodit.imaging.cohorts.file_checks import FIELDS_OF_VIEW, Preparation
from cardiodit.imaging.cohorts.prepare import Prepared, prepare_cohort, prepare_with_summary

__all__ = [
    "COHORTS",
    "FIELDS_OF_VIEW",
    "Cohort",
    "CohortFile",
    "Preparation",
    "Prepared",
    "Search",
    "prepare_cohort",
    "prepare_with_summary",
    "register_cohort",
]

for _module in iter_modules(__path__):  # each cohort's module registers itself
    import_module(f"{__name__}.{_module.name}")
