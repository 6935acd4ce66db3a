"""Published networks, each with its own weights, the names in them, and the input it was trained on."""

import re

import torch
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import InputRules
from cardiodit.evaluation.features.resnets import (
    KERAS_50,
    MEDICALNET_10,
    MEDICALNET_50,
    TORCHVISION_50,
    ResNet,
    ResNetPlan,
)
from cardiodit.evaluation.features.slicewise import Slicewise
from cardiodit.evaluation.features.weights import RANDOM_HELPS, WeightsFile, find_weights, load_strictly, read_weights

MEDICALNET_PLANS: dict[int, ResNetPlan] = {10: MEDICALNET_10, 50: MEDICALNET_50}
MEDICALNET_HEADS = ("conv_seg.", "fc.")
# Thick slices are too few for a network that halves its input three times: the third axis is fitted into 32. A CT is
# shown as it is, as for PRDiT's "3D FID".
MEDICALNET_RULES = InputRules("foreground z-score", size=(96, 96, 32), still_as_it_is=True)

RADIMAGENET_HEADS = ("fc.", "classifier.")
RADIMAGENET_RULES = InputRules("unit")
# Some files number their layers as torch.nn.Sequential does.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class DepthFirst(nn.Module):
    """MedicalNet reads volumes as `(D, H, W)`; we hold them as `(H, W, D)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.network(volume.permute(0, 1, 4, 2, 3))


def load_medicalnet(
    depth: int, weights: str | None, revision: str | None, sha256: str | None
) -> tuple[nn.Module, WeightsFile]:
    """A 3D network of 10 or 50 layers; trained on 23 data sets where no other weights are given."""
    published = f"TencentMedicalNet/MedicalNet-Resnet{depth}"
    found = find_weights(weights or published, f"resnet_{depth}_23dataset.pth", revision, sha256)
    network = _blank(MEDICALNET_PLANS[depth])
    load_strictly(network, read_weights(found.path), found.source, without_wrapper, MEDICALNET_HEADS)
    return DepthFirst(network), found


def load_radimagenet(
    weights: str | None, revision: str | None, sha256: str | None
) -> tuple[nn.Module, WeightsFile, int]:
    """The 2D network over slices, and its number of features. Biases tell weights that came from Keras."""
    if weights is None:
        raise CardioDiTError(
            "The network `radimagenet` needs its weights: torch.hub.load('Warvito/radimagenet-models', "
            "'radimagenet_resnet50') fetches RadImageNet-ResNet50_notop.pth into torch's hub folder; make a "
            f"safetensors file of it with `cardiodit convert weights`, and give its path. {RANDOM_HELPS}"
        )
    found = find_weights(weights, None, revision, sha256)
    state = read_weights(found.path)
    is_keras = any(torchvision_name(name) == "conv1.bias" for name in state)
    network = _blank(KERAS_50 if is_keras else TORCHVISION_50)
    load_strictly(network, state, found.source, torchvision_name, RADIMAGENET_HEADS)
    return Slicewise(network), found, network.plan.features


def _blank(plan: ResNetPlan) -> ResNet:
    """What torch fills it with is overwritten, and is not taken from everybody's generator."""
    with torch.random.fork_rng(devices=[]):
        return ResNet(plan)


def without_wrapper(name: str) -> str:
    """Without what training on several GPUs puts before names."""
    return name.removeprefix("module.")


def torchvision_name(name: str) -> str:
    """`backbone.4.0.conv1.weight` → `layer1.0.conv1.weight`."""
    plain = without_wrapper(name).removeprefix("backbone.")
    return re.sub(r"^\d+(?=\.)", lambda number: NUMBERED.get(number[0], number[0]), plain)
