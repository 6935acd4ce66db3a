"""CineMA (Fu et al. 2025), a masked autoencoder of cine cardiac MRI, through its own package."""

import torch
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.inputs import InputRules
from cardiodit.evaluation.features.weights import WeightsFile, find_weights

REPOSITORY, FILE = "mathpluscode/CineMA", "pretrained/cinema.safetensors"
# As its own examples: 1 × 1 × 10 mm, each volume from 0 to 1, missing voxels added behind the end.
RULES = InputRules("least to largest", size=(192, 192, 16), spacing=(1.0, 1.0, 10.0), padding="end")


class ShortAxisTokens(nn.Module):
    """`(N, 1, H, W, D)` → `(N, features)`: the mean of the tokens of a short-axis stack."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        tokens = self.model.feature_forward({"sax": volume})["sax"]  # type: ignore[operator]
        return tokens.mean(1)  # (N, patches, features) → (N, features)


def load_cinema(revision: str | None, sha256: str | None) -> tuple[nn.Module, WeightsFile]:
    """The pretrained model; its package loads the weights strictly."""
    try:
        from cinema import CineMA
    except ImportError as error:
        raise CardioDiTError(
            "The network `cinema` comes with a package of its own, which is not installed or lacks what it needs "
            f"({error}): pip install git+https://github.com/mathpluscode/CineMA omegaconf timm. The network `random` "
            "needs nothing."
        ) from error
    found = find_weights(REPOSITORY, FILE, revision, sha256)
    return ShortAxisTokens(CineMA.from_pretrained(revision=found.revision)), found
