"""What was found in a cohort of CT, for a person to read."""

from pathlib import Path

from cardiodit import __version__
from cardiodit.imaging.cohorts.checked import CheckedCT
from cardiodit.imaging.cohorts.cohort_checks import Preparation
from cardiodit.imaging.cohorts.found import CTFile, Search
from cardiodit.imaging.cohorts.report import count_splits, cross, listed, ranges, split_in_words
from cardiodit.imaging.cohorts.view import in_words
from cardiodit.imaging.preprocessing import Preprocessing


def write_ct_report(
    path: Path,
    layout: str,
    source: Path,
    search: Search[CTFile],
    checked: list[CheckedCT],
    splits: dict[str, str],
    said: list[str],
    how: Preparation,
) -> None:
    good = [entry for entry in checked if not entry.findings.problems]
    lines = [
        f"# Cohort report ({layout})",
        "",
        f"{len(good)} of {len(checked)} CT are listed in `manifest.csv`, {split_in_words(how.seed, how.own_split)}. "
        f"cardiodit {__version__}.",
        "The sources were only read. Look at `pictures/`: the patient's front should be up, the left at the right.",
        "",
        "Paths and subjects in the manifests may identify patients: they are for this machine, not for publication.",
        "",
        *count_splits([splits[e.file.subject] for e in good], "CT"),
        *cross("Labels", [(e.file.label or "none", splits[e.file.subject]) for e in good]),
        *_ranges(good),
        *_views(good, source, said),
        *listed("Left out", [f"{e.file.image} {text}" for e in checked for text in e.findings.problems]),
        *listed("Left out, before reading", search.problems),
        *listed("Noteworthy", [*search.notes, *(f"{e.file.image} {text}" for e in good for text in e.findings.notes)]),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def say_views(name: str, steps: Preprocessing, good: list[CheckedCT], source: Path) -> list[str]:
    """How the files' sizes compare with a preset's field of view; every one that will be padded is named."""
    views = [entry.view for entry in good if entry.view is not None]
    cropped = sum(bool(view.cropped) for view in views)
    padded = [entry for entry in good if entry.view is not None and entry.view.padded]
    return [
        f"The field of view of {in_words(name, steps)}.",
        f"Training with it will crop {cropped} of {len(good)} CT and pad {len(padded)} with air; none is dropped.",
        *(f"{entry.file.subject}, {_where(entry, source)}: {entry.view}" for entry in padded),
    ]


def _where(entry: CheckedCT, source: Path) -> Path:
    """Below the cohort's folder: files of many patients may have one name."""
    return entry.file.image.relative_to(source)


def _views(good: list[CheckedCT], source: Path, said: list[str]) -> list[str]:
    rows = [
        f"| {e.file.subject} | {_where(e, source)} | {e.view} | {e.units[0]:g} | {e.units[1]:g} |"
        for e in good
        if e.view is not None and e.units is not None
    ]
    return [
        "## Field of view",
        "",
        *said[:2],
        "What lies below the lower cut, such as the -2000 or -3024 HU that some scanners put outside their circle, "
        "becomes air as the padding is.",
        "",
        "| subject | image | at the preset's spacing | lowest HU | highest HU |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _ranges(good: list[CheckedCT]) -> list[str]:
    table: dict[str, list[float]] = {
        **{f"voxels along stored axis {i + 1}": [e.shape[i] for e in good] for i in range(3)},
        **{f"mm along stored axis {i + 1}": [e.spacing[i] for e in good if e.spacing] for i in range(3)},
    }
    return ranges(table)
