"""A network nobody trained, for where no trained one can be had: the same numbers on every machine, to rounding.

Random convolutions tell textures and shapes apart well enough to see that something is wrong. They know nothing of
hearts: a small distance under them is no proof of anything.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

WIDTHS = (8, 32, 64, 152)
SMALLEST = 4  # voxels: an axis shorter than this is not halved any more
SLOPE = 0.2  # below zero: with none, a seventh of the channels would say nothing of any heart
EPS = 1e-12


class RandomNetwork(nn.Module):
    """`(N, 1, A, B, C)` → `(N, 512)`: each channel's mean and standard deviation, at four scales.

    Weights have He's variance for leaky units (He et al. 2015, equation 15), drawn evenly between bounds: even draws
    are the same bits everywhere, which those behind logarithms and cosines are not. Half of the first layer's filters
    sum to zero and see edges alone.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        channels = (1, *WIDTHS)
        self.layers = nn.ModuleList(
            _convolution(inputs, outputs, np.random.default_rng([seed, layer]), edges=layer == 0)
            for layer, (inputs, outputs) in enumerate(zip(channels, WIDTHS, strict=False))
        )

    @property
    def features(self) -> int:
        return 2 * sum(WIDTHS)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x, found = image, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            flat = x.flatten(2)  # (N, C, A·B·C)
            mean = flat.mean(2)
            found += [mean, ((flat - mean[..., None]).square().mean(2) + EPS).sqrt()]
            x = _halve(x)
        return torch.cat(found, dim=1)


def _convolution(inputs: int, outputs: int, random: np.random.Generator, edges: bool) -> nn.Conv3d:
    # Not initialised by torch, which would take from everybody's generator.
    layer: nn.Conv3d = skip_init(nn.Conv3d, inputs, outputs, kernel_size=3, padding=1, padding_mode="replicate")
    bound = np.sqrt(6 / ((1 + SLOPE**2) * 27 * inputs))  # the variance is bound² / 3
    weight = bound * (2 * random.random(layer.weight.shape) - 1)
    if edges:
        weight[: outputs // 2] -= weight[: outputs // 2].mean(axis=(1, 2, 3, 4), keepdims=True)
    bias = random.random(outputs) - 0.5
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
    return layer


def _halve(x: torch.Tensor) -> torch.Tensor:
    step = [2 if n >= SMALLEST else 1 for n in x.shape[2:]]
    return F.avg_pool3d(x, step)
