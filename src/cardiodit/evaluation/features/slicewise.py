"""A 2D network over a volume: the mean of what it says of planes in all three orientations (2.5D)."""

import torch
import torch.nn.functional as F
from torch import nn

from cardiodit.evaluation.features.rows import spread

AXES = (4, 2, 3)  # of (N, 1, A, B, C): planes A×B, B×C, A×C


class Slicewise(nn.Module):
    """`(N, 1, A, B, C)` in [0, 1] → `(N, features)`.

    Each orientation counts one third, however many planes it has. Grey becomes three channels, of each of which
    ImageNet's mean is taken away in the order blue, green, red.

    Args:
        network: `(N, 3, h, w)` → `(N, features)`.
        planes: at most this many, evenly spread, of an orientation.
        size: pixels each plane is resized to.
    """

    MEANS = (0.406, 0.456, 0.485)

    def __init__(self, network: nn.Module, planes: int = 16, size: int = 224) -> None:
        super().__init__()
        self.network, self.planes, self.size = network, planes, size

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        means = volume.new_tensor(self.MEANS).reshape(1, 3, 1, 1)
        orientations = []
        for axis in AXES:
            rows = []
            for index in spread(volume.shape[axis], self.planes):
                plane = volume.select(axis, index)  # (N, 1, h, w)
                plane = F.interpolate(plane, size=(self.size, self.size), mode="bilinear", antialias=True)
                rows.append(self.network(plane.expand(-1, 3, -1, -1) - means))
            orientations.append(torch.stack(rows).mean(0))
        return torch.stack(orientations).mean(0)
