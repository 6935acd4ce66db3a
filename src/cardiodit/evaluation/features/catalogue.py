"""Feature networks by name, each with its weights and the input it was trained on; or any torch module."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cardiodit.errors import CardioDiTError
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
from cardiodit.evaluation.features.inputs import InputRules, Size
from cardiodit.evaluation.features.network import TorchNetwork, shape_or_type
from cardiodit.evaluation.features.weights import (
    RANDOM_HELPS,
    find_weights,
    hash_of_weights,
    load_strictly,
    read_weights,
)
from cardiodit.evaluation.user_code import hash_of_sources, load_own
from cardiodit.imaging.geometry import Triple

NAMES = ("random", "medicalnet10", "medicalnet50", "radimagenet", "cinema")


@dataclass(frozen=True)
class Choice:
    """Options of a network; None keeps the network's own setting.

    Args:
        kind: kind of rows, "spatial" or, for cines, "spatiotemporal".
        frames: evenly spaced frames of a cine, for spatial rows; None for all.
        slices: evenly spaced slices of a cine, for spatiotemporal rows; None for all.
        weights: a path, or `org/name:file` on the Hub.
        revision: revision of the Hub repository.
        sha256: expected SHA-256 of the weights file.
        size: input size in voxels (`InputRules`).
        spacing: input voxel spacing in mm (`InputRules`).
        device: where the network runs.
    """

    kind: str = "spatial"
    frames: int | None = 4
    slices: int | None = None
    weights: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size: Size | None = None
    spacing: Triple | None = None
    device: str = "cpu"

    def network(
        self, name: str, module: nn.Module, width: int, weights: dict[str, Any], rules: InputRules, **settings: Any
    ) -> TorchNetwork:
        """Build the network with these options; `size` and `spacing` override those of `rules`."""
        if self.size or self.spacing:
            size, spacing = self.size or rules.size, self.spacing or rules.spacing
            rules = replace(rules, size=size, spacing=spacing, still_as_it_is=False)
        return TorchNetwork(
            name, module, width, weights, rules, self.kind, self.frames, self.slices, settings, self.device
        )

    def refuse_weights(self, name: str, reason: str) -> None:
        if self.weights or self.revision or self.sha256:
            raise CardioDiTError(f"The network {name} {reason}; leave out weights, revision and sha256.")


def load_network(name: str, choice: Choice | None = None) -> TorchNetwork:
    """Load one of `NAMES`, or the user's own: `module:callable` or `file.py:callable`, which requires a size."""
    choice = choice or Choice()
    if name == "random":
        return _random(choice)
    if name in MEDICALNET:
        return _medicalnet(name, choice)
    if name == "radimagenet":
        return _radimagenet(choice)
    if name == "cinema":
        return _cinema(choice)
    if ":" in name:
        return _own_network(name, choice)
    raise CardioDiTError(
        f"There is no feature network {name!r}; choose from {', '.join(NAMES)}, or give module:callable."
    )


def _random(choice: Choice) -> TorchNetwork:
    choice.refuse_weights("random", "has no weights to load")
    module = RandomNetwork()
    weights = {"source": "drawn with seed 0", "sha256": hash_of_weights(module)}
    note = "random features: no trained network was given"
    return choice.network("random", module, module.features, weights, InputRules(), note=note)


# MedicalNet (Chen et al. 2019): 3D networks of 10 or 50 layers, trained on 23 data sets unless other weights are given

MEDICALNET: dict[str, ResNetPlan] = {"medicalnet10": MEDICALNET_10, "medicalnet50": MEDICALNET_50}
MEDICALNET_HEADS = ("conv_seg.", "fc.")
# A stack of thick slices is too small for a network that halves its input three times: the third axis is resampled to
# 32. A CT keeps its grid, as in PRDiT's "3D FID".
MEDICALNET_RULES = InputRules("foreground z-score", size=(96, 96, 32), still_as_it_is=True)


class DepthFirst(nn.Module):
    """Permute `(H, W, D)` to MedicalNet's order `(D, H, W)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.network(volume.permute(0, 1, 4, 2, 3))


def _medicalnet(name: str, choice: Choice) -> TorchNetwork:
    depth = name.removeprefix("medicalnet")
    repository = f"TencentMedicalNet/MedicalNet-Resnet{depth}"
    file = find_weights(choice.weights or repository, f"resnet_{depth}_23dataset.pth", choice.revision, choice.sha256)
    network = _uninitialised(MEDICALNET[name])
    load_strictly(network, read_weights(file.path), file.source, without_wrapper, MEDICALNET_HEADS)
    axes = "depth first, as it was trained"
    return choice.network(
        name, DepthFirst(network), network.plan.features, file.describe(), MEDICALNET_RULES, axes=axes
    )


# RadImageNet (Mei et al. 2022): a 2D network over slices

RADIMAGENET_HEADS = ("fc.", "classifier.")
# Some files number their layers as torch.nn.Sequential does.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _radimagenet(choice: Choice) -> TorchNetwork:
    if choice.weights is None:
        raise CardioDiTError(
            "The network `radimagenet` needs its weights: torch.hub.load('Warvito/radimagenet-models', "
            "'radimagenet_resnet50') downloads RadImageNet-ResNet50_notop.pth into torch's hub folder; convert it to "
            f"safetensors with `cardiodit convert weights`, and give its path. {RANDOM_HELPS}"
        )
    file = find_weights(choice.weights, None, choice.revision, choice.sha256)
    state = read_weights(file.path)
    is_keras = any(torchvision_name(name) == "conv1.bias" for name in state)  # torchvision's convolutions have none
    network = _uninitialised(KERAS_50 if is_keras else TORCHVISION_50)
    load_strictly(network, state, file.source, torchvision_name, RADIMAGENET_HEADS)
    module = Slicewise(network)
    planes = f"at most {module.planes} of each of three orientations, resized to {module.size}²"
    return choice.network(
        "radimagenet", module, network.plan.features, file.describe(), InputRules("unit"), planes=planes
    )


def without_wrapper(name: str) -> str:
    """Remove the prefix that training on several GPUs adds to names."""
    return name.removeprefix("module.")


def torchvision_name(name: str) -> str:
    """`backbone.4.0.conv1.weight` → `layer1.0.conv1.weight`."""
    plain = without_wrapper(name).removeprefix("backbone.")
    return re.sub(r"^\d+(?=\.)", lambda number: NUMBERED.get(number[0], number[0]), plain)


def _uninitialised(plan: ResNetPlan) -> ResNet:
    """Build a network whose weights will be overwritten, without drawing from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return ResNet(plan)


# CineMA (Fu et al. 2025): a masked autoencoder of cine cardiac MRI, through its own package

CINEMA_REPOSITORY, CINEMA_FILE = "mathpluscode/CineMA", "pretrained/cinema.safetensors"
CINEMA_SIZE = (192, 192, 16)
# As in its examples: 1 × 1 × 10 mm, each volume scaled to [0, 1], missing voxels added at the end.
CINEMA_RULES = InputRules("min-max", size=CINEMA_SIZE, spacing=(1.0, 1.0, 10.0), padding="end")


class ShortAxisTokens(nn.Module):
    """`(N, 1, H, W, D)` → `(N, features)`: the mean token of a short-axis stack."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        tokens = self.model.feature_forward({"sax": volume})["sax"]  # type: ignore[operator]
        return tokens.mean(1)  # (N, patches, features) → (N, features)


def _cinema(choice: Choice) -> TorchNetwork:
    if choice.kind != "spatial":
        raise CardioDiTError("CineMA takes a depth axis, not a time axis: choose spatial rows, or another network.")
    if choice.weights or choice.size or choice.spacing:
        raise CardioDiTError("CineMA has its own weights, size and spacing; leave them out.")
    try:
        from cinema import CineMA
    except ImportError as error:
        raise CardioDiTError(
            "The network `cinema` needs its own package, which is not installed or lacks a dependency "
            f"({error}): pip install git+https://github.com/mathpluscode/CineMA omegaconf timm. {RANDOM_HELPS}"
        ) from error
    file = find_weights(CINEMA_REPOSITORY, CINEMA_FILE, choice.revision, choice.sha256)
    module = ShortAxisTokens(CineMA.from_pretrained(revision=file.revision))  # it loads weights strictly
    width = _probe_width(module, CINEMA_SIZE, "cinema")
    features = "the mean of the short-axis tokens"
    return choice.network("cinema", module, width, file.describe(), CINEMA_RULES, features=features)


# The user's own modules


class Pooled(nn.Module):
    """Average a module's feature maps, if it returns maps, over space: `(N, f, …)` → `(N, f)`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        output = self.module(volume)
        return output.flatten(2).mean(2) if isinstance(output, torch.Tensor) and output.ndim > 2 else output


def _own_network(name: str, choice: Choice) -> TorchNetwork:
    source, own = load_own(name, "a feature network")
    try:
        module = own if isinstance(own, nn.Module) else own()
    except Exception as error:
        raise CardioDiTError(f"{name} cannot be called ({type(error).__name__}: {error}).") from error
    if not isinstance(module, nn.Module):
        raise CardioDiTError(f"{name} returned a {type(module).__name__}; expected a torch.nn.Module.")
    # The name without the folders above a file: reports are shared.
    return network_of_module(module, Path(name).name, choice, source)


def network_of_module(module: nn.Module, name: str, choice: Choice, source: object = None) -> TorchNetwork:
    """Use any module that takes `(1, 1, H, W, D)` in [-1, 1], of the choice's size, with its weights loaded.

    Args:
        source: Python module or function that built it; its source file is hashed into the identity.
    """
    choice.refuse_weights(name, "has its weights loaded")
    if choice.size is None:
        raise CardioDiTError(f"The network {name} needs the size of its input volumes: three numbers.")
    pooled = Pooled(module)
    width = _probe_width(pooled, choice.size, name)
    weights = {"source": "a module of the user's own", "sha256": hash_of_weights(module, str(module))}
    # The weights do not determine `forward`: the files of the module's classes, except torch's, are hashed too.
    classes = {type(part) for part in module.modules()}
    own_classes = [cls for cls in classes if cls.__module__.partition(".")[0] != "torch"]
    code = hash_of_sources(*own_classes, source)
    return choice.network(name, pooled, width, weights, InputRules(), code_sha256=code)


def _probe_width(module: nn.Module, size: Size, name: str) -> int:
    """Return the number of features of one volume `(1, 1, H, W, D)`."""
    with torch.inference_mode():
        try:
            output = module.eval()(torch.zeros(1, 1, *size))
        except Exception as error:
            raise CardioDiTError(
                f"The network {name} does not take a volume of the shape (1, 1, {', '.join(map(str, size))}): {error}"
            ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1:
        raise CardioDiTError(
            f"The network {name} returned {shape_or_type(output)} for one volume; expected a tensor (1, features, …)."
        )
    return output.shape[1]
