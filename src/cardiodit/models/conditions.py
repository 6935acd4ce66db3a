"""Masks as a model sees them: a channel for each label, or a mask as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cardiodit.errors import CardioDiTError, Problems

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Conditions:
    """Which masks a model is steered by.

    Args:
        keys: names of the masks, as columns of a manifest have them.
        labels: of each mask, those that become channels of their own, 0 or 1; None: each mask is one channel, with
            the values that it has.
    """

    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise CardioDiTError(f"condition_keys {list(self.keys)}: at least one name was expected, each once.")
        if self.labels is not None and (len(self.labels) != len(self.keys) or not all(self.labels)):
            raise CardioDiTError(
                f"condition_labels {[list(found) for found in self.labels]}: a list of labels for each of "
                f"{', '.join(self.keys)} was expected."
            )

    @property
    def channels(self) -> int:
        return len(self.keys) if self.labels is None else sum(map(len, self.labels))

    def channels_of(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Masks by name, each `(H, W, D)` or `(H, W, D, T)`, as channels `(K, H, W, D[, T])`."""
        problems = Problems("The masks do not fit the adapter")
        for key in self.keys:
            if key not in masks:
                problems.add(f"{key} is missing; the adapter was trained with {', '.join(self.keys)}")
        for key in masks:
            if key not in self.keys:
                problems.add(f"{key} is not known to the adapter; it takes {', '.join(self.keys)}")
        problems.raise_if_any()
        shapes = {masks[key].shape for key in self.keys}
        if len(shapes) > 1:
            raise CardioDiTError(f"The masks have different shapes: {', '.join(map(str, sorted(shapes)))}.")
        found: list[np.ndarray] = []
        for number, key in enumerate(self.keys):
            if self.labels is None:
                found.append(np.asarray(masks[key], np.float32))
                continue
            self._check_values(key, masks[key], self.labels[number])
            found += [(masks[key] == label).astype(np.float32) for label in self.labels[number]]
        return np.stack(found)

    def _check_values(self, key: str, mask: np.ndarray, labels: tuple[int, ...]) -> None:
        strangers = sorted(set(np.unique(mask).tolist()) - {0, *labels})
        if strangers:
            raise CardioDiTError(
                f"The mask {key} holds {', '.join(f'{value:g}' for value in strangers[:5])}, which "
                f"{'is no label' if len(strangers) == 1 else 'are no labels'} of the adapter: it knows "
                f"{', '.join(map(str, labels))}, and 0 for everything else."
            )


def as_model_sees(channels: np.ndarray) -> "torch.Tensor":
    """`(K, H, W, D, T)` → `(K, D, H, W, T)`; without time, `(K, H, W, D)` as it is."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(channels))
    return tensor.movedim(3, 1).contiguous() if tensor.ndim == 5 else tensor
