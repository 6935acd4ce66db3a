"""Registration with diffusers: it finds our classes by name, so that saved folders load like any other model.

A pipeline folder names the library of each component. diffusers imports only its own and transformers' classes and
looks any other library up among the attributes of `diffusers.pipelines`. With this package entered there as
`cardiodit`, `DiffusionPipeline.from_pretrained` opens our folders; otherwise a saved folder would record the full path
of our modules, which then could never move.

Nothing here imports diffusers: it is registered with as soon as it has been imported by someone else.
"""

import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from cardiodit.errors import CardioDiTError

LIBRARY = "cardiodit"


def register_with_diffusers(class_names: Collection[str]) -> None:
    """Make `diffusers` and `diffusers.pipelines` find our classes, now or as soon as diffusers is imported."""
    names = frozenset(class_names)
    if "diffusers" in sys.modules:
        _register(sys.modules["diffusers"], names)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(names))


def _register(diffusers: ModuleType, names: frozenset[str]) -> None:
    """Let `diffusers.X` fall back to `cardiodit.X`, which imports the class on first use."""
    original_class: Any = type(diffusers)

    class WithOurClasses(original_class):
        def __getattr__(self, name: str) -> Any:
            if name in names:
                return getattr(sys.modules[LIBRARY], name)
            return super().__getattr__(name)

    diffusers.__class__ = WithOurClasses
    setattr(diffusers.pipelines, LIBRARY, sys.modules[LIBRARY])


class _AfterImport(MetaPathFinder):
    """An import hook that registers right after diffusers has been executed."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(sys.modules[fullname], self.names)  # diffusers replaces itself with a lazy module

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def own_components(index: dict[str, Any], name: Any) -> dict[str, Any]:
    """Return the index of a pipeline of ours with all its components in this package.

    A folder that was exported with its code names files instead, which need not run where the package is installed.
    Classes of other libraries are refused, except schedulers of diffusers: opening them could run foreign code.
    """
    ours = getattr(sys.modules[LIBRARY], "_SAVED_CLASSES", ())
    where = f"The model_index.json of {name}"
    checked = dict(index)
    kind = checked["_class_name"] = class_name_of(index, name)
    if kind not in ours:
        raise CardioDiTError(f"{where} names the pipeline {kind}, which this version of cardiodit does not know.")
    for component, entry in index.items():
        if component.startswith("_") or not isinstance(entry, list):
            continue
        if len(entry) != 2 or not all(item is None or isinstance(item, str) for item in entry):
            raise CardioDiTError(f"{where} does not say which class {component} has: found {str(entry)[:80]}.")
        library, class_name = entry
        if class_name in ours:
            checked[component] = [LIBRARY, class_name]
        elif class_name is not None and (component != "scheduler" or library != "diffusers"):
            raise CardioDiTError(
                f"{where} names {library}.{class_name} as {component}. Only classes of cardiodit, and schedulers of "
                "diffusers, are opened. If you trust its author, open it with the library that it was made for."
            )
    return checked


def class_name_of(index: Any, name: Any) -> str:
    """Return the pipeline class that an index names; a folder with its own code also names the file."""
    kind = index.get("_class_name") if isinstance(index, dict) else None
    kind = kind[-1] if isinstance(kind, list) and kind else kind
    if not isinstance(kind, str):
        raise CardioDiTError(f"The model_index.json of {name} names no pipeline class (_class_name).")
    return kind


def public_library(value: Any) -> Any:
    """Return ("cardiodit", class name) for (module path, class name) of one of our components; else the value."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str):
        library, class_name = value
        if library.split(".")[0] == LIBRARY:
            return LIBRARY, class_name
    return value
