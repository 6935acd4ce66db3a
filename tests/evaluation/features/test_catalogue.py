"""Networks by name: their descriptions, what affects their identity, and which options they refuse."""

import importlib.util
import json
import sys
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
from cardiodit.evaluation.features.architectures import KERAS_50, MEDICALNET_10, ResNet
from cardiodit.evaluation.features.catalogue import CINEMA_RULES, ShortAxisTokens


def test_the_random_network_is_described_as_random(heart: np.ndarray) -> None:
    network = load_network("random")
    described = network.describe()
    assert described["note"] == "random features: no trained network was given"
    assert described["input"]["grid"] == "the volumes' own, nothing is resampled" and described["frames"] == 4
    row = network.features(heart)
    assert row.shape == (described["dimension"],) == (512,) and row.dtype == np.float64
    assert json.loads(json.dumps(described)) == described
    moving = load_network("random", Choice(kind="spatiotemporal"))
    assert moving.features(heart).shape == (moving.describe()["dimension"],) == (1024,)
    assert moving.describe()["slices"] == "all"


def test_a_row_does_not_depend_on_earlier_ones(heart: np.ndarray) -> None:
    network = load_network("random")
    first = network.features(heart)
    network.features(-heart)
    assert np.array_equal(network.features(np.asfortranarray(heart)), first)


def test_exactly_the_settings_that_affect_numbers_change_the_identity() -> None:
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


def test_the_users_own_module_is_pooled_and_hashed(heart: np.ndarray) -> None:
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


def test_own_modules_are_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from torch import nn\nmake = lambda: nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Flatten())\nready = make()\n"
    code += "none = dict\nbroken = lambda: 1 / 0\n"
    (tmp_path / "own_networks_of_a_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = load_network("own_networks_of_a_test:make", Choice(size=(4, 4, 4)))
    assert network.features(np.zeros((9, 9, 9), np.float32)).shape == (8,)
    file = tmp_path / "own_networks_of_a_test.py"
    for reference in ("own_networks_of_a_test:ready", f"{file}:make"):  # a module instance; a file
        same = load_network(reference, Choice(size=(4, 4, 4)))
        assert same.describe()["code_sha256"] == network.describe()["code_sha256"]
        assert str(tmp_path) not in json.dumps(same.describe())
    refused = {
        "own_networks_of_a_test:missing": "has no missing",
        "own_networks_of_a_test:broken": r"cannot be called \(ZeroDivisionError",
        "nowhere_at_all:make": "PYTHONPATH",
        "own_networks_of_a_test:none": "returned a dict",
    }
    for reference, sentence in refused.items():
        with pytest.raises(CardioDiTError, match=sentence):
            load_network(reference, Choice(size=(4, 4, 4)))
    with pytest.raises(CardioDiTError, match="needs the size"):
        load_network("own_networks_of_a_test:make")


def test_a_module_s_code_is_part_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the current folder, whose `forward` changes without its weights or its name."""
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


def test_a_module_with_the_wrong_input_or_output_is_refused() -> None:
    with pytest.raises(CardioDiTError, match=r"does not take a volume of the shape \(1, 1, 2, 2, 2\)"):
        network_of_module(own_module(), "mine", Choice(size=(2, 2, 2)))
    with pytest.raises(CardioDiTError, match=r"returned \(8,\) for one volume"):
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
def test_impossible_choices_are_refused(name: str, choice: Choice, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        load_network(name, choice)


@pytest.mark.skipif(importlib.util.find_spec("cinema") is not None, reason="CineMA is installed")
def test_without_cinema_the_error_says_how_to_install_it() -> None:
    with pytest.raises(CardioDiTError, match=r"pip install git\+https://github.com/mathpluscode/CineMA"):
        load_network("cinema")


class Tokens(nn.Module):
    """A stand-in for CineMA's model: a class token and one token per patch for each view."""

    def feature_forward(self, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        patches = images["sax"].unfold(2, 96, 96).unfold(3, 96, 96).flatten(2, 4).mean(-1)  # (N, 1, patches, 96)
        return {"cls": images["sax"].new_full((1, 1, 96), 9.0), "sax": patches[:, 0]}


def test_cinema_s_features_are_the_mean_of_its_tokens() -> None:
    voxels = np.random.default_rng(0).uniform(-1, 1, (50, 60, 5)).astype(np.float32)
    image = CINEMA_RULES.on_grid(CINEMA_RULES.normalise(voxels), (2.0, 2.0, 10.0))
    assert image.shape == (192, 192, 16) and not image[:, :, 5:].any() and not image[100:].any()
    found = ShortAxisTokens(Tokens())(torch.from_numpy(image)[None, None])
    assert found.shape == (1, 96)
    assert found.mean() == pytest.approx(float(image.mean()), rel=1e-4)


@pytest.fixture(scope="module")
def medicalnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of MedicalNet's file."""
    path = tmp_path_factory.mktemp("weights") / "resnet_10.safetensors"
    state = {f"module.{name}": tensor for name, tensor in ResNet(MEDICALNET_10).state_dict().items()}
    save_file({**state, "module.conv_seg.0.weight": torch.zeros(3)}, path)
    return path


def test_medicalnet_from_its_file(medicalnet_file: Path, heart: np.ndarray) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network = load_network("medicalnet10", Choice(weights=str(medicalnet_file), size=(24, 24, 12), frames=1))
    assert torch.equal(torch.rand(3), expected)  # the global generator is not used
    described = network.describe()
    assert described["weights"] == {"source": "resnet_10.safetensors", "sha256": sha256_of(medicalnet_file)}
    assert described["input"]["size"] == [24, 24, 12] and "depth first" in described["axes"]
    row = network.features(heart)
    assert row.shape == (512,) and np.isfinite(row).all() and row.std() > 0

    image = network.rules.on_grid(network.rules.normalise(heart)[..., 0], None)  # normalised as a cine, not as a frame
    plain = ResNet(MEDICALNET_10).eval()
    state = load_file(medicalnet_file)
    plain.load_state_dict({n.removeprefix("module."): t for n, t in state.items() if "conv_seg" not in n})
    with torch.no_grad():
        expected = plain(torch.from_numpy(np.moveaxis(image, 2, 0).copy())[None, None])[0]
    np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_medicalnet_keeps_the_grid_of_a_ct_unless_a_size_is_given(medicalnet_file: Path) -> None:
    """Like PRDiT's 3D FID, a cube is not resampled to the size for cines with thick slices."""
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


def test_weights_of_another_depth_are_refused(medicalnet_file: Path) -> None:
    with pytest.raises(
        CardioDiTError, match=r"resnet_10\.safetensors do not belong to this network: the file lacks .* and \d+ more"
    ):
        load_network("medicalnet50", Choice(weights=str(medicalnet_file)))


def test_biases_in_radimagenet_weights_select_the_keras_network(tmp_path: Path) -> None:
    path = tmp_path / "radimagenet.safetensors"
    network = ResNet(KERAS_50)
    save_file({f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    loaded = load_network("radimagenet", Choice(weights=str(path), frames=1))
    module: Any = loaded.module
    assert module.network.plan == KERAS_50 and loaded.dimension == 2048
    assert torch.equal(module.network.layer4[2].conv3.bias, network.layer4[2].conv3.bias)
    assert "224²" in loaded.describe()["planes"]
