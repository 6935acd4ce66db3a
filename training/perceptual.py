"""The network of the perceptual loss, checked and loaded before training starts, so that nothing fails later.

This fixes three things in MONAI's loss: the weights are downloaded while the loss is constructed, the last layers are
trainable and have dropout, and the slices are drawn from the global generator.
"""

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cardiodit._util.gpu import upload, without_autocast
from cardiodit._util.terminal import say
from cardiodit.errors import CardioDiTError, reason_of

REACH_SECONDS = 15
GITHUB = "https://github.com/Project-MONAI/perceptual-models"
GITHUB_FOLDER = "Project-MONAI_perceptual-models_main"  # as torch.hub names it


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision under the last layers of LPIPS (Zhang et al., arXiv:1801.03924).

    Args:
        title: torchvision's name.
        weights: torchvision's class with the file's URL.
        smallest: shortest side of an image that the network accepts.
    """

    title: str
    weights: str
    smallest: int


BACKBONES = {
    "squeeze": Backbone("squeezenet1_1", "SqueezeNet1_1_Weights", 17),
    "alex": Backbone("alexnet", "AlexNet_Weights", 31),
    "vgg": Backbone("vgg16", "VGG16_Weights", 16),
}
# Networks trained on medical images, which torch.hub fetches from GitHub with their code.
FROM_GITHUB = ("radimagenet_resnet50", "medicalnet_resnet10_23datasets", "medicalnet_resnet50_23datasets")
NETWORKS = ("none", *BACKBONES, *FROM_GITHUB)


def check_perceptual_network(network: str, weights: str | None = None) -> None:
    """Check that the network is available; print a line if something will be downloaded."""
    if network in FROM_GITHUB:
        _check_github(network)
        return
    _import_lpips()
    if weights is not None:
        _lpips(network, weights)
        return
    url, megabytes = _address(BACKBONES[network])
    if _cached(url).is_file():
        return
    name = BACKBONES[network].title
    if not _is_reachable(url):
        raise CardioDiTError(
            f"The perceptual network {name} is not on this machine, and {url} cannot be reached. Download that file "
            f"elsewhere and give it as --losses.perceptual_weights FILE, or put it at {_cached(url)}. "
            "--losses.perceptual_network none trains without it."
        )
    say(
        f"The perceptual network {name} ({megabytes:.1f} MB) is downloaded once from {url} to {_cached(url).parent}; "
        f"on a machine without network access, give the file as --losses.perceptual_weights FILE."
    )


class PerceptualDistance(nn.Module):
    """Perceptual distance of two images `(B, C, *size)` in [-1, 1], by a frozen network in float32.

    Args:
        network: one of `NETWORKS`. LPIPS and RadImageNet compare planes along each of the three axes (2.5D), MedicalNet
            the whole image.
        slices: share of the planes of each axis.
        weights: torchvision's weights file of the network under LPIPS; by default it is downloaded once.
    """

    def __init__(self, network: str, slices: float = 0.5, weights: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.slices = slices
        self.loss = _monai_loss(network, slices, weights)
        self.requires_grad_(False)  # MONAI leaves the last layers of LPIPS trainable
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: LPIPS has dropout."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the distance, a scalar; `generator` (on the CPU, default: the global one) draws the planes."""
        self._check_size(image)
        first, second = reconstruction.float(), image.float()
        if self.network == "radimagenet_resnet50":
            first, second = (first + 1) / 2, (second + 1) / 2  # it was trained on [0, 1]
        with without_autocast(image.device):
            if generator is None:
                return self.loss(first, second)
            with torch.random.fork_rng(devices=[]):  # MONAI draws its planes from the global generator
                torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                return self.loss(first, second)

    def _check_size(self, image: Tensor) -> None:
        size = tuple(image.shape[2:])
        smallest = BACKBONES[self.network].smallest if self.network in BACKBONES else 1
        if min(size) < smallest:
            raise CardioDiTError(
                f"Images of {' × '.join(map(str, size))} are too small for the perceptual network {self.network}, "
                f"which compares planes along every axis and needs at least {smallest} voxels and frames. Use larger "
                "images, or --losses.perceptual_network none."
            )
        if self.loss.is_fake_3d and int(len(image) * min(size) * self.slices) < 1:
            raise CardioDiTError(
                f"--losses.perceptual_slices {self.slices} of {len(image) * min(size)} planes leaves none; raise it."
            )


def _monai_loss(network: str, slices: float, weights: str | None) -> nn.Module:
    from monai.losses import PerceptualLoss

    class LossOverPlanes(PerceptualLoss):
        """MONAI's loss over drawn planes along each axis, whose numbers are sent to the GPU without waiting for it."""

        def _calculate_axis_loss(self, input: Tensor, target: Tensor, spatial_axis: int) -> Tensor:
            planes = [x.float().movedim(spatial_axis, 1).flatten(0, 1).contiguous() for x in (input, target)]
            drawn = torch.randperm(len(planes[0]))[: int(len(planes[0]) * self.fake_3d_ratio)]
            indices = upload(drawn, input.device)
            return torch.mean(self.perceptual_function(*(x.index_select(0, indices) for x in planes)))

    class LossOverLPIPS(LossOverPlanes):
        """The loss with a network that is already loaded, where MONAI would download one."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.spatial_dims, self.is_fake_3d, self.fake_3d_ratio, self.channel_wise = 3, True, slices, False
            self.perceptual_function = _lpips(network, weights)

    if network not in FROM_GITHUB:
        return LossOverLPIPS()
    is_2d = network.startswith("radimagenet")
    return LossOverPlanes(spatial_dims=3, network_type=network, is_fake_3d=is_2d, fake_3d_ratio=slices)


def _lpips(network: str, weights: str | None) -> nn.Module:
    """Return LPIPS with its own last layers, from its package, over the given or downloaded network."""
    import warnings

    lpips = _import_lpips()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module="torchvision"
        )  # lpips uses a deprecated argument
        distance = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)  # random weights, replaced below
    name = BACKBONES[network].title
    _load_backbone(distance.net, name, _read(weights) if weights is not None else _download(network), weights)
    return distance


def _load_backbone(backbone: nn.Module, name: str, features: dict[str, Tensor], file: str | None) -> None:
    """Load torchvision's weights: LPIPS splits `features.{i}` into `slice{k}.{i}` and does not use the classifier."""
    own = {key: f"features.{key.split('.', 1)[1]}" for key in backbone.state_dict()}
    given = {key for key in features if not key.startswith("classifier.")}
    if given != set(own.values()) or any(
        features[theirs].shape != backbone.state_dict()[key].shape for key, theirs in own.items()
    ):
        raise CardioDiTError(
            f"{file or 'The downloaded file'} does not hold the weights of torchvision's {name}, which "
            "--losses.perceptual_network needs."
        )
    backbone.load_state_dict({key: features[theirs] for key, theirs in own.items()}, strict=True)


def _read(file: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    from cardiodit.convert.checkpoint import read_checkpoint

    if not Path(file).is_file():
        raise CardioDiTError(f"--losses.perceptual_weights {file} does not exist.")
    if Path(file).suffix != ".safetensors":
        return read_checkpoint(file).entries
    try:
        return load_file(file)
    except Exception as error:
        raise CardioDiTError(f"{file} is damaged or not a safetensors file: {reason_of(error)}.") from error


def _download(network: str) -> dict[str, Any]:
    url, _ = _address(BACKBONES[network])
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise CardioDiTError(
            f"The perceptual network could not be downloaded from {url} ({error}). Give the file as "
            "--losses.perceptual_weights FILE, or train with --losses.perceptual_network none."
        ) from error


def _import_lpips() -> Any:
    try:
        import lpips
    except ImportError as error:
        raise CardioDiTError(
            f"The perceptual loss needs the package {error.name}. Install it with\n"
            '    pip install "cardiodit[train]"\nor train with --losses.perceptual_network none.'
        ) from error
    except RuntimeError as error:
        raise CardioDiTError(
            f"The perceptual loss needs torchvision, which does not fit the installed torch {torch.__version__} "
            f"({str(error).splitlines()[0]}). Install both from the same source, or train with "
            "--losses.perceptual_network none."
        ) from error
    return lpips


def _address(backbone: Backbone) -> tuple[str, float]:
    """Return the URL and the size in MB of torchvision's file."""
    import torchvision

    weights = getattr(torchvision.models, backbone.weights).IMAGENET1K_V1  # the ones LPIPS was trained over
    return weights.url, weights.meta["_file_size"]


def _cached(url: str) -> Path:
    """Return the path where torch.hub looks before it downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _check_github(network: str) -> None:
    folder = Path(torch.hub.get_dir()) / GITHUB_FOLDER
    if folder.is_dir():
        return
    if not _is_reachable(GITHUB):
        raise CardioDiTError(
            f"The perceptual network {network} is not on this machine, and {GITHUB} cannot be reached. Copy the "
            f"folder {folder} and its weights from a machine that has them, or train with "
            "--losses.perceptual_network none."
        )
    say(f"The perceptual network {network} is fetched once by torch.hub from {GITHUB}: its code runs here.")


def _is_reachable(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False
