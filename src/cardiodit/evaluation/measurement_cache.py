"""What was measured of a volume, kept by content: an interrupted evaluation goes on, a second one is quick."""

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit import __version__
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluators import MASKS, Instruments
from cardiodit.evaluation.measure import Measured, facts_from_dict, facts_to_dict, kept
from cardiodit.evaluation.sets import Item, mask_paths
from cardiodit.imaging.manifest import reading_columns
from cardiodit.imaging.preprocessing import Preprocessing, without_typical

FORMAT = 3  # to be raised when the same volume would be measured otherwise
FACTS = "facts"


def key_of(item: Item, steps: Preprocessing, instruments: Instruments, labels_from: str | None) -> str:
    """SHA-256 over everything that changes what is measured: the files' bytes, how they are read, and with what."""
    told: list[Any] = [FORMAT, __version__, sha256_of(item.image), item.set, item.units, labels_from]
    told += [without_typical(steps).to_dict(), steps.intensity.units, instruments.identity]
    if item.case is not None:
        masks = mask_paths(item.case) if labels_from == MASKS else None
        labelling = [item.case.row.get(column) for column in ("mask_order", "es_frame")]
        told += [reading_columns(item.case), labelling, masks and [sha256_of(mask) for mask in masks]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_kept(folder: Path, key: str) -> Measured | None:
    """None where there is nothing or where it is damaged, which is said."""
    file = folder / f"{key}.npz"
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            facts = json.loads(held[FACTS].tobytes())
            rows = {name: held[name] for name in held.files if name != FACTS}
        return kept(Measured(**{**facts, "facts": facts_from_dict(facts["facts"])}, features=rows))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"What was kept in {file} is damaged ({error}). The volume is measured anew.", stacklevel=2)
        return None


def write_kept(folder: Path, key: str, measured: Measured) -> None:
    facts = {
        "content": measured.content,
        "facts": facts_to_dict(measured.facts),
        "numbers": measured.numbers,
        "curves": measured.curves,
        "plausible": measured.plausible,
    }
    packed = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / f"{key}.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{FACTS: packed, **measured.features})
    except OSError as error:
        raise CardioDiTError(f"{folder} cannot be written: {error.strerror}.") from error
