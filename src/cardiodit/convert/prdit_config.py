"""What PRDiT's authors' configs say of a model: inside their checkpoints or as YAML, whatever the keys are called."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from cardiodit._util.typed_yaml import read_yaml
from cardiodit.errors import CardioDiTError

# Hidden width and heads by the size in a model's name, PRDiT-{size}/{patch}/{depth}.
SIZES = {"XS": (192, 6), "S": (384, 6), "B": (768, 12), "L": (1024, 16), "XL": (1152, 16)}
NAME = re.compile(rf"PRDiT-({'|'.join(SIZES)})/(\d+)/(\d+)")

MODEL_KEYS = ("model", "model_name", "arch", "architecture")
VOLUME_KEYS = ("image_size", "img_size", "input_size", "sample_size", "volume_size", "resolution")
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PRDiTConfig:
    """What is said, and None for what is not.

    Args:
        source: where it is said, for errors.
        name: PRDiT-{size}/{patch}/{depth}.
        size: voxels along the axes of the training volumes.
        num_heads, in_channels, out_channels: of the network.
    """

    source: str
    name: str | None = None
    size: Size | None = None
    num_heads: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None

    def beside(self, other: "PRDiTConfig") -> "PRDiTConfig":
        """Both of them; where they contradict each other, that is an error."""
        merged: dict[str, Any] = {"source": f"{self.source} and {other.source}"}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "source" and None not in (mine, theirs) and mine != theirs:
                raise CardioDiTError(
                    f"{self.source} says {field.name} {mine}, but {other.source} says {theirs}. "
                    "Give the YAML of this training, or none (no --cfg)."
                )
            merged.setdefault(field.name, theirs if mine is None else mine)
        return PRDiTConfig(**merged)


def read_prdit_config(path: str | PathLike) -> PRDiTConfig:
    """Of a YAML."""
    return understand(read_yaml(path), Path(path).name)


def understand(config: Any, source: str) -> PRDiTConfig:
    """Of a config of sections in any layout, as dictionaries or as objects with attributes."""
    said = list(_leaves(config))
    names = [(at, value) for at, value in said if _names_a_model(at) and value is not None]
    sizes = [(at, value) for at, value in said if at[-1] in VOLUME_KEYS and value is not None]
    counts = {
        name: [(at, _whole(value, at, source)) for at, value in said if at[-1] == name and value is not None]
        for name in ("num_heads", "in_channels", "out_channels")
    }
    return PRDiTConfig(
        source=source,
        name=_one([(at, _model_name(value, at, source)) for at, value in names], source),
        size=_one([(at, _three(value, at, source)) for at, value in sizes], source),
        **{name: _one(values, source) for name, values in counts.items()},
    )


def _leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a config with the keys that lead to them."""
    held = {**getattr(value, "__dict__", {}), **value} if isinstance(value, dict) else None
    if held is None:
        if at:
            yield at, value
        return
    for key, item in held.items():
        yield from _leaves(item, (*at, str(key)))


def _names_a_model(at: tuple[str, ...]) -> bool:
    return at[-1] in MODEL_KEYS or (at[-1] == "name" and len(at) > 1 and at[-2] in MODEL_KEYS)


def _model_name(value: Any, at: tuple[str, ...], source: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise CardioDiTError(
            f"{source}: {'.'.join(at)} is {value!r}, which is no model that can be converted here; "
            f"PRDiT-{{size}}/{{patch}}/{{depth}} was expected, its size one of {', '.join(SIZES)}."
        )
    return value


def _three(value: Any, at: tuple[str, ...], source: str) -> Size:
    values = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(values) != 3:
        raise CardioDiTError(
            f"{source}: {'.'.join(at)} is {value!r}; a number of voxels or a list of three was expected."
        )
    height, width, depth = (_whole(length, at, source) for length in values)
    return height, width, depth


def _whole(value: Any, at: tuple[str, ...], source: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CardioDiTError(f"{source}: {'.'.join(at)} is {value!r}; a positive whole number was expected.")
    return value


def _one(said: list[tuple[tuple[str, ...], Any]], source: str) -> Any:
    """What all say alike, None where nobody says anything."""
    if not said:
        return None
    (first, value), *others = said
    for at, other in others:
        if other != value:
            raise CardioDiTError(
                f"{source} contradicts itself: {'.'.join(first)} is {value}, {'.'.join(at)} is {other}."
            )
    return value
