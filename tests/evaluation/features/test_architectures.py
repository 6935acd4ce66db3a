"""Residual networks against MONAI's; the random and the slice-wise network against closed forms."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cardiodit.evaluation.features.architectures import (
    KERAS_50,
    MEDICALNET_10,
    MEDICALNET_50,
    TORCHVISION_50,
    RandomNetwork,
    ResNet,
    ResNetPlan,
    Slicewise,
)
from cardiodit.evaluation.features.weights import hash_of_weights

# Residual networks


SMALL = {"blocks": (2, 1, 1, 1)}


def monai_twin(plan: ResNetPlan) -> Any:
    """Build MONAI's network with the plan's blocks and random weights; strides and dilation are MONAI's."""
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
    """Replace strides by dilation in the last two stages, as in MedicalNet's published code."""
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


def test_without_dilation_the_weights_load_but_give_other_features() -> None:
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
        # By default, MONAI's stem has no stride; that changes no shape.
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert plan.features == {10: 512, 50: 2048}[depth]


# Random network


def waves() -> torch.Tensor:
    """A volume in closed form, `(1, 1, 16, 12, 6)`."""
    h, w, d = np.meshgrid(np.arange(16), np.arange(12), np.arange(6), indexing="ij")
    return torch.from_numpy(np.sin(0.7 * h) * np.cos(0.9 * w + 0.3 * d)).float()[None, None]


def test_weights_are_the_same_bits_everywhere() -> None:
    assert hash_of_weights(RandomNetwork()) == GOLDEN_HASH
    assert hash_of_weights(RandomNetwork(1)) != GOLDEN_HASH


def test_features_are_the_same_numbers_everywhere() -> None:
    with torch.no_grad():
        found = RandomNetwork()(waves())[0].numpy()
    assert found.shape == (512,)
    np.testing.assert_allclose(found[::64], GOLDEN_FEATURES, rtol=1e-4, atol=1e-6)


def test_the_global_generator_is_not_used() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    RandomNetwork()(waves())
    assert torch.equal(torch.rand(4), expected)


def test_features_are_means_and_deviations_of_channels() -> None:
    network, image = RandomNetwork(), waves()
    with torch.no_grad():
        found = network(image)[0]
        channels = F.leaky_relu(network.layers[0](image), 0.2)[0].flatten(1)
    torch.testing.assert_close(found[:8], channels.mean(1))
    torch.testing.assert_close(found[8:16], channels.std(1, correction=0), rtol=1e-4, atol=1e-5)


def test_edge_filters_ignore_brightness_and_weights_have_he_s_variance() -> None:
    network = RandomNetwork()
    first, third = network.layers[0], network.layers[2]
    flat = first(torch.full((1, 1, 5, 5, 5), 0.8)) - first(torch.zeros(1, 1, 5, 5, 5))
    assert flat[:, :4].abs().max() < 1e-6 < 0.01 < flat[:, 4:].abs().max()
    assert third.weight.detach().var() == pytest.approx(2 / 1.04 / third.weight[0].numel(), rel=0.02)


@pytest.mark.parametrize("size", [(8, 8, 1), (33, 17, 5), (2, 2, 2)])
def test_any_size_is_accepted(size: tuple[int, ...]) -> None:
    with torch.no_grad():
        found = RandomNetwork()(torch.zeros(2, 1, *size))
    assert found.shape == (2, 512) and torch.isfinite(found).all()


def test_every_channel_varies_between_hearts(make_heart: Callable[[int], np.ndarray]) -> None:
    network = RandomNetwork()
    with torch.no_grad():
        rows = [network(torch.from_numpy(make_heart(i)[..., 0].copy())[None, None])[0] for i in range(4)]
    assert torch.stack(rows).std(0).min() > 1e-4


GOLDEN_HASH = "c9df00bd1e3aa4d2f374a35e200ad039ae32ce21b12ce7e378d76fa77acf6e23"
GOLDEN_FEATURES = [0.4395086, 0.1264934, -0.2090023, 0.05635413, -0.01462293, 0.447162, 0.1240961, 0.02103819]


# 2D networks over slices


class Means(nn.Module):
    """`(N, 3, h, w)` → the channels' means."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1:] == (3, 12, 12)
        return image.mean((2, 3))


def test_three_orientations_have_equal_weight() -> None:
    volume = torch.rand(1, 1, 12, 12, 5, generator=torch.Generator().manual_seed(0))
    found = Slicewise(Means(), planes=20, size=12)(volume)
    np.testing.assert_allclose(found[0], float(volume.mean()) - np.array([0.406, 0.456, 0.485]), atol=0.02)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_each_orientation_sees_its_own_planes(axis: int) -> None:
    volume = torch.zeros(1, 1, 12, 12, 12)
    volume.select(axis, 6).fill_(1)  # the plane chosen in this orientation; a twelfth of the others
    found = Slicewise(Means(), planes=1, size=12)(volume)
    np.testing.assert_allclose(found[0], (1 + 2 / 12) / 3 - np.array([0.406, 0.456, 0.485]), atol=1e-5)
