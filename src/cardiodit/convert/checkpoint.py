"""Reading of torch checkpoints (`.pth`) without running pickled code, and their conversion to safetensors."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import check_file, read_object
from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError, reading, reason_of

Weights = dict[str, torch.Tensor]

SUFFIX = ".safetensors"
CONVERTED_FROM = "converted_from_sha256"  # metadata key of a converted file
STATE_DICT_ENTRIES = ("state_dict", "model_state_dict", "model")  # where checkpoints keep their weights

# NumPy numbers, such as a best loss, and arrays, such as the state of a random generator, are plain data. NumPy 1 and 2
# use different names for their constructors.
NUMPY_NUMBERS: list[Any] = [
    *[(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    *[(np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
    *[
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "uint32", "bool")),
    ],
]


class StandIn:
    """Replacement for a pickled object that safe loading rejects: a dictionary with its items and attributes.

    The object's class is neither looked up nor imported, so none of its code runs.
    """

    def __new__(cls, *_: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


@dataclass(frozen=True)
class Checkpoint:
    """The entries of a checkpoint file.

    Args:
        path: the file.
        entries: its content by name.
        replaced: names of the classes and functions in it that were replaced by `StandIn`.
    """

    path: Path
    entries: dict[str, Any]
    replaced: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.path.name

    @property
    def has_ema(self) -> bool:
        return self.entries.get("ema") is not None

    @property
    def epoch(self) -> int | None:
        epoch = self.entries.get("epoch")
        return int(epoch) if isinstance(epoch, (int, np.integer)) else None

    def weights(self, ema: bool = False) -> Weights:
        """Return the `model` entry; with `ema`, weights of the EMA replace those of the model."""
        model = self.tensors("model")
        average = self.entries.get("ema") if ema else None
        if average is None:
            return model
        shadow = self._ema_weights(average)
        if unexpected := sorted(set(shadow) - set(model)):
            raise CardioDiTError(
                f"{self.file}: the EMA holds weights that the model does not have: {some(unexpected)}. "
                "They come from different models."
            )
        return {**model, **shadow}

    def _ema_weights(self, average: Any) -> Weights:
        """Return the EMA's weights: those under `shadow`, which may be incomplete, or a complete state dict."""
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
        """Return the tensors of an entry by name, without the prefixes of DDP and torch.compile.

        A file of bare weights, such as final_model.pth, is a "model" by itself.
        """
        if entry == "model" and entry not in self.entries and is_table_of_tensors(self.entries):
            return self._tensors(entry, self.entries)
        if entry not in self.entries:
            raise CardioDiTError(
                f"{self.file} has no entry '{entry}'; it holds {some(list(self.entries)) or 'nothing'}. "
                "Expected a training checkpoint of the authors, such as best_model.pth."
            )
        return self._tensors(entry, self.entries[entry])

    def _tensors(self, entry: str, values: Any) -> Weights:
        if values != {} and not is_table_of_tensors(values):
            raise CardioDiTError(f"{self.file}: the entry '{entry}' is not a table of tensors (a state dict).")
        check_dense(self.file, values)
        return {_without_prefixes(str(name)): value for name, value in values.items()}


def is_table_of_tensors(values: Any) -> bool:
    """Return whether this is a non-empty state dict."""
    return isinstance(values, dict) and bool(values) and all(torch.is_tensor(value) for value in values.values())


def check_dense(file: str, tensors: Mapping[Any, torch.Tensor]) -> None:
    """Raise an error for tensors without plain values: sparse, quantised, without content, or larger than the file."""
    for name, tensor in tensors.items():
        kind = ""
        if tensor.layout != torch.strided:
            kind = "sparse"
        elif tensor.is_quantized:
            kind = "quantised"
        elif tensor.device.type != "cpu":
            kind = "without content"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            kind = f"of the shape {tuple(tensor.shape)} with fewer stored values"
        if kind:
            raise CardioDiTError(
                f"{file}: the tensor {name} is {kind}; plain tensors were expected. Save it again with "
                "tensor.to_dense(), tensor.dequantize() or tensor.contiguous()."
            )


def read_checkpoint(path: str | PathLike, stand_ins: bool = False) -> Checkpoint:
    """Open a checkpoint; if the format allows, its tensors stay in the file until they are used.

    Args:
        path: checkpoint file.
        stand_ins: replace objects that safe loading rejects, such as a config's, by `StandIn`, so that the tensors can
            be read.
    """
    path = _pointed_at(Path(path))
    is_zip = _check_file(path)
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path) if stand_ins and is_zip else []
        replaced = tuple(sorted(unsafe))
        with torch.serialization.safe_globals([*NUMPY_NUMBERS, *((StandIn, name) for name in replaced)]):
            entries = torch.load(path, weights_only=True, map_location="cpu", mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _explain_refusal(path, error) from error
    except Exception as error:  # torch raises all kinds of errors on damaged files
        raise _damaged(path, reason_of(error)) from error
    if not isinstance(entries, dict):
        raise CardioDiTError(f"{path.name} holds a {type(entries).__name__}, not the entries of a training checkpoint.")
    return Checkpoint(path, entries, replaced)


def _pointed_at(path: Path) -> Path:
    """Return the checkpoint that the authors' last_checkpoint.json names in its folder; other files as they are."""
    if path.suffix != ".json":
        return path
    target = read_object(path).get("target")
    if not isinstance(target, str) or Path(target).name != target:
        raise CardioDiTError(
            f"{path.name} does not name a checkpoint in its folder ('target'): found {str(target)[:80]!r}."
        )
    return path.with_name(target)


def convert_weights(checkpoint: Path, output: Path) -> Path:
    """Write the named tensors of a torch file (.pth, .pt) to a safetensors file under the same names.

    Args:
        checkpoint: torch file, of which only tensors are read.
        output: new file that ends in .safetensors.
    """
    if output.suffix != SUFFIX:
        raise CardioDiTError(f"The output {output} must be a file that ends in {SUFFIX}.")
    if output.exists():
        raise CardioDiTError(f"{output} exists already and is not replaced. Choose another name, or remove it.")
    entries = read_checkpoint(checkpoint).entries
    entries = next((entries[name] for name in STATE_DICT_ENTRIES if isinstance(entries.get(name), dict)), entries)
    if not is_table_of_tensors(entries):
        raise CardioDiTError(f"{checkpoint.name} is not a table of named tensors (a state dict).")
    output.parent.mkdir(parents=True, exist_ok=True)
    check_dense(checkpoint.name, entries)
    tensors = {str(name): value.clone().contiguous() for name, value in entries.items()}  # without shared memory
    with atomic_file(output) as temporary:
        save_file(tensors, temporary, {CONVERTED_FROM: sha256_of(checkpoint)})
    return output


def some(names: list[Any], limit: int = 12) -> str:
    """Return the first names, and the number of further ones, for an error message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def _without_prefixes(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _check_file(path: Path) -> bool:
    """Return whether the file has torch's current format, a zip archive, after verifying its checksums."""
    length = check_file(path)
    with reading(path), path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if not starts_as_zip:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > length:  # torch compresses nothing
                raise _damaged(path, "its archive is compressed, unlike those that torch writes")
            bad = archive.testzip()
    except CardioDiTError:
        raise
    except Exception as error:
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
    """Tell unsafe objects from bytes that are not a pickle at all, as safe loading rejects both."""
    text = str(error)
    if "GLOBAL" not in text and "Unsupported class" not in text and "Can only" not in text:
        return _damaged(path, "it is not a pickle of tensors")
    objects = text.partition("GLOBAL ")[2].split(" ")[0] or "of an unknown class"
    return CardioDiTError(
        f"{path.name} contains arbitrary pickled objects ({objects}), which could run any code when loaded, "
        "so it was not opened. If you trust the file, load it yourself with torch.load(weights_only=False) "
        "and save its 'model', 'ema', 'discriminator' and 'epoch' entries alone with torch.save."
    )
