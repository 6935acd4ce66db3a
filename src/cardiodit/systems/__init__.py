"""The published systems that cardiodit implements, each a record in a module of its own.

Code that needs to know what a system consists of asks this registry; nothing else switches on a system's name, on the
class of a model or on a number of axes. To add a system, write a module that defines a `System` and add it to
`PUBLISHED` (CONTRIBUTING.md has the recipe). Another package adds its systems by entry points of the group
`cardiodit.systems`; a script calls `register`.
"""

from cardiodit.systems.registry import (
    PublicModel,
    Stage,
    System,
    all_systems,
    find_system,
    load,
    public_models,
    register,
    registered,
    stages_by_script,
    system_of,
    system_of_pipeline,
)

__all__ = [
    "PublicModel",
    "Stage",
    "System",
    "all_systems",
    "find_system",
    "load",
    "public_models",
    "register",
    "registered",
    "stages_by_script",
    "system_of",
    "system_of_pipeline",
]
