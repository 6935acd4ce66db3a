"""Image volumes of two manifests, and training samples made of them: 2D+t slices of cine, or boxes of 3D volumes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch.utils.data import Dataset

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, try_all
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes, shared_memory_folder
from cardiodit.imaging.geometry import mm_of, spacing_for
from cardiodit.imaging.manifest import Case, check_disjoint, read_manifest
from cardiodit.imaging.preprocessing import Preprocessing, note_on_padding
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.schedule import SampleOrder, seed_for
from cardiodit.training.settings import build_preprocessing

Batch = dict[str, Any]


def preprocessing_of(request: Request, model: Any = None) -> Preprocessing:
    """Return the config's preprocessing; without one, that of the model that is fine-tuned."""
    is_given = bool((request.given.get("data") or {}).get("preprocessing"))
    if model is not None and not is_given and model.config.preprocessing is not None:
        return Preprocessing.from_dict(model.config.preprocessing)
    return build_preprocessing(request.settings.data.preprocessing)


def read_volumes(run: Run, request: Request, steps: Preprocessing) -> tuple[PreparedVolumes, PreparedVolumes]:
    """Prepare the volumes for training and validation.

    Processes prepare a share each, for a cache on disk or for the memory that those of a machine have in common.
    """
    data, options = request.settings.data, request.options
    training, validation = try_all(
        partial(read_manifest, options.training_ids), partial(read_manifest, options.validation_ids)
    )
    folder = Path(data.cache_dir or options.output_dir / "cache") if data.cache == "disk" else None
    rank, processes = run.accelerator.process_index, run.accelerator.num_processes
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
    in_memory = shared_memory_folder(str(run.folder.resolve())) if data.cache == "memory" and local > 1 else None
    if in_memory is not None:
        folder, rank, processes = in_memory, run.accelerator.local_process_index, local
    is_shared = folder is not None and processes > 1

    def read(cases: list[Case], verify: bool) -> PreparedVolumes:
        return PreparedVolumes(cases, steps, data.cache, folder, data.workers, verify)

    check = partial(check_disjoint, training=training, validation=validation)
    volumes: list[PreparedVolumes] = []

    def read_all() -> None:
        reads = (partial(read, cases, verify=not is_shared) for cases in (training, validation))
        volumes.extend(try_all(check, *reads)[1:])

    try:
        if is_shared:
            shares = [cases[rank::processes] for cases in (training, validation)]
            run.together(lambda: try_all(check, *(partial(read, share, verify=True) for share in shares if share)))
            run.together(read_all)
        else:
            read_all()
    finally:
        if in_memory is not None and rank == 0:  # all have mapped it, or an error has ended all
            rmtree(in_memory, ignore_errors=True)
    return volumes[0], volumes[1]


def data_config(volumes: PreparedVolumes) -> dict[str, Any]:
    """Return what a model's config keeps of its training data, so that samples have geometry and units."""
    steps = volumes.steps
    if not steps.intensity.is_fixed:
        steps = replace(steps, intensity=replace(steps.intensity, typical=volumes.typical()))
    return {"preprocessing": steps.to_dict(), "spacing": volumes.spacing()}


def say_oddities(run: Run, volumes: PreparedVolumes) -> None:
    """Say before the training which images were padded, and warn if the model will not know its voxel size."""
    if note := note_on_padding(volumes.slices):
        run.say(note)
    spacing = spacing_for(volumes.geometries)
    if spacing is None:
        return
    advice = (
        "fit: resize gives each volume its own; use fit: crop and a spacing"
        if volumes.steps.fit == "resize"
        else f"set data.preprocessing.spacing: [{', '.join(f'{mm:g}' for mm in spacing)}]"
    )
    run.say(
        f"Warning: after preprocessing, the training volumes have different voxel sizes, {mm_of(volumes.geometries)}. "
        "The model stores none, so that generated volumes will have no size in mm and no volumes in mL. To give all "
        f"the same, stop this run and {advice}."
    )


class SliceDataset(Dataset):
    """Training samples by visit number, augmented and cut to `crop` at a random place.

    A cine gives one slice `(1, H, W, T)`, drawn again at every visit; a CT gives the volume `(1, H, W, D)`.
    """

    def __init__(
        self, volumes: PreparedVolumes, augmentation: Augmentation, seed: int, crop: Sequence[int] | None = None
    ) -> None:
        augmentation.check(is_cine=any(len(shape) == 5 for shape in volumes.shapes))
        self.volumes = volumes
        self.augmentation = augmentation
        self.crop = crop
        self.order = SampleOrder(len(volumes), seed)
        self.seed = seed_for(seed, "slices")

    def __getitem__(self, visit: int) -> Batch:
        index, generator = self.order[visit], generator_for(self.seed, visit)
        shape = self.volumes.shapes[index]
        slices = shape[1] if len(shape) == 5 else 1
        image = read_slice(self.volumes, index, int(torch.randint(slices, (), generator=generator)))
        spacing = self.volumes.geometries[index].spacing or (1.0, 1.0, 1.0)
        image, _ = self.augmentation(image, generator=generator, spacing=spacing)
        start = [int(torch.randint(room + 1, (), generator=generator)) for room in room_for(image, self.crop)]
        return {"sample": cut(image, start, self.crop), "subject": self.volumes.cases[index].subject}


class ValidationSlices(Dataset):
    """Validation samples: evenly spaced slices of every volume, without augmentation, cut to `crop` in the middle.

    The set is padded to a multiple of `multiple` by samples of weight 0, so that all processes get equally many.
    """

    def __init__(self, volumes: PreparedVolumes, slices: int, multiple: int, crop: Sequence[int] | None = None) -> None:
        self.volumes = volumes
        self.crop = crop
        self.places = [(index, depth) for index, shape in enumerate(volumes.shapes) for depth in _spread(shape, slices)]
        self.size = -(-len(self.places) // multiple) * multiple

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Batch:
        image = read_slice(self.volumes, *self.places[place % len(self.places)])
        start = [room // 2 for room in room_for(image, self.crop)]
        return {"sample": cut(image, start, self.crop), "weight": torch.tensor(float(place < len(self.places)))}


def read_slice(volumes: PreparedVolumes, index: int, depth: int) -> torch.Tensor:
    """Return a slice `(1, H, W, T)` of a cine, or a whole CT `(1, H, W, D)`."""
    return volumes.slice_of(index, depth) if len(volumes.shapes[index]) == 5 else volumes[index]


def room_for(image: torch.Tensor, crop: Sequence[int] | None) -> list[int]:
    """Return along each axis how far a box of this size can be shifted."""
    if crop is None:
        return [0] * (image.ndim - 1)
    rooms = [have - want for have, want in zip(image.shape[1:], crop, strict=True)]
    if min(rooms) < 0:
        raise CardioDiTError(f"data.crop {list(crop)} is larger than the prepared images, {list(image.shape[1:])}.")
    return rooms


def cut(image: torch.Tensor, start: Sequence[int], crop: Sequence[int] | None) -> torch.Tensor:
    if crop is None:
        return image
    return image[(slice(None), *(slice(a, a + n) for a, n in zip(start, crop, strict=True)))].contiguous()


def _spread(shape: Sequence[int], slices: int) -> list[int]:
    """Return evenly spaced depths of a cine, not the outermost ones if there are others; the single place of a CT."""
    if len(shape) != 5:
        return [0]
    depth, count = shape[1], min(slices, shape[1])
    return [int((i + 0.5) * depth / count) for i in range(count)]
