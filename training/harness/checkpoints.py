"""Checkpoints that are whole or not there, and the search for the newest sound one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import new_folder, replace_folder
from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.state import Part, Tensors

STATE = "state.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoint-N` after N steps."""

    folder: Path

    @property
    def step(self) -> int:
        return int(self.folder.name.removeprefix(PREFIX))

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / STATE).read_text())

    def damage(self) -> str | None:
        """What is wrong with it, or None: every file must be as it was written."""
        try:
            files = self.state()["files"]
        except (OSError, ValueError, KeyError):
            return f"its {STATE} cannot be read"
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != digest:
                return f"{name} is not as it was written"
        return None


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Oldest first."""
    found = [Checkpoint(path) for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is as it was written, and a sentence for each newer one that is not.

    Damaged ones are renamed, so that they are in nobody's way and can still be looked at.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints_in(folder)):
        why = checkpoint.damage()
        if why is None:
            return checkpoint, damaged
        aside = _free_name(checkpoint.folder.with_name(f"damaged-{checkpoint.folder.name}"))
        checkpoint.folder.rename(aside)
        damaged.append(f"{checkpoint.folder.name} is damaged ({why}); it is called {aside.name} now.")
    return None, damaged


def write_checkpoint(folder: Path, step: int, parts: Sequence[Part], gathered: Sequence[Tensors], info: Any) -> None:
    """Writes `checkpoint-step` as a whole."""
    with new_folder(folder / f"{PREFIX}{step}") as temporary:
        _write(temporary, step, parts, gathered, info)


def write_best(folder: Path, step: int, parts: Sequence[Part], gathered: Sequence[Tensors], info: Any) -> None:
    """Writes `best`, in place of an older one."""
    with replace_folder(folder / "best") as temporary:
        _write(temporary, step, parts, gathered, info)


def _write(temporary: Path, step: int, parts: Sequence[Part], gathered: Sequence[Tensors], info: Any) -> None:
    for part, tensors in zip(parts, gathered, strict=True):
        part.write(tensors, temporary)
    files = {
        str(path.relative_to(temporary)): sha256_of(path) for path in sorted(temporary.rglob("*")) if path.is_file()
    }
    (temporary / STATE).write_text(json.dumps({"step": step, **info, "files": files}, indent=2) + "\n")


def remove_old(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoints."""
    for checkpoint in checkpoints_in(folder)[:-keep]:
        leaving = checkpoint.folder.rename(checkpoint.folder.with_name(f".tmp-{checkpoint.folder.name}"))
        shutil.rmtree(leaving)


def remove_leftovers(folder: Path) -> None:
    """What a killed process was writing."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def given_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that the user names, which must be sound."""
    if not path.name.removeprefix(PREFIX).isdecimal() or not (path / STATE).is_file():
        raise CardioDiTError(f"{path} is no checkpoint of a run; those are folders named {PREFIX}N with a {STATE}.")
    checkpoint = Checkpoint(path)
    if why := checkpoint.damage():
        raise CardioDiTError(f"{path} is damaged: {why}. Name another one, or leave the choice to 'latest'.")
    return checkpoint


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
