"""Every volume in a row, with all its numbers: to be sorted and searched."""

from collections.abc import Iterable, Mapping
from typing import Any

from cardiodit.evaluation.page.markup import Markup, tag
from cardiodit.evaluation.page.numbers import readable
from cardiodit.evaluation.page.rules import broken_rules, in_words

HASH_SHOWN = 10  # digits; the whole one is in report.json
FIRST = ("Volume", "Set", "Typicality", "Rules broken")


def volume_table(report: Mapping[str, Any]) -> Markup:
    """The columns of numbers are all that any volume has, in the order in which they come."""
    volumes = report["volumes"]
    names = list(dict.fromkeys(name for volume in volumes for name in volume["numbers"]))
    titles = _titles(report["distributions"])
    heads = [_head(text) for text in FIRST]
    heads += [_head(*titles.get(name, in_words(name)), is_more=True) for name in names]
    heads.append(_head("Content", is_more=True))
    return tag(
        "table",
        tag("caption", f"{len(volumes)} volumes", class_="hidden"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *(_row(volume, names) for volume in volumes)),
        class_="volumes",
    )


def _titles(distributions: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    return {each["name"]: (each["title"], each.get("unit") or "") for each in distributions}


def _head(text: str, unit: str = "", *, is_more: bool = False) -> Markup:
    """`is_more`: of a column that paper has no room for."""
    shown = tag("button", text, tag("small", f" {unit}") if unit else None, type="button")
    return tag("th", shown, scope="col", class_="more" if is_more else None)


def _row(volume: Mapping[str, Any], names: list[str]) -> Markup:
    broken = broken_rules(volume) if volume.get("plausible") else ["not judged"]
    numbers = volume["numbers"]
    content = volume.get("content") or ""
    return tag(
        "tr",
        tag("th", volume["id"], scope="row"),
        tag("td", volume["set"]),
        tag("td", readable(volume.get("typicality"))),
        tag("td", ", ".join(broken) or "none"),
        *(tag("td", readable(numbers.get(name), 4)) for name in names),
        tag("td", tag("code", content[:HASH_SHOWN])),
    )
