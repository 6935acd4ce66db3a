"""The authors' training checkpoints (`.pth`), read without running anything that is pickled inside."""

import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cardiodit.errors import CardioDiTError

Weights = dict[str, torch.Tensor]

# A NumPy number, such as a best loss, is plain data. NumPy 1 and 2 name the function that builds it apart.
NUMPY_NUMBERS: list[Any] = [
    *[(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    *[
        np.dtype,
        *(type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")),
    ],
]


class StandIn:
    """In the place of a pickled object that safe loading does not know: a dictionary of what the object held.

    Its own class is neither looked up nor imported, so nothing of it runs. Its items are the dictionary's, its
    attributes are the dictionary's attributes.
    """

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


@dataclass(frozen=True)
class Checkpoint:
    """The entries of a checkpoint, and the file they came from.

    Args:
        path: of the file.
        entries: what it holds.
        strangers: classes and functions in it, by name, that were not looked up; `StandIn` is in their place.
    """

    path: Path
    entries: dict[str, Any]
    strangers: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.path.name

    def weights(self, ema: bool = False) -> Weights:
        """The `model` entry; with `ema`, every weight of the EMA laid over it where there is one."""
        model = self.tensors("model")
        average = self.entries.get("ema") if ema else None
        if average is None:
            return model
        shadow = self._average(average)
        strangers = sorted(set(shadow) - set(model))
        if strangers:
            raise CardioDiTError(
                f"{self.file}: the EMA holds weights that the model does not have: {some(strangers)}. "
                "They come from different models."
            )
        return {**model, **shadow}

    def _average(self, average: Any) -> Weights:
        """Of the entry `ema`: those under `shadow`, which may be some, or else the entry itself, which has them all."""
        if isinstance(average, dict) and isinstance(average.get("shadow"), dict):
            return self._tensors("ema.shadow", average["shadow"])
        if not is_table_of_tensors(average):
            raise CardioDiTError(
                f"{self.file}: the entry 'ema' holds no 'shadow' weights. "
                "Convert the raw weights instead (without EMA)."
            )
        weights = self._tensors("ema", average)
        if missing := sorted(set(self.tensors("model")) - set(weights)):
            raise CardioDiTError(
                f"{self.file}: the EMA lacks weights that the model has: {some(missing)}. "
                "Convert the raw weights instead (without EMA)."
            )
        return weights

    def tensors(self, entry: str) -> Weights:
        """The named tensors of an entry, without the prefixes that DDP and torch.compile put before names."""
        if entry not in self.entries:
            raise CardioDiTError(
                f"{self.file} has no entry '{entry}'; it holds {some(list(self.entries)) or 'nothing'}. "
                "A training checkpoint of the authors, such as best_model.pth, was expected."
            )
        return self._tensors(entry, self.entries[entry])

    def _tensors(self, entry: str, values: Any) -> Weights:
        if values != {} and not is_table_of_tensors(values):
            raise CardioDiTError(f"{self.file}: the entry '{entry}' is not a table of tensors (a state dict).")
        return {_plain_name(str(name)): value for name, value in values.items()}

    @property
    def has_ema(self) -> bool:
        return self.entries.get("ema") is not None

    @property
    def epoch(self) -> int | None:
        epoch = self.entries.get("epoch")
        return int(epoch) if isinstance(epoch, (int, np.integer)) else None


def is_table_of_tensors(values: Any) -> bool:
    """Whether this is a state dict, and not an empty one."""
    return isinstance(values, dict) and bool(values) and all(torch.is_tensor(value) for value in values.values())


def read_checkpoint(path: str | PathLike, stand_ins: bool = False) -> Checkpoint:
    """Opens a checkpoint; its tensors stay in the file until they are used, where the format allows.

    Args:
        path: of the file.
        stand_ins: put `StandIn` in the place of objects that safe loading refuses, such as a config's, so that the
            tensors beside them can be read.
    """
    path = Path(path)
    is_zip = _check_file(path)
    try:
        strangers = _strangers(path) if stand_ins and is_zip else ()
        with torch.serialization.safe_globals([*NUMPY_NUMBERS, *((StandIn, name) for name in strangers)]):
            entries = torch.load(path, weights_only=True, map_location="cpu", mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _explain_refusal(path, error) from error
    except Exception as error:  # damaged bytes make torch fail in any way
        raise _damaged(path, str(error).splitlines()[0] if str(error) else "it ends too early") from error
    if not isinstance(entries, dict):
        raise CardioDiTError(f"{path.name} holds a {type(entries).__name__}, not the entries of a training checkpoint.")
    return Checkpoint(path, entries, strangers)


def _strangers(path: Path) -> tuple[str, ...]:
    """Classes and functions in the file that safe loading does not know, found without loading it."""
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        return tuple(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))


def some(names: list[Any], limit: int = 12) -> str:
    """Names for an error: the first ones, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def _plain_name(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _check_file(path: Path) -> bool:
    """Whether the file is of torch's current format, a zip archive; its checksums are verified here."""
    try:
        with path.open("rb") as file:
            starts_as_zip = file.read(2) == b"PK"
    except OSError as error:
        raise CardioDiTError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
    if not starts_as_zip:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _damaged(path, "its archive is incomplete") from error
    if bad is not None:
        raise _damaged(path, f"the checksum of {bad} is wrong")
    return True


def _damaged(path: Path, why: str) -> CardioDiTError:
    return CardioDiTError(
        f"{path.name} is not a torch checkpoint, or it is damaged or cut short ({why.rstrip('.')}). "
        "Copy or download it again and compare the file sizes."
    )


def _explain_refusal(path: Path, error: pickle.UnpicklingError) -> CardioDiTError:
    """Safe loading fails on foreign objects, but also on bytes that are no pickle at all."""
    text = str(error)
    if "GLOBAL" not in text and "Unsupported class" not in text and "Can only" not in text:
        return _damaged(path, "it is no pickle of tensors")
    objects = text.partition("GLOBAL ")[2].split(" ")[0] or "of an unknown class"
    return CardioDiTError(
        f"{path.name} contains arbitrary pickled objects ({objects}), which could run any code when loaded, "
        "so it was not opened. If you trust the file, load it yourself with torch.load(weights_only=False) "
        "and save its 'model', 'ema', 'discriminator' and 'epoch' entries alone with torch.save."
    )
