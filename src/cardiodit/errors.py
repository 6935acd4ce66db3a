"""Errors that a user can fix: their text is meant for the user. Any other error becomes one sentence here."""

import errno
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from gzip import BadGzipFile
from os import PathLike
from typing import Any

COPY_AGAIN = "Copy it again from its source."
DEBUG, QUIET = "--debug", "--quiet"
DAMAGE = (EOFError, zlib.error, BadGzipFile, zipfile.BadZipFile)
LONGEST_REASON = 300  # characters of a library's own message
DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
# Libraries that raise errors of their own, or without a number, on a full disk.
DISK_FULL_TEXT = re.compile(
    r"No space left|Disk quota exceeded|File too large|os error (28|122|27)\b|requested and \d+ written"
)
OUT_OF_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Unable to allocate", re.IGNORECASE
)


class CardioDiTError(ValueError):
    """Base class for user-fixable errors. The text says what was wrong, where, and what to do; the CLI prints it."""


class MissingFileError(CardioDiTError, FileNotFoundError):
    """A file that does not exist."""


class Problems:
    """A list of problems, reported in one error so that a user can fix all of them at once."""

    def __init__(self, heading: str) -> None:
        self.heading = heading
        self.found: list[str] = []

    def add(self, sentence: str) -> None:
        self.found.append(sentence)

    def raise_if_any(self, advice: str = "") -> None:
        if not self.found:
            return
        lines = "".join(f"\n  - {sentence}" for sentence in self.found)
        raise CardioDiTError(f"{self.heading}:{lines}{advice and chr(10)}{advice}")


def try_all(*functions: Callable[[], Any]) -> list[Any]:
    """Call every function and return the results; user-fixable errors are collected and raised as one."""
    results: list[Any] = []
    problems: list[str] = []
    for function in functions:
        try:
            results.append(function())
        except CardioDiTError as problem:
            problems.append(str(problem))
    if problems:
        raise CardioDiTError("\n".join(problems))
    return results


@contextmanager
def reading(path: str | PathLike, kind: str = "", advice: str = COPY_AGAIN) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into an error that names the file and the reason.

    Args:
        path: the file or folder.
        kind: what it is read as, such as "NIfTI".
        advice: what to do about it.
    """
    try:
        yield
    except CardioDiTError:
        raise
    except DAMAGE as error:
        raise CardioDiTError(f"{path} is damaged or was cut off ({reason_of(error)}). {advice}") from error
    except Exception as error:  # on damaged files, libraries raise errors of all kinds
        as_kind = f" as {kind}" if kind else ""
        raise CardioDiTError(f"{path} cannot be read{as_kind}: {reason_of(error)}. {advice}") from error


@contextmanager
def writing(path: str | PathLike) -> Iterator[None]:
    """Turn errors of a full disk, by whatever library they are raised, into one that says so."""
    try:
        yield
    except CardioDiTError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise CardioDiTError(
            f"The disk is full, so {path} was not written. Free some space and run the same command again."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that a disk, quota or file size is exhausted."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    origin = error.__cause__ or error.__context__
    return bool(DISK_FULL_TEXT.search(str(error))) or (origin is not None and is_disk_full(origin))


def reason_of(error: BaseException) -> str:
    """Return a short reason, in one line and without a full stop, for an error that a library raised."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    text = (error.strerror or "") if isinstance(error, OSError) else ""
    text = " ".join((text or str(error)).split())
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    if not text:
        text = type(error).__name__
    return (text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} …").rstrip(".")


def print_error(error: Exception, program: str, debug: bool = False) -> None:
    """Print how a program failed: one sentence and, with `debug`, the traceback before it."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    sentence = f"{program}: error: {sentence_of(error, debug)}"
    print(sentence.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


def sentence_of(error: Exception, debug: bool = False) -> str:
    """Return an error as a sentence; of one that nobody foresaw, with the way to its traceback."""
    if isinstance(error, CardioDiTError):
        return _without_worker(error)
    if is_disk_full(error):
        file = getattr(error, "filename", None)
        what = f"{file} was not written" if file else "not everything was written"
        return f"The disk is full, so {what}. Free some space and run the same command again."
    if isinstance(error, MemoryError) or OUT_OF_MEMORY_TEXT.search(str(error)):
        return (
            f"There is not enough memory ({reason_of(error)}). Use a smaller batch size, fewer processes or smaller "
            "volumes."
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if isinstance(error, OSError):
        return " ".join(str(error).split()) or type(error).__name__
    more = "" if debug else f" Run the same command with {DEBUG} to see where; if your input is fine, please report it."
    return f"Something unexpected went wrong ({type(error).__name__}: {reason_of(error)}).{more}"


def _without_worker(error: CardioDiTError) -> str:
    """Return the text of an error without the traceback that a data loader's worker process puts before it."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()
