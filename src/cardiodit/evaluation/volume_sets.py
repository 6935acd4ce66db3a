"""The two sets of an evaluation: listing their volumes, settling the preprocessing, and loading a volume."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.foreign_files import read_object
from cardiodit._util.sample_records import DROPPED, SAMPLE_LIST, read_sample_list
from cardiodit.energy.records import mean_of_samples
from cardiodit.errors import CardioDiTError, reading
from cardiodit.imaging.dicom import OTHER_BEAT
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.intensity import Range, to_model
from cardiodit.imaging.manifest import Case, check_disjoint, prepare_case, read_manifest, read_table
from cardiodit.imaging.masks import reorder
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.preprocessing import PRESETS, Prepared, Preprocessing, without_typical
from cardiodit.imaging.volume import Volume

REAL, SYNTHETIC, TRAINING = "real", "synthetic", "training"
ENDINGS = (".nii", ".nii.gz")
PHASES = ("ed_mask", "es_mask")  # manifest columns: labels of end-diastole and of end-systole
MADE_BY = ("model", "revision", "solver", "num_inference_steps", "guidance_scale", "dtype")  # reported if all agree
ROUNDING = 1e-3  # how far a value may lie outside of [-1, 1]
LEAST_OF_WINDOW = 0.01  # share of a window that values in the window's units spread over


class OtherIntensityError(CardioDiTError):
    """The intensities are not in the models' range, and nothing says how to scale them."""


@dataclass(frozen=True)
class Item:
    """One volume of a set, not loaded yet.

    Args:
        id: identifier in the report, without parent folders.
        set: "real", "synthetic" or "training".
        image: its file.
        case: its manifest row, if it has one. Such a volume is preprocessed; one without is taken as generated.
        units: what -1 and 1 stand for in the file, by its sample record; None where the file is in [-1, 1] or unknown.
        subject: of several volumes of one subject; empty where each volume is a subject of its own.
        requested: table row of the masks with which a sample was steered, or of a real volume's own masks.
        asked: clinical conditions that a sample was given, by name.
    """

    id: str
    set: str
    image: Path
    case: Case | None = None
    units: Range | None = None
    subject: str = ""
    requested: Case | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requested_keys(self) -> list[str]:
        """Columns of the requested row that hold masks."""
        return [] if self.requested is None else mask_columns(self.requested.row)


@dataclass(frozen=True)
class Problem:
    """Why a volume was not evaluated; the file by its name without folders."""

    set: str
    file: str
    problem: str

    def to_dict(self) -> dict[str, str]:
        return {"set": self.set, "file": self.file, "problem": self.problem}


@dataclass(frozen=True)
class VolumeSet:
    """The volumes of one set in their order.

    Args:
        name: "real", "synthetic" or "training".
        problems: files that should be volumes and cannot be read.
        made_by: what the records of all samples agree on.
        energy: mean energy and emissions of a sample, if all recorded them.
        preprocessing: of the training volumes of the samples' model; None if unknown.
        notes: for the reader of the report.
    """

    name: str
    items: list[Item]
    problems: list[Problem] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        return any(item.case is not None and mask_paths(item.case) is not None for item in self.items)

    def drawn(self, count: int | None, seed: int) -> "VolumeSet":
        """Return a random subset, with a note.

        Volumes are drawn by the hash of seed and id, not by position: many cohorts are sorted by disease.
        """
        if count is None or count >= len(self.items):
            return self
        lots = [hashlib.sha256(f"{seed} {item.id}".encode()).digest() for item in self.items]
        taken = sorted(sorted(range(len(lots)), key=lots.__getitem__)[:count])
        note = f"Of the {len(self.items)} {self.name} volumes, {count} were drawn by the seed {seed} (max_volumes)."
        return replace(self, items=[self.items[i] for i in taken], notes=[*self.notes, note])


@dataclass(frozen=True)
class Loaded:
    """A volume in memory.

    Args:
        volume: `(H, W, D)` or `(H, W, D, T)` float32 in [-1, 1].
        units: what -1 and 1 are in the file, if known.
        prepared: the preprocessing of a manifest's volume, which is applied to its mask as well.
    """

    volume: Volume
    units: Range | None
    prepared: Prepared | None = None


@dataclass(frozen=True)
class Labels:
    """Label maps as RV 1, myocardium 2, LV 3.

    Args:
        maps: `(H, W, D, T)` for every frame, or `(H, W, D, 2)` for end-diastole and end-systole.
        is_cine: whether there is one for every frame.
    """

    maps: np.ndarray
    is_cine: bool = True


def open_real(manifest: Path) -> VolumeSet:
    """List the volumes of a manifest as the real set."""
    return _of_manifest(manifest, REAL)


def open_training(manifest: Path, real: VolumeSet) -> VolumeSet:
    """List the volumes that the model was trained on; none of their subjects may be among the real ones."""
    training = _of_manifest(manifest, TRAINING)
    splits = {volumes.name: [item.case for item in volumes.items if item.case] for volumes in (real, training)}
    check_disjoint(**splits)
    return training


def open_synthetic(place: Path) -> VolumeSet:
    """List a folder of samples with records, any folder of NIfTI, or a manifest of images, which are preprocessed."""
    if place.is_file():
        return _of_manifest(place, SYNTHETIC)
    if not place.is_dir():
        raise CardioDiTError(f"The synthetic volumes {place} are neither a folder nor a manifest (CSV).")
    files = sorted(file for file in place.iterdir() if file.name.endswith(ENDINGS) and not file.name.startswith("."))
    if (place / SAMPLE_LIST).is_file():
        return _of_samples(place, files)
    if not files:
        raise CardioDiTError(
            f"{place} contains no NIfTI file ({' or '.join(ENDINGS)}). Give the folder that contains the volumes "
            "themselves, or a manifest."
        )
    return VolumeSet(SYNTHETIC, [Item(_stem(file), SYNTHETIC, file) for file in files])


def with_requested_masks(real: VolumeSet, synthetic: VolumeSet, table: Path) -> tuple[VolumeSet, VolumeSet]:
    """Assign to each sample the row of the table that steered it, and to each real volume its own masks."""
    rows = [row for _, row in read_table(table, ())]
    folder = synthetic.items[0].image.parent if synthetic.items else table.parent
    records = read_sample_list(folder)
    items = []
    for item in synthetic.items:
        index = records.get(item.image.name, {}).get("index")
        if not isinstance(index, int) or not 0 <= index < len(rows):
            raise CardioDiTError(
                f"{item.image.name} was not steered by a row of {table}, which has {len(rows)}: its record in "
                f"{SAMPLE_LIST} says sample {index}. Give the table that the samples were generated with (--masks)."
            )
        row = rows[index]
        keys = mask_columns(row)
        if not keys:
            raise CardioDiTError(f"Row {index + 1} of {table} names no mask ({' or '.join(ENDINGS)}).")
        case = Case(table.parent / (row.get("image") or row[keys[0]]), item.id, row, table.parent)
        items.append(replace(item, requested=case))
    own = [
        replace(item, requested=item.case if item.case and mask_columns(item.case.row) else None) for item in real.items
    ]
    return replace(real, items=own), replace(synthetic, items=items)


def mask_columns(row: Mapping[str, str]) -> list[str]:
    """Return the columns of a row that name label maps."""
    return [column for column, value in row.items() if column != "image" and str(value).endswith(ENDINGS)]


def settle_preprocessing(
    synthetic: VolumeSet,
    model: str | None = None,
    named: str | None = None,
    depth: int | None = None,
    spacing: Triple | None = None,
) -> Preprocessing:
    """Return how real volumes are prepared: as the model's training volumes were.

    The samples' records, the model, and a preset or JSON file may each say so. It is an error if they contradict each
    other, or if none of them says.

    Args:
        model: folder or Hub name of a pipeline, a VQ model or PRDiT's transformer.
        named: a preset, or a JSON file as written by `Preprocessing.to_dict`.
        depth: number of slices to crop or pad to, in place of the preprocessing's own.
        spacing: voxel size in mm to resample to, in place of the preprocessing's own.
    """
    sources = {
        "the samples' records": synthetic.preprocessing,
        "--model": _of_model(model) if model else None,
        "--preprocessing": _named(named) if named else None,
    }
    known = {source: Preprocessing.from_dict(steps) for source, steps in sources.items() if steps is not None}
    if not known:
        raise CardioDiTError(
            "The preprocessing of the real volumes is unknown: the synthetic ones do not say what their model was "
            f"trained on. Give --model FOLDER (the pipeline that made them) or --preprocessing: one of "
            f"{', '.join(PRESETS)}, or a JSON file."
        )
    (first, steps), *others = known.items()
    for source, other in others:
        if without_typical(other) != without_typical(steps):
            raise CardioDiTError(
                f"{first[0].upper()}{first[1:]} and {source} prepare volumes in different ways. Real volumes must be "
                "prepared as the model's training volumes were; leave the wrong one out."
            )
    if depth is not None:
        steps = replace(steps, size=(*steps.size[:2], depth))
    return steps if spacing is None else replace(steps, spacing=spacing)


def is_whole_beat(steps: Preprocessing, case: Case | None = None) -> bool:
    """Return whether a cine is one beat, its last frame followed by the first.

    It is not if beats are repeated and cut, or if a part of the beat was not acquired (`beat_share` of the manifest).
    """
    return (steps.frames is None or steps.cycle != "repeat") and (case is None or not _is_part_of_beat(case))


def _is_part_of_beat(case: Case) -> bool:
    share = case.number("beat_share")
    return share is not None and abs(share - 1) > OTHER_BEAT


def load(item: Item, steps: Preprocessing) -> Loaded:
    """Load a volume: one of a manifest is prepared as the training volumes were, a sample is taken as generated."""
    if item.case is not None:
        prepared = prepare_case(item.case, steps)
        return Loaded(prepared.volume, prepared.source.limits, prepared)
    stored = read_nifti(item.image)
    voxels, units = _in_range(stored.voxels, item.units or _fixed_units(stored.voxels, steps), item)
    return Loaded(Volume(voxels, stored.geometry), units)


def load_labels(item: Item, loaded: Loaded) -> Labels:
    """Load a manifest's mask, or its masks of end-diastole and end-systole."""
    masks = None if item.case is None else mask_paths(item.case)
    if item.case is None or loaded.prepared is None or masks is None:
        raise CardioDiTError(
            f"{item.image} has no mask. Fill the column mask of its manifest (or {' and '.join(PHASES)}), or name a "
            "segmenter."
        )
    order = item.case.row.get("mask_order")
    if not order:
        raise CardioDiTError(
            f"The manifest does not say which label of {masks[0]} is which: fill its column mask_order, such as "
            '"RV=1 MYO=2 LV=3".'
        )
    if len(masks) == 1:
        return _labels_of_cine(item.case, masks[0], order, loaded)
    maps = []
    for mask in masks:
        labels = read_labels(mask)
        if labels.is_cine:
            raise CardioDiTError(f"{mask} has the shape {labels.voxels.shape}; expected labels of one frame.")
        maps.append(_prepared_labels(labels, mask, order, loaded.prepared))
    return Labels(np.stack(maps, axis=3), is_cine=False)


def mask_paths(case: Case) -> list[Path] | None:
    """Return one file for every frame, or one of end-diastole and one of end-systole; None if the row has neither."""
    if (mask := case.path("mask")) is not None:
        return [mask]
    phases = [path for column in PHASES if (path := case.path(column)) is not None]
    return phases if len(phases) == len(PHASES) else None


def _of_manifest(manifest: Path, name: str) -> VolumeSet:
    cases = read_manifest(manifest)
    subjects = [case.row.get("subject") or _stem(case.image) for case in cases]
    seen: Counter[str] = Counter()
    items = []
    for subject, case in zip(subjects, cases, strict=True):
        seen[subject] += 1
        id = subject if seen[subject] == 1 else f"{subject}#{seen[subject]}"
        items.append(Item(id, name, case.image, case, subject=case.subject))
    notes = []
    if name != TRAINING and 1 < (count := len({case.subject for case in cases})) < len(cases):
        notes.append(
            f"{len(cases)} {name} volumes come from {count} subjects. Volumes of one subject are not independent: each "
            "metric is computed on one volume of every subject, and is the mean over several random choices of these."
        )
    if parts := sum(_is_part_of_beat(case) for case in cases):
        notes.append(
            f"{parts} of {len(cases)} {name} volumes do not hold exactly one beat (beat_share in the manifest, for "
            "example of prospective gating): their peak rates and what assumes a closed cycle are withheld."
        )
    return VolumeSet(name, items, notes=notes)


def _of_samples(folder: Path, files: list[Path]) -> VolumeSet:
    listed = read_sample_list(folder, with_dropped=True)
    records = {name: record for name, record in listed.items() if DROPPED not in record}
    present = {file.name for file in files}
    problems = [
        *(
            Problem(SYNTHETIC, name, f"It is listed in {SAMPLE_LIST} but missing from the folder.")
            for name in records.keys() - present
        ),
        *(
            Problem(SYNTHETIC, name, f"It is not listed in {SAMPLE_LIST}: was sampling interrupted while writing it?")
            for name in present - records.keys()
        ),
    ]
    items = [
        Item(_stem(folder / name), SYNTHETIC, folder / name, units=_units(record), asked=_asked(record))
        for name, record in sorted(records.items())
        if name in present
    ]
    return VolumeSet(
        SYNTHETIC,
        items,
        sorted(problems, key=lambda problem: problem.file),
        made_by=_agreed(list(records.values())),
        energy=mean_of_samples(list(records.values())),
        preprocessing=_preprocessing(folder, records.values()),
        notes=_notes_on_filter(len(listed) - len(records), len(listed)),
    )


def _notes_on_filter(dropped: int, count: int) -> list[str]:
    sentence = (
        f"A filter dropped {dropped} of {count} samples as copies of training volumes, so that these show "
        "fewer copies than the model generates."
    )
    return [sentence] if dropped else []


def _agreed(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries of `MADE_BY` that are the same in all records."""
    agreed = {}
    for key in MADE_BY:
        values = {json.dumps(record.get(key)) for record in records}
        if len(values) == 1 and (value := json.loads(values.pop())) is not None:
            agreed[key] = value
    return agreed


def _preprocessing(folder: Path, records: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    given = {json.dumps(record["preprocessing"], sort_keys=True) for record in records if record.get("preprocessing")}
    if len(given) > 1:
        raise CardioDiTError(
            f"The samples of {folder} come from models whose training volumes were prepared in {len(given)} different "
            "ways. Put each model's samples into a folder of their own and evaluate them separately."
        )
    return json.loads(given.pop()) if given else None


def _asked(record: Mapping[str, Any]) -> Mapping[str, Any]:
    asked = record.get("conditions")
    return asked if isinstance(asked, Mapping) else {}


def _units(record: dict[str, Any]) -> Range | None:
    units = record.get("units")
    with reading(f"The record of {record['file']}", advice=f"Correct `units` in {SAMPLE_LIST}."):
        return None if units is None else (float(units[0]), float(units[1]))


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def _of_model(model: str) -> dict[str, Any]:
    from cardiodit.hub.load import open_geometry_source

    steps = open_geometry_source(model).config.preprocessing
    if steps is None:
        raise CardioDiTError(
            f"The model {model} does not say how its training volumes were prepared; converted models do not. Give "
            f"--preprocessing instead: one of {', '.join(PRESETS)}, or a JSON file."
        )
    return dict(steps)


def _named(name: str) -> dict[str, Any]:
    if name in PRESETS:
        return PRESETS[name].to_dict()
    try:
        return read_object(name)
    except CardioDiTError as error:
        raise CardioDiTError(
            f"--preprocessing {name}: neither one of {', '.join(PRESETS)} nor a readable JSON file: {error}"
        ) from error


def _labels_of_cine(case: Case, mask: Path, order: str, loaded: Loaded) -> Labels:
    """Return the labels of every frame, or of only two labelled frames: end-diastole and end-systole."""
    assert loaded.prepared is not None
    stored = read_labels(mask)
    if not stored.is_cine or not loaded.volume.is_cine:
        raise CardioDiTError(f"{mask} labels one frame; labels of every frame of {case.image} are needed.")
    frames, expected = stored.voxels.shape[3], loaded.prepared.source.shape[3]
    if frames != expected:
        raise CardioDiTError(f"{mask} labels {frames} frames, and {case.image} has {expected}.")
    labelled = np.flatnonzero(stored.voxels.any(axis=(0, 1, 2))).tolist()
    if len(labelled) == len(PHASES) < frames:
        given = [case.number("ed_frame"), case.number("es_frame")]
        if None not in given and set(given) != set(labelled):
            raise CardioDiTError(
                f"{mask} labels the frames {labelled[0]} and {labelled[1]} (counted from 0), but the manifest gives "
                f"{given[0]:g} as end-diastole and {given[1]:g} as end-systole. Correct one of them."
            )
        phases = [Volume(stored.voxels[..., t], stored.geometry) for t in labelled]
        maps = [_prepared_labels(phase, mask, order, loaded.prepared) for phase in phases]
        return Labels(np.stack(maps, axis=3), is_cine=False)
    if len(labelled) < frames:
        raise CardioDiTError(
            f"{mask} labels {len(labelled)} of {frames} frames; a curve needs all of them, and EDV and ESV need the "
            "frames of end-diastole and end-systole. Name a segmenter."
        )
    return Labels(_prepared_labels(stored, mask, order, loaded.prepared))


def _prepared_labels(labels: Volume, mask: Path, order: str, prepared: Prepared) -> np.ndarray:
    """Return label maps on the grid of their prepared image, reordered to RV 1, myocardium 2, LV 3."""
    try:
        maps = prepared.apply_to_mask(labels)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask} cannot be prepared. {error}") from error
    try:
        return reorder(maps, order)
    except CardioDiTError as error:
        raise CardioDiTError(f"{mask}: {error}") from error


def _fixed_units(voxels: np.ndarray, steps: Preprocessing) -> Range | None:
    """Return the window of a model with fixed units (Hounsfield) if the values are in it; None for arbitrary units.

    Values that reach a little beyond [-1, 1] are not Hounsfield units: those fill more of their window.
    """
    low, high, units = float(voxels.min()), float(voxels.max()), steps.intensity.units
    if units is None or not steps.intensity.is_fixed or (low >= -1 - ROUNDING and high <= 1 + ROUNDING):
        return None
    return units if high - low > LEAST_OF_WINDOW * (units[1] - units[0]) else None


def _in_range(voxels: np.ndarray, units: Range | None, item: Item) -> tuple[np.ndarray, Range | None]:
    low, high = float(voxels.min()), float(voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise CardioDiTError(f"{item.image} contains values that are not numbers (NaN or infinite).")
    begin, end = units or (-1.0, 1.0)
    slack = ROUNDING * (end - begin) / 2 + (0.5 if voxels.dtype.kind in "iu" else 0)
    if low < begin - slack or high > end + slack:
        reason = "by its sample record" if item.units else "the range of generated volumes"
        raise OtherIntensityError(
            f"{item.image} has values from {low:g} to {high:g}; expected values in [{begin:g}, {end:g}], {reason}."
        )
    if units is not None:
        return to_model(voxels, units), units
    return np.clip(voxels.astype(np.float32), -1, 1), None
