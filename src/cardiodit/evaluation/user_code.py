"""The user's own Python code, named `module:name` or `file.py:name`: load it, and hash its source."""

import hashlib
import importlib
import inspect
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError


def load_own(target: str, what: str) -> tuple[ModuleType, Any]:
    """Return the module, and the object in it, that `module:name` or `file.py:name` names.

    Args:
        what: the kind of thing that is expected, for messages, such as "a metric".
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise CardioDiTError(f'"{target}" does not name {what}; expected module:name or file.py:name.')
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except Exception as error:
        searched = " Python searches the installed packages, PYTHONPATH and the current folder."
        raise CardioDiTError(
            f"{place} cannot be imported ({type(error).__name__}: {error}).{'' if place.endswith('.py') else searched}"
        ) from error
    if not hasattr(module, name):
        raise CardioDiTError(f"{place} has no {name}.")
    return module, getattr(module, name)


def _import_module(name: str) -> ModuleType:
    """Import a module; if Python does not find it, search the current folder, as `python -m` does."""
    package, here = name.partition(".")[0], str(Path.cwd())
    is_known = package in sys.modules or find_spec(package) is not None
    if not is_known and PathFinder.find_spec(package, [here]) is not None:
        sys.path.append(here)
    return importlib.import_module(name)


def _import_file(file: Path) -> ModuleType:
    """Import a file under a name of its own, so that it replaces no installed module."""
    file = file.resolve()
    name = f"_cardiodit_own_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}_{file.stem}"
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def hash_of_sources(*things: object) -> str | None:
    """Return the SHA-256 over the source files of modules, classes and functions; None if none has a file.

    What these files import is not included.
    """
    files = {file for thing in things if (file := _source_of(thing)) is not None}
    if not files:
        return None
    return hashlib.sha256("".join(sorted(map(sha256_of, files))).encode()).hexdigest()


def _source_of(thing: object) -> Path | None:
    try:
        file = inspect.getsourcefile(thing)  # type: ignore[arg-type]
    except (TypeError, OSError):  # built in, defined interactively, or an instance
        return None
    return Path(file) if file and Path(file).is_file() else None
