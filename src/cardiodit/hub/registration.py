"""Makes diffusers find our classes by name, so that saved folders load like any other model.

A pipeline folder names each component's library. diffusers imports only its own and transformers', and looks
for any other name among the attributes of `diffusers.pipelines`. With the package entered there as `cardiodit`,
`DiffusionPipeline.from_pretrained` opens our folders; without, it would record the full path of our modules,
and those could then never move.
"""

import sys
from typing import Any

import diffusers

LIBRARY = "cardiodit"


def register_with_diffusers(*classes: type) -> None:
    """Enters the package and its public classes into diffusers. Runs on `import cardiodit`; harmless twice."""
    setattr(diffusers.pipelines, LIBRARY, sys.modules[LIBRARY])
    for public_class in classes:
        setattr(diffusers, public_class.__name__, public_class)


def public_library(value: Any) -> Any:
    """(module path, class name) of one of our components → ("cardiodit", class name); all else unchanged."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str):
        library, class_name = value
        if library.split(".")[0] == LIBRARY:
            return LIBRARY, class_name
    return value
