"""Networks by name: what they say of themselves, what changes their identity, and what they refuse."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import Choice, load_network, network_of_module
from cardiodit.evaluation.features.cinema import RULES, ShortAxisTokens
from cardiodit.evaluation.features.resnets import KERAS_50, MEDICALNET_10, ResNet
from cardiodit.evaluation.features.slicewise import Slicewise


def test_the_random_network_says_that_it_is_random(heart: np.ndarray) -> None:
    network = load_network("random")
    told = network.describe()
    assert told["note"] == "random features: no trained network was given"
    assert told["input"]["grid"] == "the volumes' own, nothing is resampled" and told["frames"] == 4
    row = network.features(heart)
    assert row.shape == (told["dimension"],) == (512,) and row.dtype == np.float64
    assert json.loads(json.dumps(told)) == told
    moving = load_network("random", Choice(kind="spatiotemporal"))
    assert moving.features(heart).shape == (moving.describe()["dimension"],) == (1024,)
    assert moving.describe()["slices"] == "all"


def test_a_row_is_the_same_whenever_it_is_asked_for(heart: np.ndarray) -> None:
    network = load_network("random")
    first = network.features(heart)
    network.features(-heart)
    assert np.array_equal(network.features(np.asfortranarray(heart)), first)


def test_what_changes_numbers_changes_the_identity_and_nothing_else_does() -> None:
    same = [Choice(), Choice(slices=3), Choice(device="cpu")]
    others = [
        Choice(frames=None),
        Choice(frames=5),
        Choice(kind="spatiotemporal"),
        Choice(kind="spatiotemporal", slices=3),
        Choice(size=(16, 16, 4)),
        Choice(spacing=(2.0, 2.0, 8.0)),
        Choice(spacing=(2.0, 2.0, 8.0), size=(16, 16, 4)),
    ]
    assert len({load_network("random", choice).identity for choice in same}) == 1
    assert len({load_network("random", choice).identity for choice in [Choice(), *others]}) == 8


def own_module(scale: float = 1.0) -> nn.Sequential:
    module = nn.Sequential(nn.Conv3d(1, 4, 3, bias=False), nn.ReLU())
    with torch.no_grad():
        next(module.parameters()).copy_(scale * torch.linspace(-1, 1, 108).reshape(4, 1, 3, 3, 3))
    return module


def test_a_module_of_ones_own_is_pooled_and_hashed(heart: np.ndarray) -> None:
    choice = Choice(size=(16, 16, 6))
    network = network_of_module(own_module(), "mine", choice)
    volume = heart[:16, :16, :, 0]
    expected = own_module()(torch.from_numpy(volume.copy())[None, None])[0].mean((1, 2, 3))
    np.testing.assert_allclose(network.features(volume), expected.detach(), rtol=1e-5)
    assert network.identity == network_of_module(own_module(), "mine", choice).identity
    assert network.identity != network_of_module(own_module(2.0), "mine", choice).identity
    strided: Any = own_module()
    strided[0].stride = (2, 2, 2)  # the same weights, other numbers
    assert network.identity != network_of_module(strided, "mine", choice).identity


def test_a_module_is_named_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\nmake = lambda: nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten())\nnone = dict"
    (tmp_path / "own_networks_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = load_network("own_networks_of_a_test:make", Choice(size=(4, 4, 4)))
    assert network.features(np.zeros((9, 9, 9), np.float32)).shape == (8,)
    refused = {
        "own_networks_of_a_test:missing": "cannot be imported",
        "nowhere_at_all:make": "PYTHONPATH",
        "own_networks_of_a_test:none": "returned a dict",
    }
    for reference, sentence in refused.items():
        with pytest.raises(CardioDiTError, match=sentence):
            load_network(reference, Choice(size=(4, 4, 4)))
    with pytest.raises(CardioDiTError, match="needs the size"):
        load_network("own_networks_of_a_test:make")


def test_a_module_s_code_is_part_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the current folder. What `forward` does is in no weight and in no name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    code = (
        "from torch import nn\n\nclass Own(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3, 4)){}\n"
    )
    (tmp_path / "own_entry_of_a_test.py").write_text("from own_forward_of_a_test import Own as make\n")
    networks = []
    for change in ("", " * 2"):
        (tmp_path / "own_forward_of_a_test.py").write_text(code.format(change))
        networks.append(load_network("own_entry_of_a_test:make", Choice(size=(4, 4, 4))))
        for name in ("own_entry_of_a_test", "own_forward_of_a_test"):
            del sys.modules[name]
    first, second = networks
    assert first.identity != second.identity
    assert first.describe()["weights"] == second.describe()["weights"]
    assert first.describe()["code_sha256"] != second.describe()["code_sha256"]


def test_a_module_that_does_not_fit_says_so() -> None:
    with pytest.raises(CardioDiTError, match=r"does not take a volume of the shape \(1, 1, 2, 2, 2\)"):
        network_of_module(own_module(), "mine", Choice(size=(2, 2, 2)))
    with pytest.raises(CardioDiTError, match=r"gave \(8,\) for one volume"):
        network_of_module(nn.Flatten(0), "mine", Choice(size=(2, 2, 2)))


@pytest.mark.parametrize(
    ("name", "choice", "sentence"),
    [
        ("inception", Choice(), "choose from random, medicalnet10"),
        ("random", Choice(weights="a.pth"), "no weights to load"),
        ("radimagenet", Choice(), "(?s)Warvito/radimagenet-models.*`random` needs no weights"),
        ("medicalnet10", Choice(weights="nowhere.pth"), "(?s)neither a file.*`random` needs no weights"),
        ("cinema", Choice(kind="spatiotemporal"), "not a time axis"),
        ("cinema", Choice(weights="a.pth"), "leave them out"),
        ("random", Choice(kind="video"), "choose from spatial, spatiotemporal"),
        ("random", Choice(frames=0), "frames=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(name: str, choice: Choice, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        load_network(name, choice)


@pytest.mark.skipif(importlib.util.find_spec("cinema") is not None, reason="CineMA is installed")
def test_cinema_says_how_to_install_it() -> None:
    with pytest.raises(CardioDiTError, match=r"pip install git\+https://github.com/mathpluscode/CineMA"):
        load_network("cinema")


class Tokens(nn.Module):
    """Answers as CineMA's package does: a class token and a token a patch for each view."""

    def feature_forward(self, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        patches = images["sax"].unfold(2, 96, 96).unfold(3, 96, 96).flatten(2, 4).mean(-1)  # (N, 1, patches, 96)
        return {"cls": images["sax"].new_full((1, 1, 96), 9.0), "sax": patches[:, 0]}


def test_cinema_s_features_are_the_mean_of_its_tokens() -> None:
    voxels = np.random.default_rng(0).uniform(-1, 1, (50, 60, 5)).astype(np.float32)
    image = RULES.on_grid(RULES.normalise(voxels), (2.0, 2.0, 10.0))
    assert image.shape == (192, 192, 16) and not image[:, :, 5:].any() and not image[100:].any()
    found = ShortAxisTokens(Tokens())(torch.from_numpy(image)[None, None])
    assert found.shape == (1, 96)
    assert found.mean() == pytest.approx(float(image.mean()), rel=1e-4)


@pytest.fixture(scope="module")
def medicalnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as MedicalNet's file holds them."""
    path = tmp_path_factory.mktemp("weights") / "resnet_10.safetensors"
    state = {f"module.{name}": tensor for name, tensor in ResNet(MEDICALNET_10).state_dict().items()}
    save_file({**state, "module.conv_seg.0.weight": torch.zeros(3)}, path)
    return path


def test_medicalnet_from_its_file(medicalnet_file: Path, heart: np.ndarray) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network = load_network("medicalnet10", Choice(weights=str(medicalnet_file), size=(24, 24, 12), frames=1))
    assert torch.equal(torch.rand(3), expected)  # nobody's random numbers are used up
    told = network.describe()
    assert told["weights"] == {"source": "resnet_10.safetensors", "sha256": sha256_of(medicalnet_file)}
    assert told["input"]["size"] == [24, 24, 12] and "depth first" in told["axes"]
    row = network.features(heart)
    assert row.shape == (512,) and np.isfinite(row).all() and row.std() > 0

    image = network.rules.on_grid(network.rules.normalise(heart)[..., 0], None)  # scaled as a cine, not as a frame
    plain = ResNet(MEDICALNET_10).eval()
    state = load_file(medicalnet_file)
    plain.load_state_dict({n.removeprefix("module."): t for n, t in state.items() if "conv_seg" not in n})
    with torch.no_grad():
        expected = plain(torch.from_numpy(np.moveaxis(image, 2, 0).copy())[None, None])[0]
    np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_medicalnet_sees_a_ct_on_its_own_grid_unless_a_size_is_asked_for(medicalnet_file: Path) -> None:
    """As for PRDiT's 3D FID: a cube stays a cube, and is not fitted into the size for cines of thick slices."""
    still = np.tanh(np.random.default_rng(0).normal(size=(32, 24, 16))).astype(np.float32)
    network = load_network("medicalnet10", Choice(weights=str(medicalnet_file)))
    assert "own grid" in network.describe()["input"]["still"]
    values = network.rules.normalise(still)
    with torch.no_grad():
        expected = network.module(torch.from_numpy(values.copy())[None, None])[0].numpy()
    np.testing.assert_allclose(network.features(still), expected, rtol=1e-4, atol=1e-5)
    fitted = load_network("medicalnet10", Choice(weights=str(medicalnet_file), size=(16, 16, 16)))
    assert "still" not in fitted.describe()["input"]
    assert not np.allclose(fitted.features(still), expected, rtol=1e-2)


def test_medicalnet_s_file_of_another_depth_is_refused(medicalnet_file: Path) -> None:
    with pytest.raises(
        CardioDiTError, match=r"resnet_10\.safetensors are not this network's: the file lacks .* and \d+ more"
    ):
        load_network("medicalnet50", Choice(weights=str(medicalnet_file)))


def test_radimagenet_s_biases_choose_keras_s_network(tmp_path: Path) -> None:
    path = tmp_path / "radimagenet.safetensors"
    network = ResNet(KERAS_50)
    save_file({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    loaded = load_network("radimagenet", Choice(weights=str(path), frames=1))
    module: Any = loaded.module
    assert module.network.plan == KERAS_50 and loaded.dimension == 2048
    assert torch.equal(module.network.layer4[2].conv3.bias, network.layer4[2].conv3.bias)
    assert "224²" in loaded.describe()["planes"]


class Means(nn.Module):
    """`(N, 3, h, w)` → the channels' means."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1:] == (3, 12, 12)
        return image.mean((2, 3))


def test_slices_of_three_orientations_count_alike() -> None:
    volume = torch.rand(1, 1, 12, 12, 5, generator=torch.Generator().manual_seed(0))
    found = Slicewise(Means(), planes=20, size=12)(volume)
    np.testing.assert_allclose(found[0], float(volume.mean()) - np.array([0.406, 0.456, 0.485]), atol=0.02)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_each_orientation_sees_its_own_planes(axis: int) -> None:
    volume = torch.zeros(1, 1, 12, 12, 12)
    volume.select(axis, 6).fill_(1)  # the one plane that its orientation looks at, a twelfth of the other two's
    found = Slicewise(Means(), planes=1, size=12)(volume)
    np.testing.assert_allclose(found[0], (1 + 2 / 12) / 3 - np.array([0.406, 0.456, 0.485]), atol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "sentence"),
    [
        (np.zeros((4, 4), np.float32), "got the shape"),
        (np.full((4, 4, 4), np.nan, np.float32), "not numbers"),
        (np.full((4, 4, 4), 40.0, np.float32), r"go from 40 to 40; they must lie in \[-1, 1\]"),
        (np.zeros((4, 0, 4), np.float32), "got the shape"),
    ],
)
def test_volumes_that_are_none_are_refused(voxels: np.ndarray, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        load_network("random").features(voxels)


def test_a_network_that_changes_its_mind_is_refused() -> None:
    network = replace(load_network("random"), width=7)
    with pytest.raises(CardioDiTError, match=r"gave \(1, 512\) for one volume; \(1, 7\) was expected"):
        network.features(np.zeros((8, 8, 4), np.float32))
