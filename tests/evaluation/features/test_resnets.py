"""Our residual networks against MONAI's, whose modules are turned where published networks differ from them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from cardiodit.evaluation.features.resnets import (
    KERAS_50,
    MEDICALNET_10,
    MEDICALNET_50,
    TORCHVISION_50,
    ResNet,
    ResNetPlan,
)

SMALL = {"blocks": (2, 1, 1, 1)}


def monai_twin(plan: ResNetPlan) -> Any:
    """MONAI's network of the plan's blocks, with random weights and statistics; strides and dilation are its own."""
    from monai.networks.nets.resnet import ResNet as MonaiResNet

    network = MonaiResNet(
        "bottleneck" if plan.bottleneck else "basic",
        list(plan.blocks),
        [64, 128, 256, 512],
        spatial_dims=plan.dims,
        n_input_channels=plan.channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.state_dict().values():  # of batch norms, in 0.5 to 1.5
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def assert_same(plan: ResNetPlan, twin: nn.Module, size: tuple[int, ...]) -> None:
    ours = ResNet(plan).eval()
    ours.load_state_dict(twin.state_dict(), strict=True)
    image = torch.randn(1, plan.channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = twin(image), ours(image)
    assert found.shape == (1, plan.features)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def dilate(twin: Any, plan: ResNetPlan) -> None:
    """Strides become dilation in the last two stages, as in MedicalNet's published code."""
    for stage, dilation in ((twin.layer3, plan.dilations[2]), (twin.layer4, plan.dilations[3])):
        for module in stage.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3


@pytest.mark.parametrize("bottleneck", [False, True])
def test_medicalnet_is_a_dilated_monai(bottleneck: bool) -> None:
    plan = replace(MEDICALNET_50, **SMALL) if bottleneck else MEDICALNET_10
    twin = monai_twin(plan)
    dilate(twin, plan)
    assert_same(plan, twin, (24, 24, 12))


def test_without_dilation_the_weights_load_and_mean_something_else() -> None:
    twin = monai_twin(MEDICALNET_10)
    with pytest.raises(AssertionError, match="close"):
        assert_same(MEDICALNET_10, twin, (24, 24, 12))


def test_torchvision_is_monai_in_two_dimensions() -> None:
    plan = replace(TORCHVISION_50, **SMALL)
    assert_same(plan, monai_twin(plan), (48, 40))


def test_keras_strides_first_and_has_biases() -> None:
    plan = replace(KERAS_50, **SMALL)
    twin = monai_twin(plan)
    generator = torch.Generator().manual_seed(2)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.rand(module.out_channels, generator=generator) - 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5
    for stage in (twin.layer2, twin.layer3, twin.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    assert_same(plan, twin, (48, 40))


@pytest.mark.parametrize(("plan", "depth"), [(MEDICALNET_10, 10), (MEDICALNET_50, 50)])
def test_names_and_shapes_are_those_monai_loads_medicalnet_into(plan: ResNetPlan, depth: int) -> None:
    from monai.networks.nets import resnet10, resnet50

    make = resnet10 if depth == 10 else resnet50
    with torch.device("meta"):
        ours = ResNet(plan).state_dict()
        theirs = make(n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False).state_dict()
        # MONAI's own stem is not strided by default; that changes no shape.
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert plan.features == {10: 512, 50: 2048}[depth]
