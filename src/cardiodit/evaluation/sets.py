"""The two sets of an evaluation: which volumes there are, where each lies, and what is known of how they were made."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.manifest import Case, read_manifest

REAL, SYNTHETIC = "real", "synthetic"
ENDINGS = (".nii", ".nii.gz")
PHASES = ("ed_mask", "es_mask")  # columns of a manifest: labels of end-diastole and of end-systole
# What the report tells of a generator, as far as all samples agree on it.
MADE_BY = ("model", "revision", "solver", "num_inference_steps", "guidance_scale", "dtype")


@dataclass(frozen=True)
class Item:
    """One volume of a set, not read yet.

    Args:
        id: for the report; nothing of the folders above it.
        set: "real" or "synthetic".
        image: its file.
        case: its row, of a manifest's volume. Such a volume is prepared; one without a row is taken as generated.
        units: what -1 and 1 stand for in the file, as its record says; None where the file is in [-1, 1] or nobody
            knows.
    """

    id: str
    set: str
    image: Path
    case: Case | None = None
    units: Range | None = None


@dataclass(frozen=True)
class Problem:
    """Why a volume is not among those evaluated; the file by its name alone."""

    set: str
    file: str
    problem: str

    def to_dict(self) -> dict[str, str]:
        return {"set": self.set, "file": self.file, "problem": self.problem}


@dataclass(frozen=True)
class VolumeSet:
    """Volumes in their order.

    Args:
        name: "real" or "synthetic".
        problems: of files that should be volumes and cannot be.
        made_by: of samples, what their records agree on.
        preprocessing: of samples, what their model's training volumes went through; None where they do not say.
        notes: what a reader of the report must know.
    """

    name: str
    items: list[Item]
    problems: list[Problem] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        return any(item.case is not None and mask_paths(item.case) is not None for item in self.items)

    def drawn(self, count: int | None, seed: int) -> "VolumeSet":
        """So many volumes, and a note of what was left.

        By the hash of seed and id, not by place: in many cohorts one disease comes after the other.
        """
        if count is None or count >= len(self.items):
            return self
        lots = [hashlib.sha256(f"{seed} {item.id}".encode()).digest() for item in self.items]
        taken = sorted(sorted(range(len(lots)), key=lots.__getitem__)[:count])
        note = f"Of the {len(self.items)} {self.name} volumes, {count} were drawn by the seed {seed} (max_volumes)."
        return replace(self, items=[self.items[i] for i in taken], notes=[*self.notes, note])


def mask_paths(case: Case) -> list[Path] | None:
    """Of every frame one file, or else one of end-diastole and one of end-systole; None where neither is named."""
    if (mask := case.path("mask")) is not None:
        return [mask]
    phases = [path for column in PHASES if (path := case.path(column)) is not None]
    return phases if len(phases) == len(PHASES) else None


def open_real(manifest: Path) -> VolumeSet:
    return _of_manifest(manifest, REAL)


def open_synthetic(place: Path) -> VolumeSet:
    """A folder of samples with their list, any folder of NIfTI, or a manifest of images to be prepared as real ones."""
    if place.is_file():
        return _of_manifest(place, SYNTHETIC)
    if not place.is_dir():
        raise CardioDiTError(f"The synthetic volumes {place} are neither a folder nor a manifest (CSV).")
    files = sorted(file for file in place.iterdir() if file.name.endswith(ENDINGS) and not file.name.startswith("."))
    if (place / SAMPLE_LIST).is_file():
        return _of_samples(place, files)
    if not files:
        raise CardioDiTError(
            f"{place} holds no NIfTI file ({' or '.join(ENDINGS)}). Name the folder in which the volumes themselves "
            "lie, or a manifest."
        )
    return VolumeSet(SYNTHETIC, [Item(_stem(file), SYNTHETIC, file) for file in files])


def _of_manifest(manifest: Path, name: str) -> VolumeSet:
    cases = read_manifest(manifest)
    subjects = [case.row.get("subject") or _stem(case.image) for case in cases]
    items = [Item(id, name, case.image, case) for id, case in zip(_unique(subjects), cases, strict=True)]
    return VolumeSet(name, items, notes=_shared_subjects(subjects, name))


def _of_samples(folder: Path, files: list[Path]) -> VolumeSet:
    records = read_sample_list(folder)
    held = {file.name for file in files}
    problems = [
        *(_problem(name, f"It is listed in {SAMPLE_LIST} and not in the folder.") for name in records.keys() - held),
        *(
            _problem(name, f"It is not listed in {SAMPLE_LIST}: was sampling interrupted while it was written?")
            for name in held - records.keys()
        ),
    ]
    items = [Item(_stem(folder / n), SYNTHETIC, folder / n, units=_units(r)) for n, r in sorted(records.items())]
    items = [item for item in items if item.image.name in held]
    return VolumeSet(
        SYNTHETIC,
        items,
        sorted(problems, key=lambda problem: problem.file),
        made_by=_agreed(records.values()),
        preprocessing=_preprocessing(folder, records.values()),
    )


def _agreed(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    held = list(records)
    found = {}
    for key in MADE_BY:
        values = {json.dumps(record.get(key)) for record in held}
        if len(values) == 1 and (value := json.loads(values.pop())) is not None:
            found[key] = value
    return found


def _preprocessing(folder: Path, records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    told = {json.dumps(record["preprocessing"], sort_keys=True) for record in records if record.get("preprocessing")}
    if len(told) > 1:
        raise CardioDiTError(
            f"The samples of {folder} come from models whose training volumes were prepared in {len(told)} ways. "
            "Evaluate each model's samples from a folder of their own."
        )
    return json.loads(told.pop()) if told else None


def _units(record: dict[str, Any]) -> Range | None:
    units = record.get("units")
    return None if units is None else (float(units[0]), float(units[1]))


def _problem(file: str, problem: str) -> Problem:
    return Problem(SYNTHETIC, file, problem)


def _shared_subjects(subjects: list[str], name: str) -> list[str]:
    repeated = [subject for subject, count in Counter(subjects).items() if count > 1]
    if not repeated:
        return []
    return [
        f"{len(subjects)} {name} volumes come from {len(set(subjects))} subjects. Volumes of one subject are not "
        "independent, and intervals that count them as such are too narrow."
    ]


def _unique(names: list[str]) -> list[str]:
    """The same, with a number behind those that came before."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")
