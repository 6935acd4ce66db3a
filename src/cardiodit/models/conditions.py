"""Masks as a model sees them: a channel for each label, or a mask as it is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cardiodit.errors import CardioDiTError, Problems

if TYPE_CHECKING:
    import torch

OTHER_LABELS = ("refuse", "background")
LARGEST = 255


@dataclass(frozen=True)
class Conditions:
    """Which masks a model is steered by.

    Args:
        keys: names of the masks, as columns of a manifest have them.
        labels: of each mask, those that become channels of their own, 0 or 1; None: each mask is one channel, with
            the values that it has.
        other_labels: what becomes of labels that are not listed: "refuse" makes them an error, "background" 0.
    """

    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...] | None = None
    other_labels: str = "refuse"

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise CardioDiTError(f"condition_keys {list(self.keys)}: at least one name was expected, each once.")
        if self.labels is not None and (len(self.labels) != len(self.keys) or not all(self.labels)):
            raise CardioDiTError(
                f"condition_labels {[list(found) for found in self.labels]}: a list of labels for each of "
                f"{', '.join(self.keys)} was expected."
            )
        if self.other_labels not in OTHER_LABELS:
            raise CardioDiTError(f"other_labels={self.other_labels!r} must be one of {', '.join(OTHER_LABELS)}.")
        if self.labels is None and self.other_labels == "background":
            raise CardioDiTError("other_labels=background needs labels: without a list no label is another one.")

    @property
    def channels(self) -> int:
        return len(self.keys) if self.labels is None else sum(map(len, self.labels))

    def channels_of(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Masks by name, each `(H, W, D)` or `(H, W, D, T)`, as channels `(K, H, W, D[, T])`."""
        self._check_keys(masks)
        found: list[np.ndarray] = []
        for number, key in enumerate(self.keys):
            mask = label_map(key, masks[key])
            if self.labels is None:
                _check_is_no_picture(key, mask)
                found.append(mask.astype(np.float32))
                continue
            if self.other_labels == "refuse":
                self._check_labels(key, mask, self.labels[number])
            found += [(mask == label).astype(np.float32) for label in self.labels[number]]
        return np.stack(found)

    def identity(self, masks: Mapping[str, np.ndarray]) -> str:
        """A hash of the masks' voxels and names, for the record of what they steered."""
        digest = hashlib.sha256()
        for key in self.keys:
            digest.update(f"{key} {masks[key].shape}".encode())
            digest.update(np.ascontiguousarray(label_map(key, masks[key])).tobytes())
        return f"sha256:{digest.hexdigest()[:16]}"

    def _check_keys(self, masks: Mapping[str, np.ndarray]) -> None:
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

    def _check_labels(self, key: str, mask: np.ndarray, labels: tuple[int, ...]) -> None:
        strangers = sorted(set(np.unique(mask).tolist()) - {0, *labels})
        if strangers:
            raise CardioDiTError(
                f"The mask {key} holds {', '.join(map(str, strangers[:5]))}, which "
                f"{'is no label' if len(strangers) == 1 else 'are no labels'} of the adapter: it knows "
                f"{', '.join(map(str, labels))}, and 0 for everything else."
            )


def label_map(key: str, mask: np.ndarray) -> np.ndarray:
    """A mask as uint8; an error where it holds anything but whole numbers from 0 to 255, as images do."""
    expected = f"Labels, whole numbers from 0 to {LARGEST}, were expected. Is it an image?"
    if mask.dtype.kind not in "buif" or mask.size == 0:
        raise CardioDiTError(f"The mask {key} has voxels of type {mask.dtype} and the shape {mask.shape}. {expected}")
    low, high = mask.min(), mask.max()
    if not (low >= 0 and high <= LARGEST):  # NaN, too
        raise CardioDiTError(f"The mask {key} holds values from {low:g} to {high:g}. {expected}")
    if mask.dtype.kind == "f" and (broken := mask != np.round(mask)).any():
        raise CardioDiTError(f"The mask {key} holds {mask[broken][0]:g}, which is no label. {expected}")
    return mask.astype(np.uint8)


def _check_is_no_picture(key: str, mask: np.ndarray) -> None:
    """A channel would be 255 times too strong."""
    if mask.max() == LARGEST and ((mask == 0) | (mask == LARGEST)).all():
        raise CardioDiTError(
            f"The mask {key} holds only 0 and {LARGEST}, as pictures of masks do; labels are 0 and 1. Divide it by "
            f"{LARGEST}."
        )


def as_model_sees(channels: np.ndarray) -> "torch.Tensor":
    """`(K, H, W, D, T)` → `(K, D, H, W, T)`; without time, `(K, H, W, D)` as it is."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(channels))
    return tensor.movedim(3, 1).contiguous() if tensor.ndim == 5 else tensor
