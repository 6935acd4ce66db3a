"""YAML read into dataclasses: a section is a class, a key a field, its type what the key may hold.

A field without a default is required. Errors name the file, the dotted key and, of unknown ones, the nearest.
"""

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml

from cardiodit.errors import CardioDiTError

T = TypeVar("T")
Count = Annotated[int, "positive"]


def only(*allowed: Any, because: str) -> Any:
    """A key that may be there, but whose other values mean something our models do not have."""
    return field(default=allowed[0], metadata={"only": allowed, "because": because})


def option(default: Any, help: str) -> Any:
    """A key with its default and its line in `--help`."""
    return field(default=default, metadata={"help": help})


def read_yaml(path: str | PathLike) -> dict[str, Any]:
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardioDiTError(f"The config {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CardioDiTError(f"{path.name} is not a text file; a YAML config was expected.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise CardioDiTError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise CardioDiTError(f"{path.name} holds no sections; a YAML config was expected.")
    return raw


class Reader:
    """Turns plain YAML values into dataclasses; every error names the file and the dotted key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def section(self, kind: type[T], raw: Any, at: str) -> T:
        if not isinstance(raw, dict):
            raise self.error(at, f"must be a section with keys, found {raw!r}")
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        hints = typing.get_type_hints(kind, include_extras=True)
        values = {}
        for key, value in raw.items():
            if key not in known:
                raise self.error(_join(at, key), f"is not a known key{_nearest(key, list(known))}")
            values[key] = self.value(hints[key], value, _join(at, key))
            self.refuse_foreign(values[key], known[key].metadata, _join(at, key))
        for name, f in known.items():
            if name not in values and f.default is MISSING:
                raise self.error(_join(at, name), "is missing")
        return kind(**values)

    def value(self, kind: Any, value: Any, at: str) -> Any:
        for option in options_of(kind):
            read = self.match(option, value, at)
            if read is not MISSING:
                return read
        raise self.error(at, f"must be {_describe(kind)}, found {value!r}")

    def match(self, kind: Any, value: Any, at: str) -> Any:
        """The value as `kind`, or MISSING where it is not one."""
        if kind is Any or (kind is types.NoneType and value is None):
            return value
        if typing.get_origin(kind) is typing.Literal:
            value = "no" if value is False else value  # YAML's word for false
            return value if value in typing.get_args(kind) else MISSING
        if is_dataclass(kind):
            return self.section(typing.cast(type, kind), value, at)
        if typing.get_origin(kind) is dict:
            return value if isinstance(value, dict) else MISSING
        if typing.get_origin(kind) is tuple:
            return self.match_list(typing.get_args(kind)[0], value, at)
        if typing.get_origin(kind) is Annotated:
            return value if _is_int(value) and value > 0 else MISSING
        return _SCALARS[kind](value) if kind in _SCALARS else MISSING

    def match_list(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, list) or not value:
            return MISSING
        items = [
            next((read for o in options_of(kind) if (read := self.match(o, item, at)) is not MISSING), MISSING)
            for item in value
        ]
        return MISSING if MISSING in items else tuple(items)

    def refuse_foreign(self, value: Any, metadata: Any, at: str) -> None:
        if "only" in metadata and value not in metadata["only"]:
            allowed = " or ".join(map(repr, metadata["only"]))
            raise self.error(at, f"is {value!r}, but {metadata['because']}: only {allowed} can be used")

    def error(self, at: str, problem: str) -> CardioDiTError:
        return CardioDiTError(f"{self.file}: {at or 'the file'} {problem}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_float(value: Any) -> Any:
    """PyYAML reads 1e-5 as a string."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value) if isinstance(value, str) else MISSING
    except ValueError:
        return MISSING


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: lambda value: value if _is_int(value) else MISSING,
    float: _as_float,
    bool: lambda value: value if isinstance(value, bool) else MISSING,
    str: lambda value: value if isinstance(value, str) else MISSING,
}


def options_of(kind: Any) -> tuple[Any, ...]:
    """What a union is of; anything else is its only option."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
LISTS = {
    int: "a list of integers, as in [0, 1]",
    float: "a list of numbers, as in [0.5, 1]",
    str: "a list of texts, as in [a, b]",
    Count: "a list of positive integers, as in [1, 2]",
}


def _describe(kind: Any) -> str:
    """A type in words: "a positive integer or a list of positive integers, as in [1, 2]"."""
    words = []
    for option in options_of(kind):
        if typing.get_origin(option) is typing.Literal:
            words.append(" or ".join(repr(choice) for choice in typing.get_args(option)))
        elif typing.get_origin(option) is tuple:
            of = typing.get_args(option)[0]
            words.append("a list of sections" if is_dataclass(of) else LISTS.get(of, "a list of numbers or lists"))
        else:
            words.append("a positive integer" if option == Count else NAMES.get(option, "a section with keys"))
    return " or ".join(dict.fromkeys(words))


def _join(at: str, key: Any) -> str:
    return f"{at}.{key}" if at else str(key)


def _nearest(key: Any, known: list[str]) -> str:
    close = get_close_matches(str(key), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(sorted(known))})"


def plain(value: Any) -> Any:
    """As YAML has it: tuples are lists, all the way down."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
