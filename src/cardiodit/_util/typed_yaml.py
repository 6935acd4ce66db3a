"""Read YAML into dataclasses: each section is a class, each key a field whose type says what the key may hold.

A field without a default is required. Errors name the file, the dotted key and, for an unknown key, the nearest one.
`settings_of` makes the section of a class from its constructor, so that a model's keys are declared only there.
"""

import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml

from cardiodit._util.foreign_files import check_number_of_values, read_text
from cardiodit.errors import CardioDiTError, reason_of

LONGEST_CONFIG = 2**20  # bytes
SHOWN = 80  # characters of a wrong value in an error
T = TypeVar("T")
Count = Annotated[int, "positive"]


def restricted(*allowed: Any, because: str) -> Any:
    """Declare a key whose other values mean something that our models do not have."""
    return field(default=allowed[0], metadata={"allowed": allowed, "because": because})


def option(default: Any, help: str) -> Any:
    """Declare a key with its default and its line in `--help`."""
    return field(default=default, metadata={"help": help})


class Section:
    """Base of the sections that `settings_of` makes: `Model(**section)` hands it over whole.

    A section that `settings_of_one` makes is one of several alternatives, which one of its keys chooses.
    """

    alternatives: typing.ClassVar[dict[str, type["Section"]]] = {}
    chosen_by: typing.ClassVar[str] = ""

    if typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def keys(self) -> Iterator[str]:
        return (f.name for f in fields(self))  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def items(self) -> list[tuple[str, Any]]:
        return [(key, self[key]) for key in self.keys()]


def settings_of(
    cls: type,
    omit: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] | None = None,
    extra: Mapping[str, tuple[Any, Any]] | None = None,
) -> Any:
    """Make a config section, with its default values, from the constructor of a class.

    Sequences become lists, and integers must be positive unless their default is not. Help texts come from the `Args:`
    of the docstring.

    Args:
        cls: the class, such as a model.
        omit: arguments that are not keys.
        defaults: defaults that differ from the constructor's; None also allows null.
        kinds: types that differ from the annotated ones.
        extra: further keys, each with its type and `option`.
    """
    defaults, kinds = defaults or {}, kinds or {}
    hints, texts = typing.get_type_hints(cls.__init__), argument_docs(cls)  # type: ignore[misc]
    keys: list[tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in omit:
            continue
        default = defaults.get(name, parameter.default)
        kind = kinds.get(name) or _as_yaml_type(hints[name], is_positive=_is_positive(parameter.default))
        if default is None and types.NoneType not in options_of(kind):
            kind = kind | None
        keys.append((name, kind, option(default, texts.get(name, ""))))
    keys += [(name, kind, key) for name, (kind, key) in (extra or {}).items()]
    made = make_dataclass(f"{cls.__name__}Settings", keys, bases=(Section,), frozen=True, kw_only=True)
    made.__doc__ = f"Settings of `{cls.__name__}`."
    return made()


def settings_of_one(classes: Mapping[str, type], key: str, help: str, omit: Collection[str] = ()) -> Any:
    """Make a config section for one of several classes; the first is the default.

    Args:
        classes: the classes by name.
        key: the key of the section that names the class, whose constructor declares all other keys.
        help: help text of that key.
        omit: arguments that are not keys.
    """
    names = tuple(classes)
    made = {}
    for name, cls in classes.items():
        made[name] = settings_of(cls, omit, extra={key: (Literal[names], option(name, help))})
    for section in made.values():
        type(section).alternatives = {name: type(other) for name, other in made.items()}
        type(section).chosen_by = key
    return made[names[0]]


def argument_docs(cls: type) -> dict[str, str]:
    """Return the texts under `Args:` of a class and its bases by argument; `a, b: text` documents both."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= _documented_arguments(inspect.cleandoc(base.__doc__ or ""))
    return texts


def _documented_arguments(docstring: str) -> dict[str, str]:
    _, _, listed = docstring.partition("Args:\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        if not line.startswith("    "):
            break
        if entry := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = entry[1].split(", ")
            texts |= dict.fromkeys(names, entry[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return {name: text.removesuffix(".") for name, text in texts.items()}


def _is_positive(default: Any) -> bool:
    """Return whether a default holds only positive integers, as far as it holds integers."""
    if isinstance(default, list | tuple):
        return all(map(_is_positive, default))
    return not isinstance(default, int) or default > 0


def _as_yaml_type(kind: Any, is_positive: bool) -> Any:
    """Return what YAML can hold of an annotated type; Any where that is not simple."""
    if kind is int:
        return Count if is_positive else int
    if kind in _SCALARS or kind in (types.NoneType, Any) or typing.get_origin(kind) is typing.Literal:
        return kind
    if typing.get_origin(kind) in (tuple, list, Sequence):
        item = _as_yaml_type(typing.get_args(kind)[0], is_positive)
        return Any if item is Any else types.GenericAlias(tuple, (item, ...))
    if len(options := options_of(kind)) > 1:
        converted = [_as_yaml_type(option, is_positive) for option in options]
        return Any if Any in converted else typing.Union[tuple(converted)]  # noqa: UP007
    return Any


def field_types(kind: type) -> dict[str, Any]:
    """Return the type of each key of a section; a key that `settings_of` made has the type of its default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    made = {f.name: type(f.default) for f in fields(kind) if hints[f.name] is Section}
    return hints | made


def read_yaml(path: str | PathLike) -> dict[str, Any]:
    """Read a YAML file that holds sections."""
    path = Path(path)
    text = read_text(path, LONGEST_CONFIG, "A YAML config was expected.")
    try:
        raw = _parse(text, path.name)
    except Exception as error:  # PyYAML's own errors, and those of Python for odd numbers, dates and depths
        raise CardioDiTError(f"{path.name} is not valid YAML: {reason_of(error)}.") from error
    if not isinstance(raw, dict):
        raise CardioDiTError(f"{path.name} holds no sections; a YAML config was expected.")
    check_number_of_values(raw, path)
    return raw


def load_yaml(text: str) -> Any:
    """Do as `yaml.safe_load` does, ten times as fast; the slow parser says better what is wrong."""
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.safe_load(text)


def _parse(text: str, file: str) -> Any:
    """Parse YAML; tabs, which YAML does not allow but a published config contains, are read as spaces."""
    try:
        return load_yaml(text)
    except yaml.YAMLError:
        for width in (2, 4, 8) if "\t" in text else ():
            try:
                raw = yaml.safe_load(text.expandtabs(width))
            except yaml.YAMLError:
                continue
            _tell_of_tabs(file)
            return raw
        raise


@cache
def _tell_of_tabs(file: str) -> None:
    """Print once per file, since configs are read several times."""
    print(f"{file} contains a tab, so it is not valid YAML; it was read as spaces.", file=sys.stderr)


class Reader:
    """Convert plain YAML values to dataclasses; every error names the file and the dotted key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def section(self, kind: type[T], raw: Any, at: str) -> T:
        if not isinstance(raw, dict):
            raise self.error(at, f"must be a section with keys, found {_shown(raw)}")
        if issubclass(kind, Section) and raw.get(kind.chosen_by) in kind.alternatives:
            kind = typing.cast(type[T], kind.alternatives[raw[kind.chosen_by]])
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        hints = field_types(kind)
        values = {}
        for key, value in raw.items():
            if key not in known:
                raise self.error(_join(at, key), _unknown(kind, key, raw, list(known)))
            values[key] = self.value(hints[key], value, _join(at, key))
            self.check_allowed(values[key], known[key].metadata, _join(at, key))
        for name, f in known.items():
            if name not in values and f.default is MISSING:
                raise self.error(_join(at, name), "is missing")
        return kind(**values)

    def value(self, kind: Any, value: Any, at: str) -> Any:
        for option in options_of(kind):
            read = self.match(option, value, at)
            if read is not MISSING:
                return read
        raise self.error(at, f"must be {_describe(kind)}, found {_shown(value)}")

    def match(self, kind: Any, value: Any, at: str) -> Any:
        """Return the value as `kind`, or MISSING if it is not one."""
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

    def check_allowed(self, value: Any, metadata: Any, at: str) -> None:
        if "allowed" in metadata and value not in metadata["allowed"]:
            allowed = " or ".join(map(repr, metadata["allowed"]))
            raise self.error(at, f"is {value!r}, but {metadata['because']}: only {allowed} can be used")

    def error(self, at: str, problem: str) -> CardioDiTError:
        return CardioDiTError(f"{self.file}: {at or 'the file'} {problem}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_float(value: Any) -> Any:
    """PyYAML reads 1e-5 as a string."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return MISSING
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return MISSING
    return MISSING if math.isnan(number) else number


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: lambda value: value if _is_int(value) else MISSING,
    float: _as_float,
    bool: lambda value: value if isinstance(value, bool) else MISSING,
    str: lambda value: value if isinstance(value, str) else MISSING,
}


def options_of(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other type is its only member."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
LISTS = {
    int: "a list of integers, as in [0, 1]",
    float: "a list of numbers, as in [0.5, 1]",
    str: "a list of texts, as in [a, b]",
    Count: "a list of positive integers, as in [1, 2]",
}


def _describe(kind: Any) -> str:
    """Describe a type in words: "a positive integer or a list of positive integers, as in [1, 2]"."""
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


def _unknown(kind: type, key: Any, raw: dict, known: list[str]) -> str:
    """Describe a key that a section does not have, but perhaps another of its alternatives."""
    others = [
        name
        for name, other in (kind.alternatives.items() if issubclass(kind, Section) else ())
        if key in {f.name for f in fields(other)}  # type: ignore[arg-type]
    ]
    if others:
        chosen = raw.get(kind.chosen_by, next(iter(kind.alternatives)))  # type: ignore[attr-defined]
        return f"belongs to {kind.chosen_by} {' or '.join(others)}, and {kind.chosen_by} is {chosen}"  # type: ignore[attr-defined]
    return f"is not a known key{_nearest(key, known)}"


def _nearest(key: Any, known: list[str]) -> str:
    close = get_close_matches(str(key), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(sorted(known))})"


def to_yaml(value: Any) -> Any:
    """Return a value as YAML reads it: tuples become lists at every depth."""
    if isinstance(value, dict):
        return {key: to_yaml(item) for key, item in value.items()}
    return [to_yaml(item) for item in value] if isinstance(value, list | tuple) else value
