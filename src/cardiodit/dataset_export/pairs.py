"""Pairs of image and mask from manifests of real hearts and folders of samples, as 3D frames or whole cines."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.evaluation.segmenters import Segmenter
from cardiodit.evaluation.volume_sets import mask_paths
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.manifest import Case, read_case, read_manifest
from cardiodit.imaging.masks import reorder
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.volume import Volume

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
FRAMES = ("ed_es", "all", "cine")
UNITS = ("p0.5", "p99.5")  # percentiles that a segmenter takes as -1 and 1 in images of unknown units
CLASS_LABEL = "class_label"
TRAINING, VALIDATION, TEST = "training", "validation", "test"
# Columns of a manifest and keys of a record that say how a file is read or stored, not what the heart is like.
TECHNICAL = {
    *("image", "subject", "split", "mask", "ed_mask", "es_mask", "mask_order", "slices", "frame_time", "ed_frame"),
    *("es_frame", "volumes", "partition", "latent", "measured_from"),
}


@dataclass(frozen=True)
class Heart:
    """A heart to export, not loaded yet.

    Args:
        name: unique and fit for a file name.
        subject: frames of one subject never lie in two splits.
        split: "training", "validation" or "test".
        origin: "real" or "synthetic".
        image: its file.
        case: its manifest row; None for a sample.
        record: its record; None for a real heart.
        facts: label, conditions and other columns.
    """

    name: str
    subject: str
    split: str
    origin: str
    image: Path
    case: Case | None = None
    record: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """An image and its mask `(H, W, D)`, or `(H, W, D, T)` for a cine; `frame` counts from 0."""

    heart: Heart
    image: Volume
    mask: Volume
    frame: int | None = None

    @property
    def name(self) -> str:
        return self.heart.name if self.frame is None else f"{self.heart.name}_frame{self.frame:02d}"


def find_hearts(sources: Sequence[Path], segmenter: Segmenter | None) -> list[Heart]:
    """List the hearts of manifests (CSV) and folders of samples; raise an error that lists those without a mask."""
    problems, hearts = Problems("These hearts cannot be exported"), []
    for source in sources:
        is_manifest = source.suffix == ".csv"
        if not is_manifest and not (source / SAMPLE_LIST).is_file():
            raise CardioDiTError(f"{source} is neither a manifest (CSV) nor a folder of samples with {SAMPLE_LIST}.")
        hearts += _of_manifest(source) if is_manifest else _of_samples(source)
    names: dict[str, int] = {}
    unique = []
    for heart in hearts:
        names[heart.name] = names.get(heart.name, 0) + 1
        number = names[heart.name]
        unique.append(heart if number == 1 else Heart(**{**vars(heart), "name": f"{heart.name}-{number}"}))
        if segmenter is None and not _has_mask(heart):
            problems.add(f"{heart.image.name} has no mask")
    problems.raise_if_any("Name a segmenter (--segmenter), which labels hearts without masks, or fill their masks.")
    return unique


def load_pairs(heart: Heart, frames: str, segmenter: Segmenter | None) -> Iterator[Pair]:
    """Yield the pairs of one heart.

    Args:
        heart: the heart.
        frames: "ed_es" for end-diastole and end-systole, "all" for every labelled frame, each as a 3D volume, or
            "cine" for the whole beat.
        segmenter: labels hearts without masks.
    """
    image = read_nifti(heart.image) if heart.case is None else read_case(heart.case)
    if not image.is_cine:
        raise CardioDiTError(f"{heart.image} has the shape {image.voxels.shape}; only cines can be exported.")
    masks = _masks(heart, image, segmenter)
    if not masks:
        raise CardioDiTError(f"The mask of {heart.image.name} has no label in any frame. Leave this heart out.")
    if frames == "cine":
        if len(masks) < image.voxels.shape[3]:
            raise CardioDiTError(
                f"{heart.image.name} has masks in {len(masks)} of its {image.voxels.shape[3]} frames, and a whole cine "
                "needs them in all. Choose --frames ed_es or all."
            )
        mask = np.stack([masks[frame] for frame in range(len(masks))], axis=3)
        yield Pair(heart, image, Volume(mask, image.geometry))
        return
    chosen = list(masks) if frames == "all" else _end_frames(heart, masks)
    still = image.geometry.with_frame_time(None)
    for frame in chosen:
        yield Pair(heart, Volume(image.voxels[..., frame], still), Volume(masks[frame], still), frame)


def _of_manifest(manifest: Path) -> list[Heart]:
    hearts = []
    for case in read_manifest(manifest):
        stem = case.image.name.partition(".")[0]
        name = file_name(case.row.get("subject") or stem)
        split = case.row.get("split") or TRAINING
        if split not in (TRAINING, VALIDATION, TEST):
            raise CardioDiTError(f"{case.subject} is in the split {split!r}; expected training, validation or test.")
        facts = {
            CLASS_LABEL if key == "label" else key: value  # `label` is the mask, in other tools
            for key, value in case.row.items()
            if key not in TECHNICAL and value
        }
        hearts.append(Heart(name, name, split, "real", case.image, case, None, facts))
    return hearts


def _of_samples(folder: Path) -> list[Heart]:
    hearts = []
    for file, record in sorted(read_sample_list(folder).items()):
        if not (folder / file).is_file():
            raise CardioDiTError(f"{file} is listed in {folder / SAMPLE_LIST}, but it is missing. Sample it again.")
        facts = dict(record.get("conditions") or {})
        if record.get("class_label") is not None:
            facts[CLASS_LABEL] = record["class_label"]
        name = f"synthetic-{file_name(file.partition('.')[0])}"
        hearts.append(Heart(name, name, TRAINING, "synthetic", folder / file, None, record, facts))
    return hearts


def _has_mask(heart: Heart) -> bool:
    if heart.case is not None:
        return mask_paths(heart.case) is not None
    return bool((heart.record or {}).get("mask"))


def _masks(heart: Heart, image: Volume, segmenter: Segmenter | None) -> dict[int, np.ndarray]:
    """Return the masks of labelled frames by frame, RV 1, myocardium 2, LV 3, on the image's grid."""
    paths = None if heart.case is None else mask_paths(heart.case)
    if heart.record is not None and heart.record.get("mask"):
        paths = [heart.image.parent / str(heart.record["mask"])]
    if paths is None:
        assert segmenter is not None  # checked by `find_hearts`
        units = (heart.record or {}).get("units") or _window(heart, image)
        labels = segmenter.segment(to_model(image.voxels, tuple(units)), image.geometry)
        return {frame: labels[..., frame] for frame in range(labels.shape[3])}
    order = "RV=1 MYO=2 LV=3" if heart.case is None else heart.case.row.get("mask_order") or ""
    if len(paths) == 1:
        labels = reorder(_read_mask(paths[0], image, frames=True), order)
        return {frame: labels[..., frame] for frame in range(labels.shape[3]) if labels[..., frame].any()}
    assert heart.case is not None
    places = [heart.case.frame(f"{phase}_frame") for phase in ("ed", "es")]
    if None in places:
        raise CardioDiTError(
            f"{heart.image.name} has masks of end-diastole and end-systole, but its manifest row does not state "
            "ed_frame and es_frame."
        )
    return {
        int(place): reorder(_read_mask(path, image), order) for place, path in zip(places, paths) if place is not None
    }


def _read_mask(path: Path, image: Volume, frames: bool = False) -> np.ndarray:
    voxels = read_labels(path).voxels
    expected = image.voxels.shape if frames else image.voxels.shape[:3]
    if voxels.shape != expected:
        raise CardioDiTError(f"The mask {path} has the shape {voxels.shape}; its image needs {expected}.")
    return voxels


def _window(heart: Heart, image: Volume) -> tuple[float, float]:
    """Return what a segmenter takes as -1 and 1: [-1, 1] for samples of unknown units, else percentiles."""
    if heart.case is None:
        return -1.0, 1.0
    low, high = np.percentile(image.voxels, [float(name.removeprefix("p")) for name in UNITS])
    return float(low), float(high)


def _end_frames(heart: Heart, masks: dict[int, np.ndarray]) -> list[int]:
    """Return end-diastole and end-systole: as the manifest says, or the largest and the smallest left ventricle."""
    sizes = {frame: int((mask == LABELS["LV"]).sum()) for frame, mask in masks.items()}
    measured = [max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)]
    stated = [None, None] if heart.case is None else [heart.case.frame("ed_frame"), heart.case.frame("es_frame")]
    frames = [found if said is None else said for said, found in zip(stated, measured, strict=True)]
    if missing := [frame for frame in frames if frame not in masks]:
        raise CardioDiTError(f"{heart.image.name} has no labels in its frame {missing[0]}.")
    return list(dict.fromkeys(frames))


def file_name(text: str) -> str:
    """Return a text as a file name that every tool accepts."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "heart"


def plane_of(volume: Volume, index: int) -> Volume:
    """Return one slice as a volume with a single slice."""
    start, size = (0, 0, index), (*volume.voxels.shape[:2], 1)
    return volume.crop(start, size)
