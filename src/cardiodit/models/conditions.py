"""Condition channels made from masks: one channel per label, or one per mask."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cardiodit.errors import CardioDiTError, Problems

if TYPE_CHECKING:
    import torch

OTHER_LABELS = ("refuse", "background")
LARGEST_LABEL = 255


@dataclass(frozen=True)
class Conditions:
    """The masks that steer a model, and how they become channels.

    Args:
        keys: names of the masks, which are columns of a manifest.
        labels: labels of each mask that become binary channels of their own; None if each mask is one channel with the
            values of the mask.
        other_labels: treatment of labels that are not listed: "refuse" raises an error, "background" sets them to 0.
    """

    keys: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...] | None = None
    other_labels: str = "refuse"

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise CardioDiTError(f"condition_keys {list(self.keys)}: expected at least one name, and no name twice.")
        if self.labels is not None and (len(self.labels) != len(self.keys) or not all(self.labels)):
            raise CardioDiTError(
                f"condition_labels {[list(labels) for labels in self.labels]}: expected a list of labels for each of "
                f"{', '.join(self.keys)}."
            )
        if self.other_labels not in OTHER_LABELS:
            raise CardioDiTError(f"other_labels={self.other_labels!r} must be one of {', '.join(OTHER_LABELS)}.")
        if self.labels is None and self.other_labels == "background":
            raise CardioDiTError("other_labels=background needs labels to be listed (condition_labels).")

    @classmethod
    def of_config(
        cls,
        channels: int,
        keys: Sequence[str] | None,
        labels: Sequence[Sequence[int]] | None,
        other_labels: str,
    ) -> "Conditions":
        """Return the conditions of a model's config, which also states the number of channels."""
        made = cls(
            tuple(keys or (f"mask{i}" for i in range(channels))),
            None if labels is None else tuple(map(tuple, labels)),
            other_labels,
        )
        if made.channels != channels:
            raise CardioDiTError(
                f"condition_channels={channels}, but the masks {', '.join(made.keys)} have {made.channels} channels."
            )
        return made

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.keys) if self.labels is None else sum(map(len, self.labels))

    def channels_of(self, masks: Mapping[str, np.ndarray]) -> np.ndarray:
        """Convert masks by name, each `(H, W, D)` or `(H, W, D, T)`, into channels `(K, H, W, D[, T])`."""
        self._check_keys(masks)
        channels: list[np.ndarray] = []
        for number, key in enumerate(self.keys):
            mask = label_map(key, masks[key])
            if self.labels is None:
                _check_is_not_picture(key, mask)
                channels.append(mask.astype(np.float32))
                continue
            if self.other_labels == "refuse":
                self._check_labels(key, mask, self.labels[number])
            channels += [(mask == label).astype(np.float32) for label in self.labels[number]]
        return np.stack(channels)

    def identity(self, masks: Mapping[str, np.ndarray]) -> str:
        """Return a hash of the masks' voxels and names, for the record of a sample."""
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
                problems.add(f"{key} is not known to the adapter, which takes {', '.join(self.keys)}")
        problems.raise_if_any()
        shapes = {masks[key].shape for key in self.keys}
        if len(shapes) > 1:
            raise CardioDiTError(f"The masks have different shapes: {', '.join(map(str, sorted(shapes)))}.")

    def _check_labels(self, key: str, mask: np.ndarray, labels: tuple[int, ...]) -> None:
        unexpected = sorted(set(np.unique(mask).tolist()) - {0, *labels})
        if unexpected:
            raise CardioDiTError(
                f"The mask {key} holds {', '.join(map(str, unexpected[:5]))}, which "
                f"{'is not a label' if len(unexpected) == 1 else 'are not labels'} of the adapter: its labels are "
                f"{', '.join(map(str, labels))}, and 0 for everything else."
            )


def label_map(key: str, mask: np.ndarray) -> np.ndarray:
    """Return a mask as uint8, or raise if it contains anything but integers from 0 to 255, as images do."""
    expected = f"Expected labels, which are integers from 0 to {LARGEST_LABEL}. Is it an image?"
    if mask.dtype.kind not in "buif" or mask.size == 0:
        raise CardioDiTError(f"The mask {key} has voxels of type {mask.dtype} and shape {mask.shape}. {expected}")
    low, high = mask.min(), mask.max()
    if not (low >= 0 and high <= LARGEST_LABEL):  # NaN, too
        raise CardioDiTError(f"The mask {key} holds values from {low:g} to {high:g}. {expected}")
    if mask.dtype.kind == "f" and (broken := mask != np.round(mask)).any():
        raise CardioDiTError(f"The mask {key} holds {mask[broken][0]:g}, which is not a label. {expected}")
    return mask.astype(np.uint8)


def _check_is_not_picture(key: str, mask: np.ndarray) -> None:
    """Reject masks of 0 and 255, whose channel would be 255 times too strong."""
    if mask.max() == LARGEST_LABEL and ((mask == 0) | (mask == LARGEST_LABEL)).all():
        raise CardioDiTError(
            f"The mask {key} holds only 0 and {LARGEST_LABEL}, as pictures of masks do; labels are 0 and 1. Divide it "
            f"by {LARGEST_LABEL}."
        )


def as_model_sees(channels: np.ndarray) -> "torch.Tensor":
    """Return channels `(K, H, W, D, T)` in the model's order `(K, D, H, W, T)`; `(K, H, W, D)` stays as it is."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(channels))
    return tensor.movedim(3, 1).contiguous() if tensor.ndim == 5 else tensor
