"""The segmenter's samples: single frames with their labels, changed so that noise, blur and contrast do not matter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import Dataset

from cardiodit._util.hashing import sha256_of
from cardiodit._util.randomness import generator_for
from cardiodit.errors import Problems
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import Case, prepare_case, prepare_mask
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.training.harness.sampler import SampleOrder, seed_for

Batch = dict[str, Any]


class SegmentedCines:
    """Cines `(H, W, D, T)` with their label maps in memory, and their frames that carry labels."""

    def __init__(self, cases: Sequence[Case], steps: Preprocessing, most_label: int) -> None:
        from tqdm import tqdm

        self.cases, self.steps = list(cases), steps
        self.images: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.geometries: list[Geometry] = []
        problems = Problems("These rows cannot be learned from")
        for case in tqdm(self.cases, desc="Reading", unit="volume", disable=None, leave=False):
            prepared = prepare_case(case, steps)
            mask = prepare_mask(case, prepared)
            if mask is None:
                problems.add(f"{case.subject} has no mask; the manifest needs a column of that name")
                continue
            if mask.voxels.max() > most_label or mask.voxels.max() == 0:
                problems.add(f"{case.path('mask')} holds labels up to {mask.voxels.max()}, not 1 to {most_label}")
            self.images.append(prepared.volume.voxels.astype(np.float32))
            self.labels.append(mask.voxels.astype(np.uint8))
            self.geometries.append(prepared.volume.geometry)
        problems.raise_if_any()
        self.frames = [
            (i, int(t)) for i, mask in enumerate(self.labels) for t in np.flatnonzero(mask.any(axis=(0, 1, 2)))
        ]

    @property
    def identity(self) -> str:
        """Of the files, wherever they lie."""
        return " ".join(sha256_of(case.image)[:12] for case in self.cases)

    def frame(self, index: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and labels `(H, W, D)`."""
        return torch.from_numpy(self.images[index][..., time]), torch.from_numpy(self.labels[index][..., time])


class FrameVisits(Dataset):
    """Training samples by visit: an image `(1, H, W, D)` with its labels.

    Args:
        blur: of an image, in voxels of the plane, at most; half of the images stay as they are.
        noise: standard deviation of what is added, at most; an image's range is 2.
    """

    def __init__(self, cines: SegmentedCines, augmentation: Augmentation, blur: float, noise: float, seed: int) -> None:
        self.cines, self.augmentation, self.blur, self.noise = cines, augmentation, blur, noise
        self.order = SampleOrder(len(cines.frames), seed)
        self.seed = seed_for(seed, "frames")

    def __getitem__(self, visit: int) -> Batch:
        index, time = self.cines.frames[self.order[visit]]
        generator = generator_for(self.seed, visit)
        image, labels = self.cines.frame(index, time)
        spacing = self.cines.geometries[index].spacing
        plane = (1.0, 1.0) if spacing is None else spacing[:2]
        image, (labels,) = self.augmentation(image, [labels], generator, spacing=plane)
        is_blurred, blur, noise = torch.rand(3, generator=generator).tolist()
        if is_blurred < 0.5:
            sigma = blur * self.blur
            image = torch.from_numpy(gaussian_filter(image.numpy(), (sigma, sigma, 0), mode="nearest"))
        image = image + noise * self.noise * torch.randn(image.shape, generator=generator)
        return {"image": image[None], "labels": labels[None].long(), "subject": self.cines.cases[index].subject}
