"""What was found in a cohort, for a person to read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cardiodit import __version__
from cardiodit.imaging.cohorts.checked import CheckedCine
from cardiodit.imaging.cohorts.found import CineFile, Search
from cardiodit.imaging.cohorts.split import SPLITS


def write_report(
    path: Path,
    layout: str,
    search: Search[CineFile],
    checked: list[CheckedCine],
    splits: dict[str, str],
    seed: int,
    own_split: bool,
) -> None:
    good = [entry for entry in checked if not entry.findings.problems]
    how = split_in_words(seed, own_split)
    lines = [
        f"# Cohort report ({layout})",
        "",
        f"{len(good)} of {len(checked)} cines are listed in `manifest.csv`, {how}. cardiodit {__version__}.",
        "The sources were only read. Look at `pictures/`: hearts should be upright, the right ventricle on the left.",
        "",
        "Paths and subjects in the manifests may identify patients: they are for this machine, not for publication.",
        "",
        *count_splits([splits[e.file.subject] for e in good], "cines"),
        *cross("Labels", [(e.file.label or "none", splits[e.file.subject]) for e in good]),
        *cross("Vendors", [(e.file.vendor or "unknown", splits[e.file.subject]) for e in good]),
        *_ranges(good),
        *_orders(good),
        *listed("Left out", [f"{e.file.image} {text}" for e in checked for text in e.findings.problems]),
        *listed("Left out, before reading", search.problems),
        *listed("Noteworthy", [*search.notes, *(f"{e.file.image} {text}" for e in good for text in e.findings.notes)]),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def split_in_words(seed: int, own_split: bool) -> str:
    return "the cohort's own split" if own_split else f"split by patient with seed {seed}"


def count_splits(values: list[str], what: str) -> list[str]:
    counts = Counter(values)
    return ["## Splits", "", f"| | {what} |", "|---|---|", *(f"| {name} | {counts[name]} |" for name in SPLITS), ""]


def cross(title: str, pairs: list[tuple[str, str]]) -> list[str]:
    counts = Counter(pairs)
    rows = [
        f"| {name} | " + " | ".join(str(counts[name, split]) for split in SPLITS) + " |"
        for name in sorted({name for name, _ in pairs})
    ]
    return [f"## {title}", "", f"| | {' | '.join(SPLITS)} |", "|---" * (len(SPLITS) + 1) + "|", *rows, ""]


def _ranges(good: list[CheckedCine]) -> list[str]:
    """Of what differs between scanners."""
    return ranges(
        {
            "rows and columns (H)": [e.shape[0] for e in good],
            "rows and columns (W)": [e.shape[1] for e in good],
            "slices": [e.shape[2] for e in good],
            "frames": [e.shape[3] for e in good],
            "mm in plane": [e.spacing[0] for e in good if e.spacing],
            "mm between slices": [e.spacing[2] for e in good if e.spacing],
            "ms a frame": [1000 * e.frame_time for e in good if e.frame_time],
        }
    )


def ranges(table: Mapping[str, Sequence[float]]) -> list[str]:
    """Smallest, median and largest."""
    rows = [
        f"| {name} | {min(values):.4g} | {np.median(values):.4g} | {max(values):.4g} |"
        for name, values in table.items()
        if values
    ]
    return ["## Sizes", "", "| | smallest | median | largest |", "|---|---|---|---|", *rows, ""]


def _orders(good: list[CheckedCine]) -> list[str]:
    bases = Counter(e.order.slices_from for e in good)
    firsts = Counter(e.order.first_frame_from for e in good)
    return [
        "## What told the order",
        "",
        *(f"- base and apex by the {source}: {n}" for source, n in sorted(bases.items()) if source != "as stored"),
        f"- base and apex not told, slices as stored: {bases['as stored']}",
        *(f"- end-diastole by the {source}: {n}" for source, n in sorted(firsts.items()) if source != "as stored"),
        f"- end-diastole not told, frame 0 as stored: {firsts['as stored']}",
        "",
    ]


def listed(title: str, sentences: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""] if sentences else []
