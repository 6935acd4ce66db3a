"""Stage 1's samples: 2D+t slices of cine volumes, or boxes of 3D volumes, in the order of visits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.training.harness.sampler import SampleOrder, seed_for

Batch = dict[str, Any]


class SliceVisits(Dataset):
    """Training samples by visit: of a cine one slice `(1, H, W, T)`, drawn anew at every visit; a CT whole; changed a
    little, and cut to `crop` at a random place."""

    def __init__(
        self, volumes: PreparedVolumes, augmentation: Augmentation, seed: int, crop: Sequence[int] | None = None
    ) -> None:
        self.volumes = volumes
        self.augmentation = augmentation
        self.crop = crop
        self.order = SampleOrder(len(volumes), seed)
        self.seed = seed_for(seed, "slices")

    def __getitem__(self, visit: int) -> Batch:
        index, generator = self.order[visit], generator_for(self.seed, visit)
        depth = torch.randint(self._slices(index), (), generator=generator)
        image = read_slice(self.volumes, index, int(depth))
        spacing = self.volumes.geometries[index].spacing
        plane = (1.0, 1.0) if spacing is None else spacing[:2]
        image, _ = self.augmentation(image, generator=generator, spacing=plane)
        start = [int(torch.randint(room + 1, (), generator=generator)) for room in room_for(image, self.crop)]
        return {"image": cut(image, start, self.crop), "subject": self.volumes.cases[index].subject}

    def _slices(self, index: int) -> int:
        shape = self.volumes.shapes[index]
        return shape[1] if len(shape) == 5 else 1


class FixedSlices(Dataset):
    """Validation samples: evenly spaced slices of every volume, as they are; cut to `crop` in the middle.

    Padded to a multiple of `multiple` by samples that weigh nothing, so that all processes have equally many.
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
        return {"image": cut(image, start, self.crop), "weight": torch.tensor(float(place < len(self.places)))}


def read_slice(volumes: PreparedVolumes, index: int, depth: int) -> torch.Tensor:
    """`(1, H, W, T)` of a cine; a CT `(1, H, W, D)` as it is."""
    return volumes.slice_of(index, depth) if len(volumes.shapes[index]) == 5 else volumes[index]


def room_for(image: torch.Tensor, crop: Sequence[int] | None) -> list[int]:
    """How many places a box of this size has along each axis, less one."""
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
    """Evenly spaced depths of a cine, never the outermost where there are others; one place of a CT."""
    if len(shape) != 5:
        return [0]
    depth, count = shape[1], min(slices, shape[1])
    return [int((i + 0.5) * depth / count) for i in range(count)]
