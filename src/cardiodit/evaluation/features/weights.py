"""Weights files: found on disk or on the Hub, hashed, read without running code, and loaded strictly."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cardiodit._util.foreign_files import check_file
from cardiodit._util.hashing import sha256_of
from cardiodit.convert.checkpoint import CONVERTED_FROM, SUFFIX, some
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.hub.client import download

State = dict[str, torch.Tensor]

HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(:(?P<file>[^:@]+))?(@(?P<revision>[\w./-]+))?")
COUNTERS = ".num_batches_tracked"  # of batch norm; they affect no feature, and older files lack them
RANDOM_HELPS = "The network `random` needs no weights."


@dataclass(frozen=True)
class WeightsFile:
    """A file and its source; `revision` is the commit on the Hub."""

    path: Path
    source: str
    sha256: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        """Describe the file, with the hash of the published file it was converted from, which anyone can compare."""
        optional = {"revision": self.revision, CONVERTED_FROM: _converted_from(self.path)}
        return {
            "source": self.source,
            "sha256": self.sha256,
            **{key: value for key, value in optional.items() if value is not None},
        }


def find_weights(
    reference: str | Path, file: str | None = None, revision: str | None = None, sha256: str | None = None
) -> WeightsFile:
    """Find a file on disk or on the Hub.

    Args:
        reference: a path, `org/name:file`, or `org/name` if `file` is given; on the Hub optionally with `@revision`.
        sha256: expected SHA-256 of the file.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        refuse_pickle(str(path))
        # Only the file's name is reported: reports are shared, and must not reveal the folders above it.
        weights = WeightsFile(path, path.name, sha256_of(path))
    else:
        weights = _from_hub(str(reference), file, revision)
    if sha256 is not None and weights.sha256 != sha256.lower():
        raise CardioDiTError(
            f"The weights {weights.source} have the SHA-256 {weights.sha256}; expected {sha256.lower()}. They are "
            "different weights, or damaged: download them again."
        )
    return weights


def _from_hub(reference: str, file: str | None, revision: str | None) -> WeightsFile:
    match = HUB_NAME.fullmatch(reference)
    file = match and (match["file"] or file)
    if match is None or not file:
        raise CardioDiTError(
            f"There are no weights at {reference}: it is neither a file nor, on the Hub, `org/name:file`. "
            f"{RANDOM_HELPS}"
        )
    repository = match["repository"]
    revision = match["revision"] or revision
    refuse_pickle(file, repository)
    try:
        path = download(repository, file, revision)
    except CardioDiTError as error:
        raise CardioDiTError(
            f"{error} Or download the file on a machine with network access and give its path as the weights. "
            f"{RANDOM_HELPS}"
        ) from error
    parts = path.parts  # the Hub's client stores files under snapshots/<commit>/
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision
    return WeightsFile(path, f"{repository}:{file}", sha256_of(path), commit)


def _converted_from(path: Path) -> str | None:
    from safetensors import safe_open

    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(CONVERTED_FROM)
    except Exception:
        return None  # read_weights reports what is wrong with it


def read_weights(path: Path) -> State:
    """Read the named tensors of a .safetensors file."""
    from safetensors.torch import load_file

    check_file(path)
    try:
        return load_file(path)
    except Exception as error:
        raise CardioDiTError(
            f"{path.name} is damaged or not a safetensors file ({reason_of(error)}). Download it again."
        ) from error


def refuse_pickle(file: str, repository: str | None = None) -> None:
    """Reject torch files: they are pickles, which can contain code. Only `cardiodit convert` opens them, safely."""
    if Path(file).suffix == SUFFIX:
        return
    place = f" --repo {repository}" if repository else ""
    raise CardioDiTError(
        f"{Path(file).name} is not a safetensors file. Convert a torch file: cardiodit convert weights {file}{place} "
        f"--output {Path(file).stem}{SUFFIX}, and give that as the weights. {RANDOM_HELPS}"
    )


def load_strictly(
    module: nn.Module, state: State, source: str, rename: Callable[[str], str] = str, heads: Sequence[str] = ()
) -> None:
    """Load every tensor; missing names, unexpected names and different shapes are errors that list them.

    Args:
        source: name of the file, for messages.
        rename: from the file's names to the module's.
        heads: prefixes of names to ignore, such as a classifier's.
    """
    given = {rename(name): value for name, value in state.items()}
    given = {name: value for name, value in given.items() if not name.startswith(tuple(heads))}
    own = module.state_dict()
    expected = {name for name in own if not name.endswith(COUNTERS)}
    present = {name for name in given if not name.endswith(COUNTERS)}
    problems = {
        "lacks": expected - present,
        "has unexpected": present - expected,
        "has in another shape": {name for name in expected & present if given[name].shape != own[name].shape},
    }
    if any(problems.values()):
        words = ", ".join(f"{verb} {some(sorted(names))}" for verb, names in problems.items() if names)
        raise CardioDiTError(
            f"The weights {source} do not belong to this network: the file {words}. Nothing was loaded. Check that "
            "the file belongs to the requested network."
        )
    counters = {name: value for name, value in own.items() if name.endswith(COUNTERS)}
    module.load_state_dict({**counters, **{name: given[name] for name in expected}}, strict=True)


def hash_of_weights(module: nn.Module, architecture: str = "") -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all tensors, and over a text on the architecture."""
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
