"""The published VQ-VAE (van den Oord et al., arXiv:1711.00937; MONAI's blocks) as a diffusers autoencoder."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from cardiodit.errors import CardioDiTError
from cardiodit.models.codebook import EMACodebook, QuantizerOutput
from cardiodit.models.loading import StrictModelMixin
from cardiodit.models.tiling import AxisTiles, run_tiled

# One number for all axes or one for each: stride, kernel, dilation, padding (and output padding going up).
LayerParameters = Sequence[int | Sequence[int]]

TILE_LATENTS, STRIDE_LATENTS = 40, 24  # two tiles an axis at the published 64; an overlap of 16 latents


def slices_of(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W, T) → (B·D, C, H, W, T)."""
    return volume.movedim(2, 1).flatten(0, 1)


def stack_slices(slices: torch.Tensor, depth: int) -> torch.Tensor:
    """(B·D, C, H, W, T) → (B, C, D, H, W, T)."""
    return slices.unflatten(0, (-1, depth)).movedim(1, 2)


def per_level(parameters: LayerParameters | Sequence[LayerParameters], levels: int, numbers: int) -> list:
    """One entry for each level, as MONAI wants it; a flat list of numbers stands for every level."""
    is_flat = all(isinstance(value, int) for value in parameters)
    entries = [list(parameters)] * levels if is_flat else [list(entry) for entry in parameters]  # type: ignore[arg-type]
    if len(entries) != levels or any(len(entry) != numbers for entry in entries):
        raise CardioDiTError(
            f"Expected {numbers} numbers for each of the {levels} levels of the VQ model, or {numbers} numbers for "
            f"all of them, got {parameters}."
        )
    return entries


def along(value: int | Sequence[int], axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


class VQModel(StrictModelMixin, AutoencoderMixin):
    """What the 3D and the 4D model share: a convolutional coder over three axes with an EMA codebook.

    Args:
        in_channels, out_channels: image channels.
        channels, num_res_channels: widths of the levels and of their residual units.
        num_res_layers: residual units a level.
        downsample_parameters: stride, kernel, dilation, padding; once or for each level, a number or one for each axis.
        upsample_parameters: the same with an output padding, in the decoder's order.
        num_embeddings, embedding_dim: size of the codebook.
        commitment_cost, decay, epsilon: of the codebook's loss and its moving averages.
        dropout: in the residual units while training.
        codebook_warm_counts, codebook_data_init, codebook_restart, codebook_sync: see `EMACodebook`.
        scaling_factor: 1 / standard deviation of the latents; the transformer sees latents times this.
        spacing: voxel size in mm along H, W, D; None when unknown.
        frame_time: seconds between frames; None when unknown, or where nothing moves.
        preprocessing: what was done to the training volumes, as `cardiodit.imaging.Preprocessing.to_dict()` says it.
    """

    axis_names: tuple[str, str, str]
    tiled_axes: tuple[str, ...]
    takes: dict[int, str]  # what a tensor with so many axes is

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["quantizer"]
    _skip_layerwise_casting_patterns = ["quantizer"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: tuple[int, ...] = (128, 256),
        num_res_channels: tuple[int, ...] = (256, 256),
        num_res_layers: int = 2,
        downsample_parameters: LayerParameters | Sequence[LayerParameters] = (2, 4, 1, 1),
        upsample_parameters: LayerParameters | Sequence[LayerParameters] = (2, 4, 1, 1, 0),
        num_embeddings: int = 16384,
        embedding_dim: int = 8,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        dropout: float = 0.0,
        codebook_warm_counts: bool = True,
        codebook_data_init: bool = True,
        codebook_restart: bool = True,
        codebook_sync: bool = True,
        scaling_factor: float = 1.0,
        spacing: tuple[float, float, float] | None = None,
        frame_time: float | None = None,
        preprocessing: dict | None = None,
    ) -> None:
        from monai.networks.nets.vqvae import Decoder, Encoder  # takes a second to import

        super().__init__()
        levels = len(channels)
        if len(num_res_channels) != levels:
            raise CardioDiTError(
                f"num_res_channels={list(num_res_channels)} must have as many numbers as channels={list(channels)}."
            )
        self.down = per_level(downsample_parameters, levels, numbers=4)
        self.up = per_level(upsample_parameters, levels, numbers=5)
        self.encoder = Encoder(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=embedding_dim,
            channels=channels,
            num_res_layers=num_res_layers,
            num_res_channels=num_res_channels,
            downsample_parameters=self.down,
            dropout=dropout,
            act="RELU",
        )
        self.decoder = Decoder(
            spatial_dims=3,
            in_channels=embedding_dim,
            out_channels=out_channels,
            channels=channels,
            num_res_layers=num_res_layers,
            num_res_channels=num_res_channels,
            upsample_parameters=self.up,
            dropout=dropout,
            act="RELU",
            output_act=None,
        )
        self.quantizer = EMACodebook(
            num_embeddings,
            embedding_dim,
            commitment_cost=commitment_cost,
            decay=decay,
            epsilon=epsilon,
            warm_counts=codebook_warm_counts,
            data_init=codebook_data_init,
            restart_dead=codebook_restart,
            sync=codebook_sync,
        )
        self.gradient_checkpointing = False
        self.use_slicing = False
        self.enable_tiling()  # sets the sizes of the tiles
        self.use_tiling = False

    @property
    def scale_factors(self) -> tuple[int, int, int]:
        """Voxels a latent along each of the three axes."""
        height, width, last = (math.prod(along(entry[0], axis) for entry in self.down) for axis in range(3))
        return height, width, last

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        tile_sample_min_depth: int | None = None,
        tile_sample_stride_depth: int | None = None,
    ) -> None:
        """Code what is larger than a tile piece by piece. Sizes in voxels; the rest of a tile's size overlaps.

        Of a cine, planes are tiled, frames are not; a volume is tiled along its depth, too.
        """
        self.use_tiling = True
        asked = {
            "height": (tile_sample_min_height, tile_sample_stride_height),
            "width": (tile_sample_min_width, tile_sample_stride_width),
            "depth": (tile_sample_min_depth, tile_sample_stride_depth),
        }
        self.tile_sizes: dict[str, tuple[int, int]] = {}  # by axis: a tile, and from one tile to the next
        for axis, (tile, stride) in asked.items():
            if axis not in self.tiled_axes:
                if tile or stride:
                    raise CardioDiTError(f"A {type(self).__name__} has no {axis} that could be tiled.")
                continue
            tile = tile or TILE_LATENTS * self.scale_factors[self.axis_names.index(axis)]
            stride = stride or tile * STRIDE_LATENTS // TILE_LATENTS
            if not 0 < stride < tile:
                raise CardioDiTError(
                    f"tile_sample_stride_{axis}={stride} must be smaller than tile_sample_min_{axis}={tile}, "
                    "so that neighbouring tiles overlap."
                )
            self.tile_sizes[axis] = (tile, stride)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Codes `(B, C, *size)` in [-1, 1] into latents before quantisation."""
        self._check_axes(x)
        self._check_size(x)
        latents = self._by_batch(self._encode, x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def quantize(self, z: torch.Tensor) -> QuantizerOutput:
        """Nearest codes of latents `(B, C, *size)`: quantised latents, their indices and the commitment loss."""
        return self.quantizer(z)

    @apply_forward_hook
    def decode(
        self, h: torch.Tensor, force_not_quantize: bool = False, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """Decodes latents; they are quantised first unless told otherwise. Never moves the codebook."""
        self._check_axes(h)
        commit_loss = None
        if not force_not_quantize:
            quantized = self.quantizer(h, may_learn=False)
            h, commit_loss = quantized.latents, quantized.commitment_loss
        sample = self._by_batch(self._decode, h)
        return DecoderOutput(sample=sample, commit_loss=commit_loss) if return_dict else (sample, commit_loss)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """Encode, quantise, decode; in training mode this is what the codebook learns from."""
        quantized = self.quantize(self.encode(sample).latents)
        decoded = self.decode(quantized.latents, force_not_quantize=True).sample
        output = DecoderOutput(sample=decoded, commit_loss=quantized.commitment_loss)
        return output if return_dict else (output.sample, output.commit_loss)

    def _by_batch(self, coder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """All items of a batch at once, or one at a time with slicing."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([coder(item) for item in x.split(1)])
        return coder(x)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        def network(tile: torch.Tensor) -> torch.Tensor:
            return self._run(self.encoder.blocks, tile)

        if not self.use_tiling:
            return network(x)
        tiles, factors = self._tiles(self._encoder_radius), self._tiled_factors()
        return run_tiled(network, x, tiles, factors, [1] * len(tiles))

    def _decode(self, h: torch.Tensor) -> torch.Tensor:
        def network(tile: torch.Tensor) -> torch.Tensor:
            return self._run(self.decoder.blocks, tile)

        if not self.use_tiling:
            return network(h)
        tiles, factors = self._tiles(self._decoder_radius), self._tiled_factors()
        return run_tiled(network, h, tiles, [1] * len(tiles), factors)

    def _run(self, blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x

    def _tiled_factors(self) -> list[int]:
        """Voxels a latent along the axes that are tiled, which come first."""
        return [self.scale_factors[self.axis_names.index(axis)] for axis in self.tile_sizes]

    def _tiles(self, radius: Callable[[int], float]) -> list[AxisTiles]:
        sizes = zip(self.tile_sizes.values(), self._tiled_factors(), strict=True)
        return [
            AxisTiles(max(1, tile // factor), max(1, stride // factor), math.ceil(radius(axis)))
            for axis, ((tile, stride), factor) in enumerate(sizes)
        ]

    def _encoder_radius(self, axis: int) -> float:
        """How many latents away a voxel can still change a latent: half the receptive field."""
        radius, voxels = 0.0, 1  # in voxels; voxels a sample of the current level
        for stride, kernel, dilation, _ in self.down:
            radius += along(dilation, axis) * (along(kernel, axis) - 1) / 2 * voxels
            voxels *= along(stride, axis)
            radius += 2 * self.config.num_res_layers * voxels
        return (radius + voxels) / voxels

    def _decoder_radius(self, axis: int) -> float:
        """How many latents away a latent can still change a voxel."""
        radius, latents = 1.0, 1.0  # in latents; latents a sample of the current level
        for stride, kernel, dilation, _, _ in self.up:
            radius += 2 * self.config.num_res_layers * latents
            latents /= along(stride, axis)
            radius += along(dilation, axis) * (along(kernel, axis) - 1) / 2 * latents
        return radius

    def _check_axes(self, x: torch.Tensor) -> None:
        if x.ndim not in self.takes:
            raise CardioDiTError(
                f"{type(self).__name__} takes {' or '.join(self.takes.values())}, got {x.ndim} axes: {tuple(x.shape)}."
            )

    def _check_size(self, x: torch.Tensor) -> None:
        for name, length, factor in zip(self.axis_names, x.shape[-3:], self.scale_factors, strict=True):
            if length % factor or length < factor:
                raise CardioDiTError(
                    f"The {name} axis has size {length}; {type(self).__name__} divides it by {factor}, so it must "
                    f"be a multiple of {factor}. Crop or pad the image."
                )


class VQModel4D(VQModel):
    """CardioDiT's autoencoder: each 2D+t slice is coded by itself.

    `encode`, `decode` and `forward` take slices `(B, C, H, W, T)` and whole cine volumes `(B, C, D, H, W, T)`.
    The defaults are the published size. Arguments: see `VQModel`.
    """

    axis_names = ("height", "width", "frames")
    tiled_axes = ("height", "width")
    takes = {5: "slices (B, C, H, W, T)", 6: "volumes (B, C, D, H, W, T)"}

    def _by_batch(self, coder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 5:
            return super()._by_batch(coder, x)
        return stack_slices(super()._by_batch(coder, slices_of(x)), depth=x.shape[2])


class VQModel3D(VQModel):
    """VolDiT's and MedLoRD's autoencoder over volumes `(B, C, H, W, D)`, in NIfTI order. Arguments: see `VQModel`."""

    axis_names = ("height", "width", "depth")
    tiled_axes = ("height", "width", "depth")
    takes = {5: "volumes (B, C, H, W, D)"}
