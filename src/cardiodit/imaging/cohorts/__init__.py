"""Public cohorts and your own folders: find the files, check them, split them by patient, write manifests.

The package itself imports only what lists files, so that `cardiodit prepare --help` answers at once. Names that need
numpy are imported on first use (PEP 562).
"""

import importlib
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from cardiodit.imaging.cohorts.cohort import COHORTS, Cohort, CohortFile, Search, register_cohort

if TYPE_CHECKING:
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

_LAZY = {
    "file_checks": ("FIELDS_OF_VIEW", "Preparation"),
    "prepare": ("Prepared", "prepare_cohort", "prepare_with_summary"),
    "report": (),
    "split": (),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

for _module in iter_modules(__path__):  # each cohort's module registers itself
    if _module.name not in _LAZY:
        importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
