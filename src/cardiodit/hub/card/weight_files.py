"""What the header of a safetensors file says, without its weights; and whether one file's weights are another's."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cardiodit.errors import CardioDiTError

LENGTH = 8  # bytes that say how long the header is
LONGEST_HEADER = 100_000_000
METADATA = "__metadata__"
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Header:
    """Args:
    tensors: dtype and shape of each, by name.
    metadata: what the file's maker wrote into it.
    """

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]

    @property
    def precisions(self) -> list[str]:
        """Of the floating-point numbers."""
        return sorted({PRECISIONS[t["dtype"]] for t in self.tensors.values() if t["dtype"] in PRECISIONS})

    def count(self, without: tuple[str, ...] = ()) -> int:
        """Numbers in all tensors but those whose names end so."""
        return sum(math.prod(t["shape"]) for name, t in self.tensors.items() if not name.endswith(without))


def read_weight_header(path: Path) -> Header:
    """Reads the header, and notices a file that is damaged or was cut short."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            if not 0 < length <= min(LONGEST_HEADER, path.stat().st_size):
                raise ValueError("it does not begin with a header")
            entries = json.loads(file.read(length))
        metadata = entries.pop(METADATA, {})
        promised = LENGTH + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CardioDiTError(
            f"{path} is no safetensors file: {error}. Copy it again from where it was made."
        ) from error
    if path.stat().st_size != promised:
        raise CardioDiTError(
            f"{path} is damaged: it has {path.stat().st_size} bytes, its header promises {promised}. Copy it "
            "again from where it was made."
        )
    return Header(entries, metadata)


def holds_all_of(whole: Path, part: Path) -> bool:
    """Whether every tensor of one file is in the other, number by number."""
    with safe_open(whole, "pt") as held, safe_open(part, "pt") as wanted:
        common = set(held.keys()).intersection(wanted.keys())
        return len(common) == len(wanted.keys()) and all(
            _same(held.get_tensor(name), wanted.get_tensor(name)) for name in common
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.equal(other)
