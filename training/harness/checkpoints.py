"""Checkpoints: written completely or not at all, and the search for the newest intact one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import new_folder, replace_folder
from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.state import Checkpointable, Tensors

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
        """Return what is wrong with it, or None if every file is as it was written."""
        try:
            files = dict(self.state()["files"])
        except Exception:  # it may hold anything
            return f"its {STATE} cannot be read"
        for name, digest in files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != digest:
                return f"{name} has changed since it was written"
        return None


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a run folder, oldest first."""
    checkpoints = [Checkpoint(path) for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal()]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def newest_sound(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint, and a sentence for each newer one that is damaged.

    Damaged checkpoints are renamed, so that they can still be inspected.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints_in(folder)):
        why = checkpoint.damage()
        if why is None:
            return checkpoint, damaged
        aside = _free_name(checkpoint.folder.with_name(f"damaged-{checkpoint.folder.name}"))
        checkpoint.folder.rename(aside)
        damaged.append(f"{checkpoint.folder.name} is damaged ({why}) and was renamed to {aside.name}.")
    return None, damaged


def write_checkpoint(
    folder: Path, step: int, parts: Sequence[Checkpointable], gathered: Sequence[Tensors], info: Any
) -> None:
    """Write `checkpoint-step`."""
    with new_folder(folder / f"{PREFIX}{step}") as temporary:
        _write(temporary, step, parts, gathered, info)


def write_best(
    folder: Path, step: int, parts: Sequence[Checkpointable], gathered: Sequence[Tensors], info: Any
) -> None:
    """Write `best`, replacing an older one."""
    with replace_folder(folder / "best") as temporary:
        _write(temporary, step, parts, gathered, info)


def _write(temporary: Path, step: int, parts: Sequence[Checkpointable], gathered: Sequence[Tensors], info: Any) -> None:
    for part, tensors in zip(parts, gathered, strict=True):
        part.write(tensors, temporary)
    files = {
        str(path.relative_to(temporary)): sha256_of(path) for path in sorted(temporary.rglob("*")) if path.is_file()
    }
    (temporary / STATE).write_text(json.dumps({"step": step, **info, "files": files}, indent=2) + "\n")


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for checkpoint in checkpoints_in(folder)[:-keep]:
        leaving = checkpoint.folder.rename(checkpoint.folder.with_name(f".tmp-{checkpoint.folder.name}"))
        shutil.rmtree(leaving)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def given_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint that the user names; raise an error if it is damaged."""
    if not path.name.removeprefix(PREFIX).isdecimal() or not (path / STATE).is_file():
        raise CardioDiTError(f"{path} is not a checkpoint; checkpoints are folders named {PREFIX}N with a {STATE}.")
    checkpoint = Checkpoint(path)
    if why := checkpoint.damage():
        raise CardioDiTError(f"{path} is damaged: {why}. Choose another one, or use --resume_from_checkpoint latest.")
    return checkpoint


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
