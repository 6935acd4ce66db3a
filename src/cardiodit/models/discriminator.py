"""The PatchGAN discriminator (Isola et al., arXiv:1611.07004; MONAI's layers) as a diffusers model."""

from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config

from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import StrictModelMixin

MOST_LAYERS = 10  # each halves the image


class PatchDiscriminator(StrictModelMixin):
    """Classify every patch of an image `(B, C, *size)` as real or generated.

    The weights are named as in `monai.networks.nets.PatchDiscriminator`.

    Args:
        spatial_dims: number of axes of the image.
        num_channels: number of channels of the first layer; it doubles with every further layer.
        in_channels: number of channels of the image.
        out_channels: number of channels of the output.
        num_layers_d: number of layers between the first and the last; all of them except the last halve the image.
        kernel_size: kernel size of the convolutions.
        norm: normalisation layer: its name in MONAI, or [name, {settings}].
        bias: whether the convolutions have a bias.
        padding: padding of the convolutions.
        activation: activation function: its name in MONAI, or [name, {settings}].
        dropout: dropout probability in the layers.
        last_conv_kernel_size: kernel size of the last convolution; default: `kernel_size`.
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
        norm: str | tuple[Any, ...] = "BATCH",
        bias: bool = False,
        padding: int | tuple[int, ...] = 1,
        activation: str | tuple[Any, ...] = ("LEAKYRELU", {"negative_slope": 0.2}),
        dropout: float = 0.0,
        last_conv_kernel_size: int | None = None,
    ) -> None:
        if num_layers_d > MOST_LAYERS:
            raise CardioDiTError(
                f"num_layers_d={num_layers_d} is too large: at most {MOST_LAYERS} layers halve an image."
            )
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
        """Return the output of every layer; the last one is the logits `(B, out_channels, *patches)`."""
        outputs = []
        for layer in self.children():
            x = layer(x)
            outputs.append(x)
        return outputs
