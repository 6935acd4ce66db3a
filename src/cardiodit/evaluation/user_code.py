"""Python code of the user's own, named `module:something`: where it is looked for, and what tells one state of it."""

import hashlib
import importlib
import inspect
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from cardiodit._util.hashing import sha256_of

LOOKED_IN = "Python looks for it among what is installed, in PYTHONPATH, and in the current folder"


def import_own(name: str) -> ModuleType:
    """Imports a module; one that Python does not find is looked for in the current folder, as `python -m` does."""
    package, here = name.partition(".")[0], str(Path.cwd())
    is_known = package in sys.modules or find_spec(package) is not None
    if not is_known and PathFinder.find_spec(package, [here]) is not None:
        sys.path.append(here)
    return importlib.import_module(name)


def hash_of_sources(*things: object) -> str | None:
    """SHA-256 over the files in which modules, classes and functions are written; None where none has a file.

    What these files import is not looked at.
    """
    files = {file for thing in things if (file := _source_of(thing)) is not None}
    if not files:
        return None
    return hashlib.sha256("".join(sorted(map(sha256_of, files))).encode()).hexdigest()


def _source_of(thing: object) -> Path | None:
    try:
        file = inspect.getsourcefile(thing)  # type: ignore[arg-type]
    except (TypeError, OSError):  # built in, typed in, or an instance
        return None
    return Path(file) if file and Path(file).is_file() else None
