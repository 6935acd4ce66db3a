"""Check files that others wrote before they are read: what kind of file, how long, and how much they expand to.

A model, image or config may come from anywhere. A named pipe would be waited for forever, a few kilobytes can expand to
gigabytes, and a header can claim any size, so nothing is allocated before these checks.
"""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from cardiodit.errors import COPY_AGAIN, CardioDiTError, MissingFileError, reading, reason_of

LONGEST_TEXT = 2**26  # bytes of a JSON file or a table
MOST_VALUES = 100_000  # in a YAML file, after its aliases are replaced by what they stand for
FREELY = 2**30  # bytes to which any compressed file may expand
PICKLES = (".pt", ".pth", ".pkl")
MOST_EXPANSION = 100  # times its own length, beyond that


def check_file(path: Path | str, longest: int | None = None) -> int:
    """Return the length of a file in bytes; raise an error if it is missing, not a regular file, or too long."""
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise CardioDiTError(f"{path} cannot be read: {reason_of(error)}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise CardioDiTError(f"{path} is a folder, not a file.")
    if not stat.S_ISREG(status.st_mode):
        raise CardioDiTError(f"{path} is a device or a pipe; a regular file was expected.")
    if longest is not None and status.st_size > longest:
        raise CardioDiTError(f"{path} has {status.st_size} bytes; at most {longest} were expected.")
    return status.st_size


def refuse_pickle(path: Path) -> NoReturn:
    """Raise an error about a file of numbers that PyTorch wrote, which says how to store it as NPZ or NPY."""
    name, stem = path.name, path.stem
    raise CardioDiTError(
        f"{path} is a pickle, which may run code, so only `cardiodit convert` reads such files. If you trust it, store "
        f'its numbers in its folder: python -c "import numpy, torch; x = torch.load({name!r}, weights_only=True); '
        f"numpy.savez('{stem}.npz', **x) if isinstance(x, dict) else numpy.save('{stem}.npy', x)\"."
    )


def check_expansion(path: Path | str, expanded: int, length: int, is_compressed: bool = True) -> None:
    """Raise an error if a file's content would need more memory than there is, or is compressed suspiciously well.

    Args:
        path: the file.
        expanded: bytes that its header promises.
        length: bytes that the file, or this part of it, has.
        is_compressed: whether the content may be longer than the file at all.
    """
    if is_compressed and expanded > max(FREELY, MOST_EXPANSION * length):
        raise CardioDiTError(
            f"{path} has {length} bytes and claims to hold {expanded}. That is no image: compressed images shrink less "
            f"than {MOST_EXPANSION}-fold. If it is a mask, store it as whole numbers of one byte."
        )
    if expanded > (memory := physical_memory()):
        raise CardioDiTError(f"{path} claims to hold {expanded} bytes, more than this machine's memory ({memory}).")


def physical_memory() -> int:
    """Return the bytes of memory of this machine; where it is unknown, more than any has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**60


def available_memory() -> int:
    """Return the bytes of memory that are free, or that the system can free; where unknown, all of the memory."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return physical_memory()


def read_text(path: Path | str, longest: int = LONGEST_TEXT, advice: str = COPY_AGAIN) -> str:
    """Read a UTF-8 text file, with or without a byte order mark."""
    check_file(path, longest)
    with reading(path, advice=advice):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: Path | str, advice: str = COPY_AGAIN) -> Any:
    """Read a JSON file."""
    text = read_text(path, advice=advice)
    with reading(path, "JSON", advice):
        return json.loads(text)


def read_object(path: Path | str, required: Iterable[str] = (), advice: str = COPY_AGAIN) -> dict[str, Any]:
    """Read a JSON file that holds an object, with at least the required keys."""
    values = read_json(path, advice)
    if not isinstance(values, dict):
        raise CardioDiTError(f"{path} holds {_kind(values)}; an object with keys was expected. {advice}")
    if missing := [key for key in required if key not in values]:
        raise CardioDiTError(f"{path} has no {', '.join(map(repr, missing))}. {advice}")
    return values


def check_number_of_values(value: Any, path: Path | str) -> None:
    """Raise an error if a YAML value is too large when its aliases are replaced, which may be billions of times."""
    left, stack = MOST_VALUES, [value]
    while stack:
        left -= 1
        if left < 0:
            raise CardioDiTError(f"{path} holds more than {MOST_VALUES} values; a config has fewer.")
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple | set):
            stack += item


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
