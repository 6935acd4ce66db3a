"""Architectures of the feature networks: residual networks, 2D networks over slices, and an untrained network.

Residual networks (He et al. 2016) in two or three dimensions end with the features of their last stage. A plan states
where the published ones differ: MedicalNet (Chen et al. 2019) uses dilation instead of strides in its last stages;
RadImageNet (Mei et al. 2022) comes from Keras, with biases and the stride in a block's first convolution. Neither
difference changes the shape of a weight: with the wrong plan, the weights load but compute other features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

from cardiodit.evaluation.features.inputs import evenly_spaced

Stages = tuple[int, int, int, int]

WIDTHS: Stages = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNetPlan:
    """Structure of a residual network.

    Args:
        dims: 2 or 3.
        channels: input channels.
        blocks: blocks per stage.
        bottleneck: whether blocks have three convolutions, the last one four times as wide, instead of two.
        strides: stride of each stage.
        dilations: dilation of each stage.
        bias: whether convolutions have a bias.
        stride_first: whether a bottleneck's stride is in its first convolution (Keras) or its second (torchvision).
        eps: epsilon of batch norm.
    """

    dims: int
    channels: int
    blocks: Stages
    bottleneck: bool
    strides: Stages = (1, 2, 2, 2)
    dilations: Stages = (1, 1, 1, 1)
    bias: bool = False
    stride_first: bool = False
    eps: float = 1e-5

    @property
    def expansion(self) -> int:
        return 4 if self.bottleneck else 1

    @property
    def features(self) -> int:
        return WIDTHS[-1] * self.expansion

    def convolution(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
        kind: Any = nn.Conv2d if self.dims == 2 else nn.Conv3d
        padding = dilation * (kernel // 2)
        return kind(inputs, outputs, kernel, stride, padding, dilation, bias=self.bias)

    def norm(self, channels: int) -> nn.Module:
        kind: Any = nn.BatchNorm2d if self.dims == 2 else nn.BatchNorm3d
        return kind(channels, eps=self.eps)


MEDICALNET_10 = ResNetPlan(3, 1, (1, 1, 1, 1), bottleneck=False, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
MEDICALNET_50 = ResNetPlan(3, 1, (3, 4, 6, 3), bottleneck=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
TORCHVISION_50 = ResNetPlan(2, 3, (3, 4, 6, 3), bottleneck=True)
KERAS_50 = ResNetPlan(2, 3, (3, 4, 6, 3), bottleneck=True, bias=True, stride_first=True, eps=1.001e-5)


class ResNet(nn.Module):
    """`(N, C, …)` → `(N, features)`: the last stage's channels, averaged over space. Names follow torchvision."""

    def __init__(self, plan: ResNetPlan) -> None:
        super().__init__()
        self.plan = plan
        self.conv1 = plan.convolution(plan.channels, WIDTHS[0], kernel=7, stride=2)
        self.bn1 = plan.norm(WIDTHS[0])
        pool: Any = nn.MaxPool2d if plan.dims == 2 else nn.MaxPool3d
        self.maxpool = pool(kernel_size=3, stride=2, padding=1)
        width = WIDTHS[0]
        for stage in range(4):
            setattr(self, f"layer{stage + 1}", _stage(plan, width, stage))
            width = WIDTHS[stage] * plan.expansion

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.flatten(2).mean(2)  # (N, features, …) → (N, features)


def _stage(plan: ResNetPlan, inputs: int, stage: int) -> nn.Sequential:
    width, stride, dilation = WIDTHS[stage], plan.strides[stage], plan.dilations[stage]
    block = _Bottleneck if plan.bottleneck else _Basic
    first = block(plan, inputs, width, stride, dilation)
    others = [block(plan, width * plan.expansion, width, 1, dilation) for _ in range(plan.blocks[stage] - 1)]
    return nn.Sequential(first, *others)


class _Block(nn.Module):
    """A residual block; its input is projected where the shape changes."""

    def __init__(self, plan: ResNetPlan, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * plan.expansion
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = plan.convolution(inputs, outputs, kernel=1, stride=stride)
            self.downsample = nn.Sequential(projection, plan.norm(outputs))

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(self.residual(x) + identity)


class _Basic(_Block):
    def __init__(self, plan: ResNetPlan, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__(plan, inputs, width, stride)
        self.conv1, self.bn1 = plan.convolution(inputs, width, 3, stride, dilation), plan.norm(width)
        self.conv2, self.bn2 = plan.convolution(width, width, 3, 1, dilation), plan.norm(width)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class _Bottleneck(_Block):
    def __init__(self, plan: ResNetPlan, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__(plan, inputs, width, stride)
        first, second = (stride, 1) if plan.stride_first else (1, stride)
        outputs = width * plan.expansion
        self.conv1, self.bn1 = plan.convolution(inputs, width, 1, first), plan.norm(width)
        self.conv2, self.bn2 = plan.convolution(width, width, 3, second, dilation), plan.norm(width)
        self.conv3, self.bn3 = plan.convolution(width, outputs, 1), plan.norm(outputs)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class Slicewise(nn.Module):
    """A 2D network applied to planes in all three orientations (2.5D): `(N, 1, A, B, C)` in [0, 1] → `(N, features)`.

    Each orientation contributes one third, however many planes it has. Grey values are repeated to three channels, from
    which ImageNet's means are subtracted in the order blue, green, red.

    Args:
        network: `(N, 3, h, w)` → `(N, features)`.
        planes: maximum number of evenly spaced planes per orientation.
        size: height and width in pixels to which planes are resized.
    """

    MEANS = (0.406, 0.456, 0.485)
    AXES = (4, 2, 3)  # of (N, 1, A, B, C): planes A×B, B×C, A×C

    def __init__(self, network: nn.Module, planes: int = 16, size: int = 224) -> None:
        super().__init__()
        self.network, self.planes, self.size = network, planes, size

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        means = volume.new_tensor(self.MEANS).reshape(1, 3, 1, 1)
        orientations = []
        for axis in self.AXES:
            rows = []
            for index in evenly_spaced(volume.shape[axis], self.planes):
                plane = volume.select(axis, index)  # (N, 1, h, w)
                plane = F.interpolate(plane, size=(self.size, self.size), mode="bilinear", antialias=True)
                rows.append(self.network(plane.expand(-1, 3, -1, -1) - means))
            orientations.append(torch.stack(rows).mean(0))
        return torch.stack(orientations).mean(0)


class RandomNetwork(nn.Module):
    """An untrained network, `(N, 1, A, B, C)` → `(N, 512)`: each channel's mean and deviation at four scales.

    It serves where no trained network is available, and gives the same numbers on every machine, up to rounding. Random
    convolutions distinguish textures and shapes well enough to show that something is wrong, but a small distance under
    them proves nothing.

    Weights have He's variance for leaky units (He et al. 2015, equation 15) and a uniform distribution: uniform draws
    have the same bits everywhere, normal ones, which need logarithms and cosines, do not. Half of the first layer's
    filters sum to zero and respond to edges only.
    """

    WIDTHS = (8, 32, 64, 152)
    SMALLEST = 4  # voxels: shorter axes are not halved
    SLOPE = 0.2  # of the leaky units: with plain ReLU, a seventh of the channels would be zero for every heart
    EPS = 1e-12

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        channels = (1, *self.WIDTHS)
        self.layers = nn.ModuleList(
            self._convolution(channels[i], channels[i + 1], np.random.default_rng([seed, i]), edges=i == 0)
            for i in range(len(self.WIDTHS))
        )

    @property
    def features(self) -> int:
        return 2 * sum(self.WIDTHS)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x, statistics = image, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), self.SLOPE)
            flat = x.flatten(2)  # (N, C, A·B·C)
            mean = flat.mean(2)
            statistics += [mean, ((flat - mean[..., None]).square().mean(2) + self.EPS).sqrt()]
            x = F.avg_pool3d(x, [2 if n >= self.SMALLEST else 1 for n in x.shape[2:]])
        return torch.cat(statistics, dim=1)

    def _convolution(self, inputs: int, outputs: int, random: np.random.Generator, edges: bool) -> nn.Conv3d:
        # torch's own initialisation is skipped, because it would draw from the global generator.
        layer: nn.Conv3d = skip_init(nn.Conv3d, inputs, outputs, kernel_size=3, padding=1, padding_mode="replicate")
        bound = np.sqrt(6 / ((1 + self.SLOPE**2) * 27 * inputs))  # the variance is bound² / 3
        weight = bound * (2 * random.random(layer.weight.shape) - 1)
        if edges:
            weight[: outputs // 2] -= weight[: outputs // 2].mean(axis=(1, 2, 3, 4), keepdims=True)
        bias = random.random(outputs) - 0.5
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))  # type: ignore[union-attr]
        return layer
