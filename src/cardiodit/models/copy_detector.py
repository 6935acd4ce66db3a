"""The network that recognizes copies: volumes of one patient get similar embeddings, those of others do not.

Architecture of Dar et al. (arXiv:2402.01054) for 3D volumes; cines are embedded slice by slice, with time as an axis.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import StrictModelMixin

LEAST = 4  # voxels along each axis after the last block
CHANNELS = 8  # of the map that is flattened
DROPOUT = 0.5
DIGITS = 16  # of a hash, by which files are recognized

Stride = tuple[int, int, int]


class PaddedConv(nn.Module):
    """A convolution that repeats edge voxels, so that only its stride changes the size; time may continue as a cycle.

    Args:
        is_cycle: whether the first axis is the time of a heartbeat, whose last frame is followed by the first.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Stride, is_cycle: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride)
        pads = [(kernel - s - (kernel - s) // 2, (kernel - s) // 2) for s in stride]  # the larger part in front
        self.pads, self.is_cycle = pads, is_cycle

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        (front, back), *plane = self.pads
        mode = "circular" if self.is_cycle else "replicate"
        volume = F.pad(volume, (0, 0, 0, 0, front, back), mode=mode)
        return self.conv(F.pad(volume, (*plane[1], *plane[0], 0, 0), mode="replicate"))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, is_cycle: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, width, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = (PaddedConv(width, width, 3, (1, 1, 1), is_cycle) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        change = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(change)))


class DownBlock(nn.Module):
    def __init__(self, inputs: int, stride: Stride, is_cycle: bool) -> None:
        super().__init__()
        self.down = PaddedConv(inputs, 2 * inputs, 4, stride, is_cycle)
        self.res = ResidualBlock(2 * inputs, is_cycle)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.res(self.down(hidden))


class Encoder(nn.Module):
    def __init__(self, size: tuple[int, ...], width: int, is_cycle: bool) -> None:
        super().__init__()
        halvings = [(n // LEAST).bit_length() - 1 for n in size]
        strides: list[Any] = [tuple(2 if place < n else 1 for n in halvings) for place in range(max(halvings))]
        self.conv_first = PaddedConv(1, width, 3, (1, 1, 1), is_cycle)
        self.conv_blocks = nn.ModuleList(
            [DownBlock(width * 2**place, stride, is_cycle) for place, stride in enumerate(strides)]
        )
        self.width = width * 2 ** len(strides)
        self.final_block = nn.Sequential(nn.GroupNorm(32, self.width, eps=1e-6), nn.SiLU())

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_first(volume)
        for block in self.conv_blocks:
            hidden = block(hidden)
        return self.final_block(hidden)


class CopyDetector(StrictModelMixin):
    """Embed volumes so that the correlation of two embeddings tells copies from other patients.

    Args:
        size: voxels of the input, `(D, H, W)` of volumes or `(T, H, W)` of the slices of cines; 4 times powers of two.
        is_cine: whether the input is a slice over one heartbeat, which is a cycle, instead of a volume.
        width: channels before the first block; each block doubles them.
        embedding_dim: length of an embedding.
        preprocessing: preprocessing of the training volumes, as returned by `Preprocessing.to_dict()`.
        training_data: identity of the volumes that it was trained on.
        seen_files: beginnings of the hashes (SHA-256) of the files that it was trained and validated on, which must not
            serve as held-out patients.
    """

    @register_to_config
    def __init__(
        self,
        size: tuple[int, int, int] = (16, 64, 64),
        is_cine: bool = True,
        width: int = 16,
        embedding_dim: int = 32,
        preprocessing: dict[str, Any] | None = None,
        training_data: str | None = None,
        seen_files: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if any(n < LEAST or n % LEAST or (n // LEAST) & (n // LEAST - 1) for n in size) or max(size) <= LEAST:
            raise CardioDiTError(f"size={tuple(size)} must be 4 times powers of two, such as (16, 64, 64).")
        if width % 16:
            raise CardioDiTError(f"width={width} must be a multiple of 16, because of the normalization in 32 groups.")
        self.encoder = Encoder(tuple(size), width, is_cine)
        self.conv3D = PaddedConv(self.encoder.width, CHANNELS, 1, (1, 1, 1))
        features = CHANNELS * LEAST**3
        self.dense = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(128, embedding_dim)
        )

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Scaled volumes `(B, 1, *size)` → embeddings `(B, embedding_dim)`."""
        return self.dense(self.conv3D(self.encoder(volumes)))

    def views_of(self, voxels: torch.Tensor) -> torch.Tensor:
        """Return the inputs `(B, 1, *size)` of a volume `(H, W, D)`, or one for each slice of a cine `(H, W, D, T)`."""
        if (voxels.ndim == 4) != self.config.is_cine:
            kind, expected = ("a cine", "volumes") if voxels.ndim == 4 else ("a volume", "cines")
            raise CardioDiTError(f"This copy detector was trained on {expected} and was given {kind}.")
        views = voxels.permute(2, 3, 0, 1) if self.config.is_cine else voxels.permute(2, 0, 1)[None]
        return scaled(F.interpolate(views[:, None].float(), tuple(self.config.size), mode="trilinear"))

    @torch.no_grad()
    def embed(self, voxels: np.ndarray) -> np.ndarray:
        """Return embeddings `(1, embedding_dim)` of a volume, or one for each slice of a cine."""
        views = self.views_of(torch.as_tensor(np.ascontiguousarray(voxels))).to(self.device, self.dtype)
        return self(views).float().cpu().numpy()


def scaled(volumes: torch.Tensor) -> torch.Tensor:
    """Scale each volume of a batch by its own minimum and maximum to [-1, 1], as published."""
    low, high = (each(dim=1).values.view(-1, *[1] * (volumes.ndim - 1)) for each in
                 (volumes.flatten(1).min, volumes.flatten(1).max))  # fmt: skip
    return 2 * (volumes - low) / (high - low + 1e-4) - 1


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """Return the contrastive loss of two views `(N, f)` of the same patients (SimCLR, arXiv:2002.05709)."""
    rows = F.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = rows @ rows.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), -torch.inf)
    partners = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(similarity, partners)
