"""The PatchGAN discriminator (Isola et al., arXiv:1611.07004; MONAI's layers) as a diffusers model."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config

from cardiodit.models.loading import StrictModelMixin


class PatchDiscriminator(StrictModelMixin):
    """Says for every patch of an image `(B, C, *size)` whether it looks real.

    The weights are named as in `monai.networks.nets.PatchDiscriminator`.

    Args:
        spatial_dims: axes of the image.
        num_channels: width of the first layer; every further layer has twice the width.
        in_channels, out_channels: of the image, and of the verdict.
        num_layers_d: layers between the first and the last; all but the last of them halve the size.
        kernel_size, padding, bias, norm, activation, dropout: of the convolutions.
        last_conv_kernel_size: of the last one, if it differs.
    """

    @register_to_config
    def __init__(
        self,
        spatial_dims: int = 3,
        num_channels: int = 64,
        in_channels: int = 1,
        out_channels: int = 1,
        num_layers_d: int = 3,
        kernel_size: int = 3,
        norm: str | Sequence[Any] = "BATCH",
        bias: bool = False,
        padding: int | Sequence[int] = 1,
        activation: str | Sequence[Any] = ("LEAKYRELU", {"negative_slope": 0.2}),
        dropout: float = 0.0,
        last_conv_kernel_size: int | None = None,
    ) -> None:
        from monai.networks.nets import PatchDiscriminator as Layers  # takes a second to import

        super().__init__()
        layers = Layers(
            spatial_dims=spatial_dims,
            channels=num_channels,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers_d=num_layers_d,
            kernel_size=kernel_size,
            norm=norm if isinstance(norm, str) else tuple(norm),
            bias=bias,
            padding=padding,
            activation=activation if isinstance(activation, str) else tuple(activation),
            dropout=dropout,
            last_conv_kernel_size=last_conv_kernel_size,
        )
        for name, layer in layers.named_children():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The output of every layer; the last one holds the logits `(B, out_channels, *patches)`."""
        outputs = []
        for layer in self.children():
            x = layer(x)
            outputs.append(x)
        return outputs
