"""The adapter's samples: latents with noise, and the masks that belong to them, of which some are left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.manifest import Case
from cardiodit.latents.dataset import read_mask
from cardiodit.latents.file import identity_of
from cardiodit.models.conditions import Conditions, as_model_sees
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.settings import ConditionSettings

Batch = dict[str, Any]


class CohortMasks:
    """Masks of a manifest of latents; all are looked at when the object is made.

    Args:
        cases: its rows.
        conditions: which columns, and what becomes of them.
        size: of the volumes, along the model's axes.

    Its `identity` is that of all masks and their order, as the model sees them.
    """

    def __init__(self, cases: Sequence[Case], conditions: Conditions, size: tuple[int, ...]) -> None:
        self.paths: list[dict[str, Path]] = []
        self.conditions = conditions
        contents: list[str] = []
        problems = Problems("The masks beside these latents cannot be used")
        for case in cases:
            found = {key: case.path(key) for key in conditions.keys}
            if missing := [key for key, path in found.items() if path is None]:
                problems.add(f"{case.subject} has no {', '.join(missing)}")
                continue
            self.paths.append({key: path for key, path in found.items() if path is not None})
            try:
                channels = self[len(self.paths) - 1]
            except (CardioDiTError, OSError) as error:
                problems.add(f"{case.subject}: {str(error).rstrip('.')}")
                continue
            if tuple(channels.shape[1:]) != size:
                problems.add(f"{case.subject} has masks of {tuple(channels.shape[1:])}, its volume is {size}")
            contents.append(content_of(channels.numpy()))
        problems.raise_if_any(
            "`cardiodit encode --condition_keys ...` prepares masks beside the latents. Labels that are not listed in "
            "conditions.labels are background with conditions.other_labels background."
        )
        self.identity = identity_of(contents)

    def __getitem__(self, index: int) -> torch.Tensor:
        """`(K, *axes)` float32."""
        masks = {key: read_mask(path) for key, path in self.paths[index].items()}
        return as_model_sees(self.conditions.channels_of(masks))


class Conditioned(Dataset):
    """Another data set's samples with their masks, of which some are left out.

    Args:
        items: samples by visit, or by place.
        index_of: which row of the cohort a visit or place is of.
        masks: of the cohort.
        settings: how often they are left out; None, as in validation: never.
    """

    def __init__(
        self, items: Any, index_of: Any, masks: CohortMasks, settings: ConditionSettings | None, seed: int
    ) -> None:
        self.items, self.index_of, self.masks, self.settings = items, index_of, masks, settings
        self.seed = seed_for(seed, "conditions")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, visit: int) -> Batch:
        condition = self.masks[self.index_of(visit)]
        if self.settings is not None:
            condition = leave_out(condition, self.settings, generator_for(self.seed, visit))
        return {**self.items[visit], "condition": condition}


def leave_out(condition: torch.Tensor, settings: ConditionSettings, generator: torch.Generator) -> torch.Tensor:
    """Channels `(K, *axes)` of which all, some, or some places are 0; each at exactly the rate that is configured."""
    channels = len(condition)
    all_of_them, *each = torch.rand(
        1 + channels, generator=generator
    ).tolist()  # drawn always: no choice shifts another
    if all_of_them < settings.dropout_prob:
        return torch.zeros_like(condition)
    if channels > 1:
        kept = torch.tensor([draw >= settings.channel_dropout_prob for draw in each])
        condition = condition * kept.view(-1, *[1] * (condition.ndim - 1))
    if settings.patch_dropout_prob > 0:
        condition = condition * _kept_patches(condition.shape[1:], settings, generator)
    return condition


def _kept_patches(size: Sequence[int], settings: ConditionSettings, generator: torch.Generator) -> torch.Tensor:
    """1 in boxes that stay and 0 in others, for all channels alike."""
    boxes = torch.rand([-(-n // settings.patch_dropout_size) for n in size], generator=generator)
    kept = (boxes >= settings.patch_dropout_prob).float()
    for axis, length in enumerate(size):
        kept = kept.repeat_interleave(settings.patch_dropout_size, dim=axis).narrow(axis, 0, length)
    return kept
