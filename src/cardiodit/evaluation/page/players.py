"""Samples that play beside real volumes: those farthest from the real ones, those nearest, and some real ones."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.page.markup import Markup, joined, tag
from cardiodit.evaluation.page.mosaic import mosaic
from cardiodit.evaluation.page.numbers import is_number, readable
from cardiodit.evaluation.page.rules import broken_rules

Media = Mapping[str, Callable[[], np.ndarray]]
PICTURES = 8_000_000  # bytes of all mosaics; base64 makes four thirds of it
LARGEST = 900_000  # bytes of one
TITLES = {
    "real": "Real, for comparison",
    "farthest": "Synthetic, farthest from the real ones",
    "nearest": "Synthetic, nearest to the real ones",
}


def arranged(report: Mapping[str, Any], media: Media) -> dict[str, list[Mapping[str, Any]]]:
    """The volumes that can be shown: real ones, and the farther and the nearer half of the samples, extremes first."""
    known = {volume["id"]: volume for kind in ("real", "synthetic") for volume in _of(report, kind)}
    if unknown := [name for name in media if name not in known]:
        raise CardioDiTError(f"The report has no volume {', '.join(map(repr, unknown[:4]))} that the page is to show.")
    shown = [known[name] for name in media]
    samples = sorted((v for v in shown if v["set"] == "synthetic"), key=_distance, reverse=True)
    farther = math.ceil(len(samples) / 2)
    return {
        "real": [volume for volume in shown if volume["set"] == "real"],
        "farthest": samples[:farther],
        "nearest": samples[farther:][::-1],
    }


def player_figures(groups: Mapping[str, list[Mapping[str, Any]]]) -> Markup:
    """One canvas a volume, in the order in which `player_contents` has the pictures."""
    numbered = iter(range(sum(map(len, groups.values()))))
    return joined(
        tag(
            "section",
            tag("h4", TITLES[name]),
            tag("div", *(_figure(volume, next(numbered)) for volume in volumes), class_="row"),
            class_=f"players-{name}",
        )
        for name, volumes in groups.items()
        if volumes
    )


def player_contents(
    report: Mapping[str, Any], groups: Mapping[str, list[Mapping[str, Any]]], media: Media
) -> dict[str, Any]:
    """What the script draws; volumes are loaded and made small one at a time."""
    shown = [volume for volumes in groups.values() for volume in volumes]
    limit = min(LARGEST, PICTURES // max(1, len(shown)))
    return {
        "seconds": _beat(report["sets"]),
        "volumes": [_entry(volume, media[volume["id"]], report["sets"], limit) for volume in shown],
    }


def _of(report: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return [volume for volume in report["volumes"] if volume["set"] == kind]


def _distance(volume: Mapping[str, Any]) -> float:
    return float(volume["typicality"]) if is_number(volume.get("typicality")) else -math.inf


def _figure(volume: Mapping[str, Any], number: int) -> Markup:
    said = [f"typicality {readable(volume['typicality'])}"] if is_number(volume.get("typicality")) else []
    if volume.get("plausible"):
        broken = broken_rules(volume)
        said.append(f"breaks: {', '.join(broken)}" if broken else "plausible")
    kind = "real volume" if volume["set"] == "real" else "sample"
    return tag(
        "figure",
        tag("canvas", id=f"canvas-{number}", role="img", aria_label=f"Moving picture of the {kind} {volume['id']}"),
        tag("figcaption", tag("b", volume["id"]), tag("span", " · ".join(said)), tag("span", class_="place")),
    )


def _entry(
    volume: Mapping[str, Any], load: Callable[[], np.ndarray], sets: Mapping[str, Any], limit: int
) -> dict[str, Any]:
    voxels = load()
    held = mosaic(volume["id"], voxels, limit)
    width, height, depth, length = (*voxels.shape, 1)[:4]
    spacing = sets[volume["set"]].get("spacing_mm") or (1.0, 1.0)
    return {
        "picture": f"data:image/jpeg;base64,{held.jpeg}",
        "columns": held.columns,
        "rows": held.rows,
        "across": held.across,
        "slices": [place + 1 for place in held.slices],
        "frames": [place + 1 for place in held.frames],
        "depth": depth,
        "length": length,
        "aspect": round(width * spacing[0] / (height * spacing[1]), 4),
    }


def _beat(sets: Mapping[str, Any]) -> float | None:
    """Seconds of a real beat."""
    size: list[int] = list(sets["real"].get("size") or [])
    frame_time = sets["real"].get("frame_time_s")
    return float(frame_time) * size[3] if is_number(frame_time) and len(size) == 4 else None
