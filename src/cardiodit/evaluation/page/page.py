"""`report.html` of an evaluation: the parts of the page put together from the report's dictionary."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.page.curve_figure import curve_figure
from cardiodit.evaluation.page.histogram import histogram_figure
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.metric_table import group_title, groups_in, metric_table
from cardiodit.evaluation.page.numbers import counted, readable
from cardiodit.evaluation.page.players import Media, arranged, player_contents, player_figures
from cardiodit.evaluation.page.protocol_list import protocol_list
from cardiodit.evaluation.page.summary import summary
from cardiodit.evaluation.page.volume_table import volume_table

SCHEMA = "cardiodit-evaluation/1"
Report = Mapping[str, Any]


def write_page(report: Report, media: Media, path: Path) -> None:
    """Writes the page; it is whole or not there.

    Args:
        report: as `report.json` has it.
        media: ids of volumes that are to play, and what loads each, in [-1, 1], `(H, W, D, T)` or `(H, W, D)`.
        path: the HTML file.
    """
    if report.get("schema") != SCHEMA:
        raise CardioDiTError(
            f"The report has the schema {report.get('schema')!r}; the page can show {SCHEMA!r}. Evaluate again with "
            "this version."
        )
    page = _page(report, media).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(page)


def _page(report: Report, media: Media) -> str:
    groups = arranged(report, media)
    contents = player_contents(report, groups, media)
    parts = {
        "title": html.escape(_title(report)),
        "style": _part("page.css"),
        "script": _part("page.js"),
        "facts": _facts(report),
        "summary": summary(report),
        "problems": _problems(report["problems"]),
        "metrics": metric_table(report["metrics"]),
        "distributions": _distributions(report["distributions"]),
        "curves": _curves(report["curves"]),
        "players": player_figures(groups) or tag("p", "No volume was given to be shown."),
        "playable": "" if media else "hidden",
        "volumes": volume_table(report),
        "protocol": protocol_list({**report["protocol"], "sets": report["sets"], "schema": report["schema"]}),
        "contents": json.dumps(contents).replace("<", "\\u003c"),  # nothing in it ends the script element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _title(report: Report) -> str:
    counts = report["protocol"]["counts"]
    return f"{counts['synthetic']} synthetic beside {counted(counts['real'], 'real volume')}"


def _facts(report: Report) -> Markup:
    """What both sets are, or each of them where they differ."""
    told = {kind: _set_in_words(report["sets"][kind]) for kind in ("real", "synthetic")}
    if told["real"] == told["synthetic"]:
        return tag("p", f"Both sets: {told['real']}", class_="facts")
    return joined(tag("p", f"{kind.capitalize()}: {words}", class_="facts") for kind, words in told.items())


def _set_in_words(facts: Mapping[str, Any]) -> str:
    words = [" × ".join(map(str, facts["size"])) + " voxels"] if facts.get("size") else []
    if spacing := facts.get("spacing_mm"):
        words.append(" × ".join(readable(round(float(step), 3)) for step in spacing) + " mm")
    if seconds := facts.get("frame_time_s"):
        words.append(f"{readable(1000.0 * seconds)} ms a frame")
    return ", ".join(words) or "size unknown"


def _problems(problems: list[Mapping[str, Any]]) -> Markup:
    if not problems:
        return Markup()
    rows = [
        tag("li", tag("b", f"{each.get('file') or 'the whole set'} ({each['set']})"), ": ", each["problem"])
        for each in problems
    ]
    title = tag("h2", f"{counted(len(problems), 'problem')} in the input")
    told = tag("p", "What is listed here is not in the numbers below, or not as it should be.")
    return tag("section", title, told, tag("ul", *rows), class_="problems", role="alert", id="problems")


def _distributions(distributions: list[Mapping[str, Any]]) -> Markup:
    if not distributions:
        return tag("p", "No distribution was measured.")
    return joined(
        joined(
            [
                tag("h3", group_title(name)),
                tag("div", *(histogram_figure(d) for d in distributions if d["group"] == name), class_="charts"),
            ]
        )
        for name in groups_in(distributions)
    )


def _curves(curves: list[Mapping[str, Any]]) -> Markup:
    if not curves:
        return tag("p", "No curves were measured: they need a cine and its label maps.")
    return joined(map(curve_figure, curves))
