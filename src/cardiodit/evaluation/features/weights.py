"""Published weights: found on disk or on the Hub, hashed, read without running anything, and loaded whole."""

import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cardiodit.convert.checkpoint import some
from cardiodit.errors import CardioDiTError
from cardiodit.hashing import sha256_of
from cardiodit.hub.downloading import download

State = dict[str, torch.Tensor]

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<file>[^:@]+))?(@(?P<revision>[\w./-]+))?")
NESTED = ("state_dict", "model_state_dict", "model")  # under which checkpoints keep their tensors
COUNTERS = ".num_batches_tracked"  # batch norm's, which no feature depends on; older files have none
RANDOM_HELPS = "The network `random` needs no weights."


@dataclass(frozen=True)
class WeightsFile:
    """A file and where it came from; `revision` is the Hub's commit."""

    path: Path
    source: str
    sha256: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        told = {"source": self.source, "sha256": self.sha256}
        return told if self.revision is None else {**told, "revision": self.revision}


def find_weights(
    reference: str | Path, file: str | None = None, revision: str | None = None, sha256: str | None = None
) -> WeightsFile:
    """A file on disk, or one of the Hub: `org/name:file`, or `org/name` where `file` is known, `@revision` behind it.

    Args:
        sha256: of the file as it must be; otherwise what was found is only reported.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        # The report leaves the house: it tells the file's name, not the folders above it.
        found = WeightsFile(path, path.name, sha256_of(path))
    else:
        found = _from_hub(str(reference), file, revision)
    if sha256 is not None and found.sha256 != sha256.lower():
        raise CardioDiTError(
            f"The weights {found.source} have the SHA-256 {found.sha256}, but {sha256.lower()} was asked for. They "
            "are other weights, or damaged: fetch them again."
        )
    return found


def _from_hub(reference: str, file: str | None, revision: str | None) -> WeightsFile:
    match = HUB_NAME.fullmatch(reference)
    wanted = match and (match["file"] or file)
    if match is None or not wanted:
        raise CardioDiTError(
            f"There are no weights at {reference}: neither a file nor, on the Hub, `org/name:file`. {RANDOM_HELPS}"
        )
    revision = match["revision"] or revision
    try:
        path = download(match["repository"], wanted, revision)
    except CardioDiTError as error:
        raise CardioDiTError(
            f"{error} Or fetch the file on a machine with a network and give its path as the weights. {RANDOM_HELPS}"
        ) from error
    return WeightsFile(path, f"{match['repository']}:{wanted}", sha256_of(path), _commit(path) or revision)


def _commit(path: Path) -> str | None:
    """The Hub's client keeps a file under snapshots/<commit>/."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def read_weights(path: Path) -> State:
    """The named tensors of a .safetensors file, or of a torch file (.pth), of which only tensors are unpickled."""
    entries = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name in NESTED:
        if isinstance(entries, dict) and isinstance(entries.get(name), dict):
            entries = entries[name]
            break
    if not isinstance(entries, dict) or not entries or not all(torch.is_tensor(v) for v in entries.values()):
        raise CardioDiTError(f"{path.name} is not a table of named tensors (a state dict).")
    return {str(name): value for name, value in entries.items()}


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CardioDiTError(f"{path.name} is damaged or no safetensors file ({error}). Fetch it again.") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise CardioDiTError(
            f"{path.name} was not opened: it holds more than tensors, or is no torch file. What else is pickled could "
            "run any code when loaded. If you trust the file, load it yourself with torch.load(weights_only=False) "
            "and save its state dict alone, as .safetensors."
        ) from error
    except Exception as error:  # damaged bytes make torch fail in any way
        raise CardioDiTError(f"{path.name} is no torch file, or damaged or cut short. Fetch it again.") from error


def load_strictly(
    module: nn.Module, state: State, source: str, rename: Callable[[str], str] = str, heads: Sequence[str] = ()
) -> None:
    """Loads every tensor; a name that is missing or left over, or another shape, is an error that names it.

    Args:
        rename: from the file's names to the module's.
        heads: beginnings of names that are left out, such as a classifier's.
    """
    given = {rename(name): value for name, value in state.items()}
    given = {name: value for name, value in given.items() if not name.startswith(tuple(heads))}
    own = module.state_dict()
    wanted = {name for name in own if not name.endswith(COUNTERS)}
    held = {name for name in given if not name.endswith(COUNTERS)}
    problems = [
        _named("lacks", sorted(wanted - held)),
        _named("has beside them", sorted(held - wanted)),
        _named("has in another shape", sorted(n for n in wanted & held if given[n].shape != own[n].shape)),
    ]
    if any(problems):
        raise CardioDiTError(
            f"The weights {source} are not this network's: the file {', '.join(filter(None, problems))}. "
            "Nothing was loaded. Look whether the file belongs to the network that was asked for."
        )
    counters = {name: value for name, value in own.items() if name.endswith(COUNTERS)}
    module.load_state_dict({**counters, **{name: given[name] for name in wanted}}, strict=True)


def _named(verb: str, names: list[str]) -> str:
    return f"{verb} {some(names)}" if names else ""
