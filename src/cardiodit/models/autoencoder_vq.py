"""The published VQ-VAE (van den Oord et al., arXiv:1711.00937; MONAI's blocks) as a diffusers autoencoder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn as nn
from diffusers import ModelMixin  # noqa: F401  diffusers looks this name up in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from cardiodit._util.gpu import upload
from cardiodit.errors import CardioDiTError
from cardiodit.models.codebook import EMACodebook, QuantizerOutput
from cardiodit.models.loading import StrictModelMixin
from cardiodit.models.mask_head import MaskHead

PerAxis = int | tuple[int, ...]  # one number for all axes, or one for each axis
Level = tuple[PerAxis, ...]  # stride, kernel, dilation, padding (and output padding in the decoder)

TILE_LATENTS, STRIDE_LATENTS = 40, 24  # two tiles an axis at the published 64; an overlap of 16 latents
STATISTICS_EPS = 1e-8  # added to standard deviations, as published


def slices_of(volume: torch.Tensor) -> torch.Tensor:
    """(B, C, D, H, W, T) → (B·D, C, H, W, T)."""
    return volume.movedim(2, 1).flatten(0, 1)


def stack_slices(slices: torch.Tensor, depth: int) -> torch.Tensor:
    """(B·D, C, H, W, T) → (B, C, D, H, W, T)."""
    return slices.unflatten(0, (-1, depth)).movedim(1, 2)


def per_level(parameters: Sequence, levels: int, numbers: int) -> list:
    """Return one list of layer parameters for each level, as MONAI expects; a flat list is used for every level."""
    is_flat = all(isinstance(value, int) for value in parameters)
    entries = [list(parameters)] * levels if is_flat else [list(entry) for entry in parameters]
    if len(entries) != levels or any(len(entry) != numbers for entry in entries):
        raise CardioDiTError(
            f"Expected {numbers} numbers for each of the {levels} levels of the VQ model, or {numbers} numbers for "
            f"all of them, got {parameters}."
        )
    return entries


def along(value: int | Sequence[int], axis: int) -> int:
    """Return a layer parameter along one axis."""
    return value if isinstance(value, int) else value[axis]


class VQModel(StrictModelMixin, AutoencoderMixin):
    """Convolutional autoencoder over three axes with an EMA codebook, shared by the 3D and the 4D model.

    Args:
        in_channels: number of channels of the input image.
        out_channels: number of channels of the reconstruction.
        channels: number of channels of each level; each level halves the image unless `downsample_parameters` says
            otherwise.
        num_res_channels: number of channels of the residual units of each level.
        num_res_layers: number of residual units per level.
        downsample_parameters: stride, kernel size, dilation and padding of the downsampling convolutions: one list for
            all levels, or one list for each level; each entry is one number, or one number for each axis.
        upsample_parameters: stride, kernel size, dilation, padding and output padding of the upsampling convolutions,
            in the same form; lists for each level are ordered from the latents to the image.
        num_embeddings: number of codes in the codebook.
        embedding_dim: number of latent channels, which is the length of a code.
        commitment_cost: weight of the commitment loss, which pulls the encoder's output towards the codes.
        decay: decay of the moving averages from which the codes are updated.
        epsilon: Laplace smoothing of the number of times that each code is used.
        dropout: dropout probability in the residual units.
        codebook_warm_counts: start the codes' usage counts at one; false starts them at zero, as published.
        codebook_data_init: take the initial codes from the first training batch; false uses random codes, as published.
        codebook_restart: move rarely used codes to encoder outputs of the current batch; false as published.
        codebook_sync: share codebook statistics between processes (GPUs); false as published.
        scaling_factor: 1 / standard deviation of the latents; the transformer sees latents multiplied by it.
        spacing: voxel size of the training volumes in mm along H, W, D; None if unknown.
        frame_time: seconds between frames; None if unknown or for static volumes.
        preprocessing: preprocessing of the training volumes, as returned by `Preprocessing.to_dict()`.
        latents_mean: mean of each channel of the training latents, by which latents are normalised before they are
            multiplied by `scaling_factor`; None for no normalisation.
        latents_std: their standard deviation.
        quantize_latents: train denoisers on quantised latents, and quantise what they generate before it is decoded;
            false trains them on the encoder's output.
        dead_code_threshold: usage count below which a code moves to one of the first vectors of the batch, such as 0.5
            in CardioDiT's newest code; None leaves dead codes to `codebook_restart`.
        mask_labels: number of labels, including the background, that a second decoder finds in latents
            (`decode_masks`, trained by `train_masks`); 0 for none.
        mask_channels: width of this decoder at the latents' resolution.
    """

    axis_names: tuple[str, str, str]
    tiled_axes: tuple[str, ...]
    accepted_inputs: dict[int, str]  # meaning of a tensor by its number of axes

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
        downsample_parameters: Level | tuple[Level, ...] = (2, 4, 1, 1),
        upsample_parameters: Level | tuple[Level, ...] = (2, 4, 1, 1, 0),
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
        preprocessing: dict[str, Any] | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        quantize_latents: bool = True,
        dead_code_threshold: float | None = None,
        mask_labels: int = 0,
        mask_channels: int = 32,
    ) -> None:
        from monai.networks.nets.vqvae import Decoder, Encoder  # takes a second to import

        super().__init__()
        levels = len(channels)
        if len(num_res_channels) != levels:
            raise CardioDiTError(
                f"num_res_channels={list(num_res_channels)} must have as many numbers as channels={list(channels)}."
            )
        if (latents_mean is None) != (latents_std is None) or any(
            len(values) != embedding_dim for values in (latents_mean, latents_std) if values is not None
        ):
            raise CardioDiTError(
                f"latents_mean and latents_std must both have one number for each of the {embedding_dim} channels."
            )
        self.down = per_level(downsample_parameters, levels, numbers=4)
        self.up = per_level(upsample_parameters, levels, numbers=5)
        shared = {
            "spatial_dims": 3,
            "channels": channels,
            "num_res_layers": num_res_layers,
            "num_res_channels": num_res_channels,
            "dropout": dropout,
            "act": "RELU",
        }
        self.encoder = Encoder(
            in_channels=in_channels, out_channels=embedding_dim, downsample_parameters=self.down, **shared
        )
        self.decoder = Decoder(
            in_channels=embedding_dim,
            out_channels=out_channels,
            upsample_parameters=self.up,
            output_act=None,
            **shared,
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
            dead_code_threshold=dead_code_threshold,
        )
        self.mask_head = None
        if mask_labels:
            strides = [[along(entry[0], axis) for axis in range(3)] for entry in self.up]
            self.mask_head = MaskHead(embedding_dim, mask_channels, strides, mask_labels)
        self.gradient_checkpointing = False
        self.use_slicing = False
        self.enable_tiling()  # sets the tile sizes
        self.use_tiling = False

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents `(B, C, ...)` as a denoiser sees them: normalised per channel, and scaled."""
        statistics = self._statistics(latents)
        if statistics is not None:
            latents = (latents - statistics[0]) / statistics[1]
        return latents * self.config.scaling_factor

    def unscale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo `scale_latents`."""
        latents = latents / self.config.scaling_factor
        statistics = self._statistics(latents)
        return latents if statistics is None else latents * statistics[1] + statistics[0]

    def _statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return mean and standard deviation of the channels, broadcastable to latents; None without them."""
        mean, deviation = self.config.latents_mean, self.config.latents_std
        if mean is None or deviation is None:
            return None
        both = torch.tensor([mean, [value + STATISTICS_EPS for value in deviation]], dtype=latents.dtype)
        both = upload(both, latents.device).view(2, -1, *(1,) * (latents.ndim - 2))
        return both[0], both[1]

    @property
    def scale_factors(self) -> tuple[int, int, int]:
        """Voxels per latent along each of the three axes."""
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
        """Encode and decode in overlapping tiles whatever is larger than one tile.

        Cine slices are tiled in the plane but not over frames; volumes are also tiled along their depth.

        Args:
            tile_sample_min_height, tile_sample_min_width, tile_sample_min_depth: tile size in voxels.
            tile_sample_stride_height, tile_sample_stride_width, tile_sample_stride_depth: distance between
                neighbouring tiles in voxels; smaller than the tile, so that tiles overlap.
        """
        self.use_tiling = True
        requested = {
            "height": (tile_sample_min_height, tile_sample_stride_height),
            "width": (tile_sample_min_width, tile_sample_stride_width),
            "depth": (tile_sample_min_depth, tile_sample_stride_depth),
        }
        self.tile_sizes: dict[str, tuple[int, int]] = {}  # by axis: tile size and stride in voxels
        for axis, (tile, stride) in requested.items():
            if axis not in self.tiled_axes:
                if tile or stride:
                    raise CardioDiTError(f"A {type(self).__name__} has no {axis} axis that can be tiled.")
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
        """Encode images `(B, C, *size)` in [-1, 1] into latents before quantisation."""
        self._check_axes(x, self.config.in_channels)
        for name, length, factor in zip(self.axis_names, x.shape[-3:], self.scale_factors, strict=True):
            if length % factor or length < factor:
                raise CardioDiTError(
                    f"The {name} axis has size {length}; {type(self).__name__} divides it by {factor}, so it must "
                    f"be a multiple of {factor}. Crop or pad the image."
                )
        latents = self._by_batch(self._encode, x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def quantize(self, z: torch.Tensor) -> QuantizerOutput:
        """Replace latents `(B, C, *size)` by their nearest codes; also return the indices and the commitment loss."""
        return self.quantizer(z)

    @apply_forward_hook
    def decode(
        self, h: torch.Tensor, force_not_quantize: bool = False, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """Decode latents, quantised before unless `force_not_quantize`, or `quantize_latents` of the config is false.

        The codebook never learns from this.

        Give latents in float32 also to a model in half precision: rounding them first changes one code in a hundred.
        """
        self._check_axes(h)
        commit_loss = None
        if not force_not_quantize and self.config.quantize_latents:
            quantized = self.quantizer(h, may_learn=False)
            h, commit_loss = quantized.latents, quantized.commitment_loss
        sample = self._by_batch(self._decode, h.to(self.dtype))
        return DecoderOutput(sample=sample, commit_loss=commit_loss) if return_dict else (sample, commit_loss)

    @apply_forward_hook
    def decode_masks(self, h: torch.Tensor) -> torch.Tensor:
        """Return the logits of labels `(B, labels, *size)` in latents, which are quantised first, as in `decode`."""
        if self.mask_head is None:
            raise CardioDiTError("This autoencoder decodes no masks (mask_labels is 0); train_masks adds them.")
        self._check_axes(h)
        if self.config.quantize_latents:
            h = self.quantizer(h, may_learn=False).latents
        return self._by_batch(self.mask_head, h.to(self.dtype))

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor | None]:
        """Encode, quantise and decode; in training mode this also updates the codebook."""
        quantized = self.quantize(self.encode(sample).latents)
        decoded = self.decode(quantized.latents, force_not_quantize=True).sample
        output = DecoderOutput(sample=decoded, commit_loss=quantized.commitment_loss)
        return output if return_dict else (output.sample, output.commit_loss)

    def compile_repeated_blocks(self, *arguments: Any, **settings: Any) -> None:
        """Compile the residual units of encoder and decoder; the convolutions between them are single operations."""
        from monai.networks.nets.vqvae import VQVAEResidualUnit

        for block in (*self.encoder.blocks, *self.decoder.blocks):
            if isinstance(block, VQVAEResidualUnit):
                block.compile(*arguments, **settings)

    def _by_batch(self, coder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Apply `coder` to the whole batch, or with slicing to one item at a time."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([coder(item) for item in x.split(1)])
        return coder(x)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        factors = self._tiled_factors()
        return self._run(self.encoder.blocks, x, self._encoder_radius, factors, [1] * len(factors))

    def _decode(self, h: torch.Tensor) -> torch.Tensor:
        factors = self._tiled_factors()
        return self._run(self.decoder.blocks, h, self._decoder_radius, [1] * len(factors), factors)

    def _run(
        self,
        blocks: nn.ModuleList,
        x: torch.Tensor,
        radius: Callable[[int], float],
        in_scale: Sequence[int],
        out_scale: Sequence[int],
    ) -> torch.Tensor:
        """Apply the blocks of the encoder or decoder to the whole input or, with tiling, to each tile."""

        def network(tile: torch.Tensor) -> torch.Tensor:
            for block in blocks:
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    tile = self._gradient_checkpointing_func(block, tile)
                else:
                    tile = block(tile)
            return tile

        if not self.use_tiling:
            return network(x)
        sizes = zip(self.tile_sizes.values(), self._tiled_factors(), strict=True)
        tiles = [
            AxisTiles(max(1, tile // factor), max(1, stride // factor), math.ceil(radius(axis)))
            for axis, ((tile, stride), factor) in enumerate(sizes)
        ]
        return run_tiled(network, x, tiles, in_scale, out_scale)

    def _tiled_factors(self) -> list[int]:
        """Voxels per latent along the tiled axes, which come first."""
        return [self.scale_factors[self.axis_names.index(axis)] for axis in self.tile_sizes]

    def _encoder_radius(self, axis: int) -> float:
        """Half the encoder's receptive field, in latents."""
        radius, voxels = 0.0, 1  # in voxels; voxels per sample of the current level
        for stride, kernel, dilation, _ in self.down:
            radius += along(dilation, axis) * (along(kernel, axis) - 1) / 2 * voxels
            voxels *= along(stride, axis)
            radius += 2 * self.config.num_res_layers * voxels
        return (radius + voxels) / voxels

    def _decoder_radius(self, axis: int) -> float:
        """Half the decoder's receptive field, in latents."""
        radius, latents = 1.0, 1.0  # in latents; latents per sample of the current level
        for stride, kernel, dilation, _, _ in self.up:
            radius += 2 * self.config.num_res_layers * latents
            latents /= along(stride, axis)
            radius += along(dilation, axis) * (along(kernel, axis) - 1) / 2 * latents
        return radius

    def _check_axes(self, x: torch.Tensor, channels: int | None = None) -> None:
        if x.ndim in self.accepted_inputs and channels in (None, x.shape[1]):
            return
        needed = "" if channels is None else f" with {channels} channel{'' if channels == 1 else 's'}"
        raise CardioDiTError(
            f"{type(self).__name__} takes {' or '.join(self.accepted_inputs.values())}{needed}, got {x.ndim} axes, "
            f"{tuple(x.shape)}. The volumes of a pipeline's output are in the order of files, (B, H, W, D, T) or "
            '(B, H, W, D), without channels: call the pipeline with output_type="pt" to get them in this order.'
        )


class VQModel4D(VQModel):
    """CardioDiT's autoencoder, which encodes each 2D+t slice of a cine separately.

    `encode`, `decode` and `forward` take slices `(B, C, H, W, T)` and whole cine volumes `(B, C, D, H, W, T)`.
    The default arguments give the published size; they are documented in `VQModel`.
    """

    axis_names = ("height", "width", "frames")
    tiled_axes = ("height", "width")
    accepted_inputs = {5: "slices (B, C, H, W, T)", 6: "volumes (B, C, D, H, W, T)"}

    def _by_batch(self, coder: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 5:
            return super()._by_batch(coder, x)
        return stack_slices(super()._by_batch(coder, slices_of(x)), depth=x.shape[2])


class VQModel3D(VQModel):
    """VolDiT's and MedLoRD's autoencoder for volumes `(B, C, H, W, D)` in NIfTI order.

    The arguments are documented in `VQModel`.
    """

    axis_names = ("height", "width", "depth")
    tiled_axes = ("height", "width", "depth")
    accepted_inputs = {5: "volumes (B, C, H, W, D)"}


@dataclass(frozen=True)
class AxisTiles:
    """Tiling of one axis, in latents.

    Args:
        tile: size of a tile.
        stride: distance between the starts of neighbouring tiles.
        margin: distance from a cut edge within which a tile's result is wrong.
    """

    tile: int
    stride: int
    margin: int

    def starts(self, length: int) -> list[int]:
        """Return the start of each tile; the last tile ends with the axis, so that all have the same size."""
        if length <= self.tile:
            return [0]
        return [*range(0, length - self.tile, self.stride), length - self.tile]

    def window(self, start: int, length: int, scale: int) -> torch.Tensor:
        """Return the blending weights of the tile at `start`, with `scale` samples per latent.

        They rise from 0 to 1 over the overlap with a neighbour, but only outside the margin: where the overlap is at
        least twice the margin, the blended result equals the untiled one.
        """
        starts = self.starts(length)
        size = min(self.tile, length)
        weight = torch.ones(size * scale)
        position = starts.index(start)
        if position > 0:
            weight *= self._ramp(starts[position - 1] + size - start, size, scale)
        if position < len(starts) - 1:
            weight *= self._ramp(start + size - starts[position + 1], size, scale).flip(0)
        return weight

    def _ramp(self, overlap: int, size: int, scale: int) -> torch.Tensor:
        overlap, margin = overlap * scale, self.margin * scale
        margin = min(margin, (overlap - 1) // 2)
        return ((torch.arange(size * scale) + 0.5 - margin) / (overlap - 2 * margin)).clamp(0, 1)


def run_tiled(
    network: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    axes: Sequence[AxisTiles],
    in_scale: Sequence[int],
    out_scale: Sequence[int],
) -> torch.Tensor:
    """Compute `network(x)` for x `(B, C, *size)` in overlapping tiles along the first axes, and blend the seams.

    `in_scale` and `out_scale` are the samples per latent of x and of the result along these axes.
    """
    lengths = [x.shape[2 + i] // scale for i, scale in enumerate(in_scale)]
    size = [length * scale for length, scale in zip(lengths, out_scale, strict=True)]
    total = weights = None
    for starts in product(*(tiles.starts(length) for tiles, length in zip(axes, lengths, strict=True))):
        source = [slice(a * s, (a + t.tile) * s) for a, t, s in zip(starts, axes, in_scale, strict=True)]
        tile = network(x[(slice(None), slice(None), *source)])
        window = torch.ones((), device=tile.device)  # product of the weights along each axis
        for start, tiles, length, samples in zip(starts, axes, lengths, out_scale, strict=True):
            window = window[..., None] * tiles.window(start, length, samples).to(tile.device)
        if total is None or weights is None:
            total = torch.zeros(*tile.shape[:2], *size, *tile.shape[2 + len(axes) :], device=tile.device)
            weights = torch.zeros(size, device=tile.device)
        target = tuple(slice(a * s, a * s + n) for a, s, n in zip(starts, out_scale, window.shape, strict=True))
        total[(slice(None), slice(None), *target)] += tile * _broadcastable(window, tile)
        weights[target] += window
    assert total is not None and weights is not None  # there is at least one tile
    return total.div_(_broadcastable(weights, total)).to(x.dtype)


def _broadcastable(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Append an axis of length one for each axis of x that is not tiled."""
    return weights.reshape(*weights.shape, *[1] * (x.ndim - 2 - weights.ndim))
