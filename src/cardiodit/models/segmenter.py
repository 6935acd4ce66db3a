"""Small 3D U-Net that segments the heart, so that generated volumes can be measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config

from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import StrictModelMixin

STRIDES = ((1, 1, 1), (2, 2, 1), (2, 2, 1))  # along H, W, D; slices are few and far apart


class HeartSegmenter(StrictModelMixin):
    """Label every voxel of a frame: background 0, right ventricle 1, myocardium 2, left ventricle 3.

    Args:
        channels: number of channels of each level; the second and third levels halve the resolution along H and W.
        num_labels: number of labels, including the background.
        preprocessing: preprocessing of the training volumes, as returned by `Preprocessing.to_dict()`.
        spacing: voxel size of the training volumes in mm along H, W, D; None if they differed.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, int, int, int] = (16, 32, 64, 64),
        num_labels: int = 4,
        preprocessing: dict[str, Any] | None = None,
        spacing: tuple[float, float, float] | None = None,
    ) -> None:
        from monai.networks.nets.unet import UNet  # takes a second to import

        super().__init__()
        self.net = UNet(3, 1, num_labels, channels=channels, strides=STRIDES, num_res_units=1, norm="INSTANCE")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 1, H, W, D)` in [-1, 1] → logits `(B, labels, H, W, D)`."""
        height, width = images.shape[2:4]
        bottom, right = -height % 4, -width % 4
        padded = F.pad(images, (0, 0, 0, right, 0, bottom), mode="replicate") if bottom or right else images
        return self.net(padded)[:, :, :height, :width]

    @torch.no_grad()
    def segment(self, cine: np.ndarray | torch.Tensor, batch_size: int = 16) -> np.ndarray:
        """Return the labels (uint8) of a cine `(H, W, D, T)` in [-1, 1], segmented frame by frame."""
        if cine.ndim != 4:
            raise CardioDiTError(f"Expected a cine (H, W, D, T) to segment, got the shape {tuple(cine.shape)}.")
        frames = torch.as_tensor(cine).movedim(3, 0)[:, None].to(self.device, self.dtype)  # (T, 1, H, W, D)
        was_training = self.training
        self.eval()
        labels = torch.cat([self(part).argmax(dim=1) for part in frames.split(batch_size)])
        self.train(was_training)
        return labels.movedim(0, 3).to("cpu", torch.uint8).numpy()


def dice(first: np.ndarray, second: np.ndarray, labels: Sequence[int] = (1, 2, 3)) -> dict[int, float]:
    """Return the Dice coefficient of two label maps for each label; 1 for labels that neither contains."""
    scores = {}
    for label in labels:
        a, b = first == label, second == label
        total = int(a.sum() + b.sum())
        scores[label] = 1.0 if total == 0 else float(2 * (a & b).sum() / total)
    return scores
