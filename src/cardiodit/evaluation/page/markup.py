"""HTML and SVG from Python. What is not `Markup` is text and is escaped, so that no name of a file becomes a tag."""

import html
from collections.abc import Iterable

VOID = {"input", "br"}  # elements that have no end tag
Attribute = str | int | float | bool | None


class Markup(str):
    """HTML that is safe to put into a page as it is."""

    __slots__ = ()


def tag(name: str, *children: str | None, **attributes: Attribute) -> Markup:
    """An element. `class_` is the attribute class, `aria_label` is aria-label; what is None or False is left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    opening = f"<{name}{written}>"
    return Markup(opening if name in VOID else f"{opening}{joined(children)}</{name}>")


def joined(parts: Iterable[str | None], between: str = "") -> Markup:
    """Parts one behind the other; text among them is escaped."""
    return Markup(escaped(between).join(escaped(part) for part in parts if part is not None))


def escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{html.escape(f"{value:.1f}" if isinstance(value, float) else str(value))}"'
