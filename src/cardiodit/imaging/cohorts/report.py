"""The report of a prepared cohort (`report.md`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cardiodit import __version__
from cardiodit.imaging.cohorts.cohort import Cohort, Search
from cardiodit.imaging.cohorts.file_checks import CheckedFile, Kind, Preparation, describe_preset
from cardiodit.imaging.cohorts.split import SPLITS
from cardiodit.imaging.geometry import Geometry, mm_of, spacing_for
from cardiodit.imaging.orientation import ASSUMED


def write_report(
    path: Path,
    cohort: Cohort,
    kind: Kind,
    source: Path,
    search: Search,
    checked: list[CheckedFile],
    splits: dict[str, str],
    how: Preparation,
) -> None:
    """Write what was found in a cohort, what was left out, and what to look at."""
    good = [entry for entry in checked if entry.is_used]
    how_split = "with the cohort's own split" if how.own_split else f"split by patient with seed {how.seed}"
    in_split = [splits[entry.file.subject] for entry in good]
    counts = Counter(in_split)
    specific = _cine_sections(good, in_split) if cohort.kind == "cine" else _ct_sections(good, source, how.preset or "")
    lines = [
        f"# Cohort report ({cohort.name})",
        "",
        f"`manifest.csv` lists {len(good)} of {len(checked)} {kind.plural}, {how_split}. cardiodit {__version__}.",
        f"The source files were not changed. Look at `pictures/`: {kind.upright}.",
        "",
        "Paths and subjects in the manifests may identify patients: keep them on this machine, do not publish them.",
        "",
        *_table("Splits", ["", kind.plural], [[split, counts[split]] for split in SPLITS]),
        *_by_split("Labels", [entry.file.label or "none" for entry in good], in_split),
        *specific,
        *_list("Not used", describe_not_used(checked)),
        *_list("Left out", [sentence for entry in checked for sentence in entry.problems]),
        *_list("Left out before reading", search.problems),
        *_list("Notes", [*search.notes, *describe_repeats(good), *(note for entry in good for note in entry.notes)]),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def describe_left_out(search: Search, checked: Sequence[CheckedFile]) -> list[str]:
    """List what is not in the manifest and why, for the user to read when the command ends."""
    problems = [*search.problems, *(sentence for entry in checked for sentence in entry.problems)]
    count = len(search.problems) + sum(bool(entry.problems) for entry in checked)
    not_used = describe_not_used(checked)
    return [
        *([f"Left out {_files(count)} with problems (--exclude_problems):"] if problems else []),
        *(f"  - {sentence}" for sentence in problems),
        *([f"Did not use {_files(len(not_used))}:"] if not_used else []),
        *(f"  - {sentence}" for sentence in not_used),
    ]


def describe_not_used(checked: Sequence[CheckedFile]) -> list[str]:
    return [f"{entry.file.image} {entry.not_used}" for entry in checked if entry.not_used and not entry.problems]


def describe_repeats(good: Sequence[CheckedFile]) -> list[str]:
    """List the subjects with several images, all of which are used."""
    images: dict[str, list[str]] = {}
    for entry in good:
        images.setdefault(entry.file.subject, []).append(entry.file.image.name)
    return [
        f"{subject} has {len(names)} images, all of them in the same split: {', '.join(names)}. Choose with --pattern"
        for subject, names in images.items()
        if len(names) > 1
    ]


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def _table(title: str, heading: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(map(str, row))} |".replace("|  |", "| |") for row in (heading, *rows)]
    return [f"## {title}", "", lines[0], "|---" * len(heading) + "|", *lines[1:], ""]


def _list(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""] if sentences else []


def _by_split(title: str, values: Sequence[str], in_split: Sequence[str]) -> list[str]:
    counts = Counter(zip(values, in_split, strict=True))
    return _table(title, ["", *SPLITS], [[v, *(counts[v, split] for split in SPLITS)] for v in sorted(set(values))])


def _sizes(values: Mapping[str, Sequence[float]]) -> list[str]:
    rows = [[name, *(f"{f(some):.4g}" for f in (min, np.median, max))] for name, some in values.items() if some]
    return _table("Sizes", ["", "smallest", "median", "largest"], rows)


def _cine_sections(good: list[CheckedFile], in_split: list[str]) -> list[str]:
    spacings = [entry.spacing for entry in good if entry.spacing]
    mixed = recommend_spacing(good)
    bases = Counter(entry.order.slices_from for entry in good)
    firsts = Counter(entry.order.first_frame_from for entry in good)
    planes = Counter(entry.order.plane_from for entry in good)
    return [
        *_by_split("Vendors", [entry.file.vendor or "unknown" for entry in good], in_split),
        *_sizes(
            {
                "rows and columns (H)": [entry.shape[0] for entry in good],
                "rows and columns (W)": [entry.shape[1] for entry in good],
                "slices": [entry.shape[2] for entry in good],
                "frames": [entry.shape[3] for entry in good],
                "mm in plane": [spacing[0] for spacing in spacings],
                "mm between slices": [spacing[2] for spacing in spacings],
                "ms per frame": [1000 * entry.frame_time for entry in good if entry.frame_time],
            }
        ),
        *([*mixed, ""] if mixed else []),
        "## How base, apex, picture and end-diastole were found",
        "",
        *(f"- base and apex from the {name}: {n}" for name, n in sorted(bases.items()) if name != ASSUMED),
        f"- base and apex unknown, slices used as stored: {bases[ASSUMED]}",
        *(f"- picture turned by the {name}: {n}" for name, n in sorted(planes.items()) if name != ASSUMED),
        f"- picture unknown, as stored: {planes[ASSUMED]}",
        *(f"- end-diastole from the {name}: {n}" for name, n in sorted(firsts.items()) if name != ASSUMED),
        f"- end-diastole unknown, frame 0 as stored: {firsts[ASSUMED]}",
        "",
    ]


def _ct_sections(good: list[CheckedFile], source: Path, preset: str) -> list[str]:
    shapes = {f"voxels along stored axis {i + 1}": [entry.shape[i] for entry in good] for i in range(3)}
    spacings = {f"mm along stored axis {i + 1}": [e.spacing[i] for e in good if e.spacing] for i in range(3)}
    rows = [
        [e.file.subject, e.file.image.relative_to(source), e.view, *(f"{value:g}" for value in e.hounsfield)]
        for e in good
    ]
    title, *table = _table(
        "Field of view", ["subject", "image", "at the preset's spacing", "lowest HU", "highest HU"], rows
    )
    return [
        *_sizes({**shapes, **spacings}),
        title,
        "",
        *summarize_views(good, source, preset)[:2],
        "Values below the lower limit, such as the -2000 or -3024 HU that some scanners store outside their field of "
        "view, become air, as the padding does.",
        *table,
    ]


def recommend_spacing(good: list[CheckedFile]) -> list[str]:
    """Return a sentence that names one spacing for cines whose voxel sizes differ; none if they agree."""
    geometries = [Geometry(entry.spacing) for entry in good]
    spacing = spacing_for(geometries)
    if spacing is None:
        return []
    return [
        f"The voxel sizes differ: {mm_of(geometries)}. Train the VQ-GAN with `data.preprocessing.spacing: "
        f"[{', '.join(f'{mm:g}' for mm in spacing)}]`, the medians; otherwise the model does not know the voxel size "
        "of what it generates, and no volume in mL can be computed from it."
    ]


def summarize_views(good: list[CheckedFile], source: Path, preset: str) -> list[str]:
    """Compare the sizes of CT with a preset's field of view; name each one that will be padded."""
    cropped = sum(bool(entry.view and entry.view.cropped) for entry in good)
    padded = [entry for entry in good if entry.view and entry.view.padded]
    return [
        f"The field of view of {describe_preset(preset)}.",
        f"Training with it will crop {cropped} of {len(good)} CT and pad {len(padded)} with air; none is dropped.",
        # The path below the cohort's folder, because files of many patients may have the same name.
        *(f"{entry.file.subject}, {entry.file.image.relative_to(source)}: {entry.view}" for entry in padded),
    ]
