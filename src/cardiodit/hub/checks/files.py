"""What belongs in a published pipeline folder, and what does not, file by file."""

import fnmatch
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.model_facts import INDEX, find_weights
from cardiodit.hub.card.weight_files import read_weight_header
from cardiodit.hub.checks import images, text
from cardiodit.latents.file import METADATA as LATENT_MARK

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack")
# What training leaves behind, as patterns of names.
LEFTOVERS = (
    *("checkpoint-*", "best", "logs", "latents", "reconstructions", "cache", "wandb", "runs"),
    *("run.json", "metrics.jsonl", "manifest*.csv", "optimizer*", "random_states*", "scaler*", "events.out.tfevents*"),
)
PLAIN = ("LICENSE", "LICENCE", "NOTICE")


def folder_problems(folder: Path) -> Iterator[str]:
    """Of the folder as a model."""
    try:
        find_weights(folder)
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        named = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    except CardioDiTError as error:
        yield str(error)
        return
    except (ValueError, AttributeError):
        yield f"{INDEX} cannot be read; save the folder again."
        return
    for name in named:
        if not any((folder / name).glob("*config.json")):
            yield f"{INDEX} names the part {name}, whose config is not there; save or copy the folder again."
    for shards in folder.rglob("*.safetensors.index.json"):
        yield from _missing_shards(shards)


def _missing_shards(index: Path) -> Iterator[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield f"{index} cannot be read; save the folder again."
        return
    if missing := sorted(name for name in names if not (index.parent / name).is_file()):
        yield f"{index} names {', '.join(missing)}, which is not there; save or copy the folder again."


def file_problems(folder: Path) -> Iterator[str]:
    """Of each file: whether it belongs there, and whether it can tell who a patient is."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{name} is a link; put the file itself there, or take it out."
        elif hidden := next((part for part in Path(name).parts if part.startswith(".")), None):
            if path.name == hidden:
                yield f"{name} is hidden; take it out."
        elif leftover := _leftover(Path(name)):
            if path.name == leftover:
                yield f"{name} is left over from training and no part of the model; take it out."
        elif path.is_file():
            for finding in findings_in(path):
                yield f"{name} {finding}."


def _leftover(name: Path) -> str | None:
    """The part of a path that only training writes."""
    return next((part for part in name.parts if any(fnmatch.fnmatch(part, kind) for kind in LEFTOVERS)), None)


def findings_in(path: Path) -> Iterator[str]:
    """What is wrong with a file, by its kind; one that nobody can look through is not let through."""
    if images.is_dicom(path):
        yield "is a DICOM file, which names its patient; take it out"
        return
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix.lower()
    if suffix in PICKLES:
        yield "is a pickle or may be one, which can run code when it is opened; save as safetensors, or take it out"
    elif suffix in CHECKS:
        yield from CHECKS[suffix](path)
    elif path.name in PLAIN:
        yield from _of_text(text.findings_in_text)(path)
    else:
        yield "is of a kind that cannot be looked through for patients' data; take it out"


def _of_text(findings: Callable[[str], Iterator[str]]) -> Callable[[Path], Iterator[str]]:
    def check(path: Path) -> Iterator[str]:
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            yield "is no UTF-8 text, so it cannot be looked through; save it as UTF-8 or take it out"
            return
        yield from findings(content)

    return check


def _of_json(path: Path) -> Iterator[str]:
    yield from _of_text(lambda content: text.findings_in_json(content, path.suffix.lower()))(path)


def _of_weights(path: Path) -> Iterator[str]:
    try:
        metadata = read_weight_header(path).metadata
    except CardioDiTError as error:
        yield f"cannot be opened: {str(error).rstrip('.')}"
        return
    if LATENT_MARK in metadata:
        yield "holds the latents of a patient's image; take it out"
    texts = {key: _unpacked(value) for key, value in metadata.items()}
    yield from (f"{finding} (in its metadata)" for finding in text.findings_in_value(texts))


def _unpacked(value: str) -> Any:
    """JSON within a text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _of_array(path: Path) -> Iterator[str]:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        yield "holds pickled objects or is damaged; save numbers only, or take it out"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    **dict.fromkeys((".json", ".jsonl"), _of_json),
    **dict.fromkeys((".yaml", ".yml", ".cff"), _of_text(text.findings_in_yaml)),
    **dict.fromkeys((".md", ".txt", ".html", ".htm", ".py"), _of_text(text.findings_in_text)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif"), images.findings_in_picture),
    **dict.fromkeys((".nii", ".nii.gz"), images.findings_in_nifti),
    ".csv": _of_text(text.findings_in_csv),
    ".safetensors": _of_weights,
    ".npy": _of_array,
}
