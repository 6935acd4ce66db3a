"""Layouts of data sets: nnU-Net v2, MONAI's decathlon JSON, and a folder for Hugging Face `datasets`."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import new_folder
from cardiodit._util.terminal import progress
from cardiodit.dataset_export.pairs import (
    FRAMES,
    LABELS,
    TEST,
    TRAINING,
    VALIDATION,
    Heart,
    Pair,
    file_name,
    find_hearts,
    load_pairs,
    plane_of,
)
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters import open_segmenter
from cardiodit.imaging.nifti import write_nifti

FOLDS = 5
ENDING = ".nii.gz"
CARD = Path(__file__).with_name("dataset_card.md")


@dataclass(frozen=True)
class Export:
    """Settings of an export.

    Args:
        name: name of the data set.
        frames: "ed_es", "all" or "cine", see `load_pairs`.
        slices: write each slice as a volume of its own.
        number: nnU-Net's number of the data set, 1 to 999.
        license: licence, for the card.
    """

    name: str = "Hearts"
    frames: str = "ed_es"
    slices: bool = False
    number: int = 501
    license: str = "other"


@dataclass
class Written:
    """The files of an exported pair, relative to the data set's folder."""

    pair: Pair
    name: str
    image: str
    label: str
    slice: int | None = None

    def row(self) -> dict[str, Any]:
        """Return what a table says about the pair."""
        heart = self.pair.heart
        place = {} if self.pair.frame is None else {"frame": self.pair.frame}
        place |= {} if self.slice is None else {"slice": self.slice}
        return {"subject": heart.subject, "origin": heart.origin, **place, **heart.facts}


Write = Callable[[Path, list[Heart], Iterator[Pair], Export], Path]
LAYOUTS: dict[str, Write] = {}


def layout(name: str) -> Callable[[Write], Write]:
    """Register a function that writes pairs into a folder and returns the data set's path in it."""

    def register(function: Write) -> Write:
        LAYOUTS[name] = function
        return function

    return register


def export_dataset(
    sources: Sequence[Path],
    output_dir: Path,
    layout: str,
    how: Export | None = None,
    segmenter: str | None = None,
    device: str = "cpu",
) -> tuple[Path, int]:
    """Write hearts with masks as a data set of another tool; return its folder and the number of pairs.

    Args:
        sources: manifests (CSV) and folders of samples.
        output_dir: new or empty folder.
        layout: "nnunet", "monai" or "huggingface".
        how: further settings.
        segmenter: labels hearts without masks (`open_segmenter`); masks that exist are kept.
        device: device of the segmenter.
    """
    how = how or Export()
    if layout not in LAYOUTS:
        raise CardioDiTError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if how.frames not in FRAMES:
        raise CardioDiTError(f"frames={how.frames!r} is not one of {', '.join(FRAMES)}.")
    if how.frames == "cine" and (layout == "nnunet" or how.slices):
        raise CardioDiTError("nnU-Net, and slices, need single frames: choose --frames ed_es or all.")
    labeller = None if segmenter is None else open_segmenter(segmenter, device)
    hearts = find_hearts([Path(source) for source in sources], labeller)
    count = 0

    def pairs() -> Iterator[Pair]:
        nonlocal count
        for heart in progress(hearts, "Exporting", "heart"):
            for pair in load_pairs(heart, how.frames, labeller):
                count += 1
                yield pair

    with new_folder(Path(output_dir)) as folder:
        written = LAYOUTS[layout](folder, hearts, pairs(), how)
        place = written.relative_to(folder)
    return Path(output_dir) / place, count


@layout("nnunet")
def write_nnunet(folder: Path, hearts: list[Heart], pairs: Iterator[Pair], how: Export) -> Path:
    """Write nnU-Net v2's raw data set: `DatasetNNN_Name`, and `splits_final.json` that keeps subjects together."""
    if not 1 <= how.number <= 999:
        raise CardioDiTError(f"number={how.number}: nnU-Net numbers data sets from 1 to 999.")
    place = folder / f"Dataset{how.number:03d}_{file_name(how.name)}"
    written = _write_pairs(place, pairs, how, image_ending=f"_0000{ENDING}")
    training = [each for each in written if each.pair.heart.split != TEST]
    if not training:
        raise CardioDiTError("All hearts are in the split test, and nnU-Net needs training data.")
    described = {
        "channel_names": {"0": "cineMRI"},
        "labels": LABELS,
        "numTraining": len(training),
        "file_ending": ENDING,
        "name": how.name,
        "description": _description(hearts),
        "licence": how.license,
    }
    _write_json(place / "dataset.json", described)
    _write_json(place / "splits_final.json", _folds(training))
    _write_table(place / "hearts.jsonl", [{"case": each.name, **each.row()} for each in written])
    return place


@layout("monai")
def write_monai(folder: Path, hearts: list[Heart], pairs: Iterator[Pair], how: Export) -> Path:
    """Write the layout of the Medical Segmentation Decathlon, which `monai.data.load_decathlon_datalist` reads."""
    written = _write_pairs(folder, pairs, how)
    lists: dict[str, list[Any]] = {TRAINING: [], VALIDATION: [], TEST: []}
    for each in written:
        lists[each.pair.heart.split].append({"image": f"./{each.image}", "label": f"./{each.label}", **each.row()})
    described = {
        "name": how.name,
        "description": _description(hearts),
        "licence": how.license,
        "tensorImageSize": "4D" if how.frames == "cine" else "3D",
        "modality": {"0": "MRI"},
        "labels": {str(number): name for name, number in LABELS.items()},
        "numTraining": len(lists[TRAINING]),
        "numTest": len(lists[TEST]),
        **lists,
    }
    _write_json(folder / "dataset.json", described)
    return folder


@layout("huggingface")
def write_huggingface(folder: Path, hearts: list[Heart], pairs: Iterator[Pair], how: Export) -> Path:
    """Write a folder for Hugging Face `datasets`: one table per split with paths of NIfTI files, and a card."""
    import jinja2

    written = _write_pairs(folder, pairs, how)
    facts = list(dict.fromkeys(key for each in written for key in each.row()))
    splits = {}
    for split, name in ((TRAINING, "train"), (VALIDATION, "validation"), (TEST, "test")):
        members = [each for each in written if each.pair.heart.split == split]
        if not members:
            continue
        rows = [{"image": e.image, "label": e.label, **{key: e.row().get(key) for key in facts}} for e in members]
        _write_table(folder / f"{name}.jsonl", rows)
        splits[name] = len(rows)
    models = {str(heart.record.get("model")) for heart in hearts if heart.record}
    template = jinja2.Template(CARD.read_text(encoding="utf-8"), keep_trailing_newline=True, autoescape=False)
    origins = {origin: sum(heart.origin == origin for heart in hearts) for origin in ("real", "synthetic")}
    text = template.render(how=how, splits=splits, origins=origins, models=sorted(models), labels=LABELS, facts=facts)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def _write_pairs(folder: Path, pairs: Iterator[Pair], how: Export, image_ending: str = ENDING) -> list[Written]:
    """Write images and labels in the decathlon's folders: imagesTr and labelsTr, or imagesTs and labelsTs of tests."""
    written = []
    for pair in pairs:
        end = "Ts" if pair.heart.split == TEST else "Tr"
        for part in ("images", "labels"):
            (folder / f"{part}{end}").mkdir(parents=True, exist_ok=True)
        planes: list[int | None] = list(range(pair.image.voxels.shape[2])) if how.slices else [None]
        for plane in planes:
            image, mask = (v if plane is None else plane_of(v, plane) for v in (pair.image, pair.mask))
            name = pair.name if plane is None else f"{pair.name}_slice{plane:02d}"
            paths = f"images{end}/{name}{image_ending}", f"labels{end}/{name}{ENDING}"
            write_nifti(folder / paths[0], image.voxels, image.geometry)
            write_nifti(folder / paths[1], mask.voxels.astype(np.uint8), mask.geometry)
            written.append(Written(pair, name, *paths, plane))
    if not written:
        raise CardioDiTError("There is no heart to export.")
    return written


def _folds(written: Sequence[Written]) -> list[dict[str, list[str]]]:
    """Return the cohort's own split if it has a validation set, else folds of subjects."""
    own = [each.name for each in written if each.pair.heart.split == VALIDATION]
    if own:
        return [{"train": [each.name for each in written if each.name not in set(own)], "val": own}]
    subjects = sorted({each.pair.heart.subject for each in written})
    folds = []
    for fold in range(min(FOLDS, len(subjects))):
        held = set(subjects[fold::FOLDS])
        parts: dict[str, list[str]] = {"train": [], "val": []}
        for each in written:
            parts["val" if each.pair.heart.subject in held else "train"].append(each.name)
        folds.append(parts)
    return folds


def _description(hearts: Sequence[Heart]) -> str:
    counts = {origin: sum(heart.origin == origin for heart in hearts) for origin in ("real", "synthetic")}
    known = " and ".join(f"{count} {origin}" for origin, count in counts.items() if count)
    return f"Short-axis cine MRI of {known} hearts; labels RV 1, myocardium 2, LV 3. Research only."


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
