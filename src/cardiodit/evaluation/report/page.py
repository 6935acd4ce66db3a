"""`report.html`: the report of an evaluation as one page, from the templates beside this file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cardiodit._util.html import render_page, write_page_file
from cardiodit.energy.electricity import Footprint
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.registry import GROUPS
from cardiodit.evaluation.report.charts import curve_figure, histogram_figure, metric_chart
from cardiodit.evaluation.report.numbers import (
    MISSING,
    counted,
    decimals_for,
    finite,
    fixed,
    is_number,
    readable,
    value_and_interval,
    with_unit,
)
from cardiodit.evaluation.report.players import Media, group_volumes, player_contents
from cardiodit.evaluation.report.report_file import SCHEMA, current_metrics, recall_beside
from cardiodit.evaluation.report.summary import energy_sentences, hearts_of, summary, verdict

TEMPLATE = Path(__file__).with_name("page.html.j2")
Report = Mapping[str, Any]

BETTER = {"lower": "↓ lower is better", "higher": "↑ higher is better", "near real": "≈ near real is better"}
PLAYER_TITLES = {
    "real": "Real, for comparison",
    "farthest": "Synthetic, farthest from the real volumes",
    "nearest": "Synthetic, nearest to the real volumes",
}
HASH_DIGITS = 10  # shown; report.json has all of them
ABBREVIATIONS = {"lv", "rv", "ef", "ed", "edv", "esv", "sv", "psnr", "ssim", "l1", "bsa"}  # written in capitals
UNITS = {  # suffixes of names
    "percent": "%",
    "ml": "mL",
    "mm": "mm",
    "g": "g",
    "ml_s": "mL/s",
    "edv_s": "EDV/s",
    "m2": "m²",
    "ml_m2": "mL/m²",
    "g_m2": "g/m²",
    "bpm": "1/min",
    "deg": "°",
}


def write_page(report: Report, media: Media, path: Path, footprint: Footprint | None = None) -> None:
    """Write the page atomically.

    Args:
        report: as in `report.json`.
        media: ids of the volumes to play, with functions that load them: `(H, W, D, T)` or `(H, W, D)` in [-1, 1].
        path: the HTML file.
        footprint: energy of this evaluation, which differs from run to run and is therefore not in the report.
    """
    if report.get("schema") != SCHEMA:
        raise CardioDiTError(
            f"The report has the schema {report.get('schema')!r}; the page can show {SCHEMA!r}. Evaluate again with "
            "this version."
        )
    groups = group_volumes(report, media)
    counts = report["protocol"]["counts"]
    page = render_page(
        TEMPLATE,
        styles=("page.css",),
        scripts=("players.js", "page.js"),
        title=f"{counts['synthetic']} synthetic volumes compared with {counted(counts['real'], 'real volume')}",
        facts=_facts(report["sets"]),
        summary=summary(report),
        energy=energy_sentences(report["sets"]["synthetic"].get("energy"), footprint),
        problems=report["problems"],
        metrics=[
            (title, [_metric_row(metric, report) for metric in members])
            for title, members in _by_group(current_metrics(report))
        ],
        distributions=[
            (title, [histogram_figure(d) for d in members]) for title, members in _by_group(report["distributions"])
        ],
        curves=[curve_figure(curve) for curve in report["curves"]],
        players={
            name: {"title": PLAYER_TITLES[name], "volumes": [(v, _caption(v)) for v in volumes]}
            for name, volumes in groups.items()
            if volumes
        },
        volumes=volume_table(report),
        protocol={**report["protocol"], "sets": report["sets"], "schema": report["schema"]},
        contents=player_contents(report, groups, media),
    )
    write_page_file(page, path)


def _by_group(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return groups of metrics or distributions with their titles, in the page's order; unknown groups come last."""
    members: dict[str, list[Mapping[str, Any]]] = {name: [] for name in GROUPS}
    for entry in entries:
        members.setdefault(entry["group"], []).append(entry)
    return [(GROUPS.get(g, g.replace("_", " ").capitalize()), group) for g, group in members.items() if group]


def _facts(sets: Mapping[str, Any]) -> list[str]:
    """Describe both sets in one line, or in one line each if they differ."""
    described = {}
    for kind in ("real", "synthetic"):
        facts = sets[kind]
        words = [" × ".join(map(str, facts["size"])) + " voxels"] if facts.get("size") else []
        if spacing := facts.get("spacing_mm"):
            words.append(" × ".join(readable(round(float(step), 3)) for step in spacing) + " mm")
        if seconds := facts.get("frame_time_s"):
            words.append(f"{readable(1000.0 * seconds)} ms per frame")
        described[kind] = ", ".join(words) or "size unknown"
    if described["real"] == described["synthetic"]:
        return [f"Both sets: {described['real']}"]
    return [f"{kind.capitalize()}: {words}" for kind, words in described.items()]


def _metric_row(metric: Mapping[str, Any], report: Report) -> dict[str, Any]:
    recall = recall_beside(metric, report)
    unit, floor = metric.get("unit"), metric.get("floor")
    value, interval = value_and_interval(metric["value"], metric["low"], metric["high"])
    level = f"{readable(round(100 * metric['level'], 1), 2)}%: " if metric.get("level") else ""
    row = {
        "title": metric["title"],
        "better": BETTER.get(metric["better"], metric["better"]),
        "details": [text for text in (metric.get("method"), *(metric.get("notes") or ())) if text],
        "has_notes": bool(metric.get("notes")),
        "value": with_unit(value, unit),
        "interval": f"{level}{with_unit(interval, unit)}" if interval else None,
        "recall": recall and f"recall {readable(recall['value'])}",
        "floor": None,
        "chart": metric_chart(metric),
    }
    if not floor:
        return row
    ends = finite(floor.get("low"), floor.get("high"))
    decimals = decimals_for(abs(ends[1] - ends[0]) / 2) if len(ends) == 2 and ends[0] != ends[1] else 6

    def text(name: str) -> str:
        """Format a number of the floor with the digits that its range has."""
        return fixed(floor.get(name), decimals) if decimals < 6 else readable(floor.get(name))

    return row | {
        "matched": with_unit(text("matched"), unit),
        "sample_size": f"n = {floor['volumes']}" if floor.get("volumes") else "all volumes",
        "verdict": verdict(metric, hearts_of(report)),
        "floor": with_unit(text("value"), unit),
        "floor_range": _range(text("low"), text("high")),
    }


def _range(low: str, high: str) -> str | None:
    if low == MISSING or high == MISSING:
        return f"up to {high}" if high != MISSING else f"from {low}" if low != MISSING else None
    return f"{low} to {high}"


def _caption(volume: Mapping[str, Any]) -> str:
    words = [f"typicality {readable(volume['typicality'])}"] if is_number(volume.get("typicality")) else []
    if volume.get("plausible"):
        broken = broken_rules(volume)
        words.append(f"breaks: {', '.join(broken)}" if broken else "plausible")
    return " · ".join(words)


def volume_table(report: Report) -> dict[str, Any]:
    """Return heads and rows of the table of volumes: the columns are all numbers that any volume has."""
    volumes = report["volumes"]
    names = list(dict.fromkeys(name for volume in volumes for name in volume["numbers"]))
    titles = {d["name"]: (d["title"], d.get("unit") or "") for d in report["distributions"]}
    return {
        "heads": [titles.get(name) or title_and_unit(name) for name in names],
        "has_training": any(is_number(volume.get("training_distance")) for volume in volumes),
        "rows": [
            {
                "id": volume["id"],
                "set": volume["set"],
                "typicality": readable(volume.get("typicality")),
                "training": readable(volume.get("training_distance")),
                "broken": (", ".join(broken_rules(volume)) or "none") if volume.get("plausible") else "not judged",
                "numbers": [readable(volume["numbers"].get(name), 4) for name in names],
                "content": (volume.get("content") or "")[:HASH_DIGITS],
            }
            for volume in volumes
        ],
    }


def broken_rules(volume: Mapping[str, Any]) -> list[str]:
    return [title_and_unit(name)[0] for name, kept in (volume.get("plausible") or {}).items() if not kept]


def title_and_unit(name: str) -> tuple[str, str]:
    """`lv_ef_percent` → `("LV EF", "%")`."""
    suffix = next((suffix for suffix in sorted(UNITS, key=len, reverse=True) if name.endswith(f"_{suffix}")), None)
    words = name.removesuffix(f"_{suffix}").split("_")
    title = " ".join(word.upper() if word in ABBREVIATIONS else word for word in words)
    return title, UNITS[suffix] if suffix else ""
