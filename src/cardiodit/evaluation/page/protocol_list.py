"""The protocol in full, so that a reviewer can repeat the evaluation: every name as report.json has it."""

from collections.abc import Mapping
from typing import Any

from cardiodit.evaluation.page.markup import Markup, tag


def protocol_list(entries: Mapping[str, Any]) -> Markup:
    """Names and values, nested as they are."""
    rows = [tag("div", tag("dt", str(name)), tag("dd", _value(value))) for name, value in entries.items()]
    return tag("dl", *rows)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return protocol_list(value) if value else "empty"
    if isinstance(value, list | tuple):
        return _list(list(value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _list(values: list[Any]) -> str:
    if not values:
        return "none"
    if all(value is None or isinstance(value, int | float) for value in values):
        return (" × " if len(values) > 2 else ", ").join(map(_value, values))
    return tag("ul", *(tag("li", _value(value)) for value in values))
