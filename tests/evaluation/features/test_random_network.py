"""The untrained network: the same on every machine, and worth looking at."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cardiodit.evaluation.features.own_module import hash_of_module
from cardiodit.evaluation.features.random_network import RandomNetwork


def waves() -> torch.Tensor:
    """A volume in closed form, `(1, 1, 16, 12, 6)`."""
    h, w, d = np.meshgrid(np.arange(16), np.arange(12), np.arange(6), indexing="ij")
    return torch.from_numpy(np.sin(0.7 * h) * np.cos(0.9 * w + 0.3 * d)).float()[None, None]


def test_weights_are_the_same_bits_everywhere() -> None:
    assert hash_of_module(RandomNetwork()) == GOLDEN_HASH
    assert hash_of_module(RandomNetwork(1)) != GOLDEN_HASH


def test_features_are_the_same_numbers_everywhere() -> None:
    with torch.no_grad():
        found = RandomNetwork()(waves())[0].numpy()
    assert found.shape == (512,)
    np.testing.assert_allclose(found[::64], GOLDEN_FEATURES, rtol=1e-4, atol=1e-6)


def test_torch_s_own_generator_is_left_alone() -> None:
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


def test_edges_are_blind_to_brightness_and_weights_have_he_s_variance() -> None:
    network = RandomNetwork()
    first, third = network.layers[0], network.layers[2]
    flat = first(torch.full((1, 1, 5, 5, 5), 0.8)) - first(torch.zeros(1, 1, 5, 5, 5))
    assert flat[:, :4].abs().max() < 1e-6 < 0.01 < flat[:, 4:].abs().max()
    assert third.weight.detach().var() == pytest.approx(2 / 1.04 / third.weight[0].numel(), rel=0.02)


@pytest.mark.parametrize("size", [(8, 8, 1), (33, 17, 5), (2, 2, 2)])
def test_any_size_will_do(size: tuple[int, ...]) -> None:
    with torch.no_grad():
        found = RandomNetwork()(torch.zeros(2, 1, *size))
    assert found.shape == (2, 512) and torch.isfinite(found).all()


def test_every_channel_has_something_to_say(make_heart: Callable[[int], np.ndarray]) -> None:
    network = RandomNetwork()
    with torch.no_grad():
        rows = [network(torch.from_numpy(make_heart(i)[..., 0].copy())[None, None])[0] for i in range(4)]
    assert torch.stack(rows).std(0).min() > 1e-4


GOLDEN_HASH = "c9df00bd1e3aa4d2f374a35e200ad039ae32ce21b12ce7e378d76fa77acf6e23"
GOLDEN_FEATURES = [0.4395086, 0.1264934, -0.2090023, 0.05635413, -0.01462293, 0.447162, 0.1240961, 0.02103819]
