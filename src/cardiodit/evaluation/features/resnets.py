"""Residual networks (He et al. 2016) in two or three dimensions, as far as their last stage's features.

One plan says where published ones differ. MedicalNet's (Chen et al. 2019) widen their view by dilation where others
take strides; RadImageNet's (Mei et al. 2022) come from Keras, with biases and the stride in a block's first
convolution. Both differences change no weight's shape: built otherwise, the weights load and mean something else.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Stages = tuple[int, int, int, int]

WIDTHS: Stages = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNetPlan:
    """What a network is made of.

    Args:
        dims: 2 or 3.
        channels: of the input.
        blocks: of each stage.
        bottleneck: blocks of three convolutions that end four times as wide, instead of two.
        strides, dilations: of each stage.
        bias: whether convolutions have one.
        stride_first: a bottleneck's stride in its first convolution (Keras) rather than its second (torchvision).
        eps: of batch norm.
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
    """`(N, C, …)` → `(N, features)`, the last stage's channels averaged over space. Names are torchvision's."""

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
    """What a block adds to its input, which is projected where the shape changes."""

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
