"""Published weights: found on disk or on the Hub, hashed, read without running anything, and loaded whole."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cardiodit._util.hashing import sha256_of
from cardiodit.convert.checkpoint import CONVERTED_FROM, SUFFIX, some
from cardiodit.errors import CardioDiTError
from cardiodit.hub.client import download

State = dict[str, torch.Tensor]

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<file>[^:@]+))?(@(?P<revision>[\w./-]+))?")
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
        """With the hash of the published file that it was converted from, which anybody can compare."""
        known = {"revision": self.revision, CONVERTED_FROM: _converted_from(self.path)}
        told = {"source": self.source, "sha256": self.sha256}
        return {**told, **{key: value for key, value in known.items() if value is not None}}


def find_weights(
    reference: str | Path, file: str | None = None, revision: str | None = None, sha256: str | None = None
) -> WeightsFile:
    """A file on disk, or one of the Hub: `org/name:file`, or `org/name` where `file` is known, `@revision` behind it.

    Args:
        sha256: of the file as it must be; otherwise what was found is only reported.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        refuse_pickle(str(path))
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
    refuse_pickle(wanted, match["repository"])
    revision = match["revision"] or revision
    try:
        path = download(match["repository"], wanted, revision)
    except CardioDiTError as error:
        raise CardioDiTError(
            f"{error} Or fetch the file on a machine with a network and give its path as the weights. {RANDOM_HELPS}"
        ) from error
    return WeightsFile(path, f"{match['repository']}:{wanted}", sha256_of(path), _commit(path) or revision)


def _converted_from(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(CONVERTED_FROM)
    except (SafetensorError, OSError):
        return None  # read_weights says what is wrong with it


def _commit(path: Path) -> str | None:
    """The Hub's client keeps a file under snapshots/<commit>/."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def read_weights(path: Path) -> State:
    """The named tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CardioDiTError(f"{path.name} is damaged or no safetensors file ({error}). Fetch it again.") from error


def refuse_pickle(file: str, repository: str | None = None) -> None:
    """Torch files are pickles, which can hold code: `cardiodit convert` alone opens them, and takes tensors only."""
    if Path(file).suffix == SUFFIX:
        return
    place = f" --repo {repository}" if repository else ""
    raise CardioDiTError(
        f"{Path(file).name} is no safetensors file. Of a torch file, make one: "
        f"cardiodit convert weights {file}{place} --output {Path(file).stem}{SUFFIX}, and give that as the weights. "
        f"{RANDOM_HELPS}"
    )


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
