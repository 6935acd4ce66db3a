"""Write files and folders atomically: under a temporary name, then renamed."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cardiodit.errors import CardioDiTError, writing


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, with the same suffix, and rename it to `path` at the end."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which must be new or empty, and rename it at the end."""
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise CardioDiTError(f"The output {path} is a file; a new or empty folder was expected.")
    existing = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if existing:
        some = ", ".join(existing[:5]) + (" and more" if len(existing) > 5 else "")
        raise CardioDiTError(
            f"The output folder {path} is not empty, it contains {some}. Choose a new folder or empty this one."
        )
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.is_dir():
                path.rmdir()
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` at the end; `restore_folder` repairs an interrupted replacement."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            restore_folder(path)
            if path.is_dir():
                path.rename(_aside(path))
            temporary.rename(path)
            shutil.rmtree(_aside(path), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Restore a folder whose replacement was interrupted: either the old folder or the complete new one remains."""
    if _aside(path).is_dir():
        if path.is_dir():
            shutil.rmtree(_aside(path))
        else:
            _aside(path).rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".old-{path.name}")


def append_line(path: Path, line: str) -> None:
    """Append a line in a single write, so that several processes can append to the same file.

    A line of which only a part fitted on the disk is removed again.
    """
    content = (line + "\n").encode()
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(descriptor, content)
            if written < len(content):
                end = os.lseek(descriptor, 0, os.SEEK_CUR)
                if end == os.fstat(descriptor).st_size:
                    os.ftruncate(descriptor, end - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(descriptor)
