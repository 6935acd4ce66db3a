"""What a sampling run will need on this machine, before it is begun."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cardiodit._util.memory import peak_bytes, weight_bytes
from cardiodit.models.adapter_tgca import SEEN_AT_ONCE
from cardiodit.models.autoencoder_vq import AxisTiles
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline
from cardiodit.pipelines.mask_control import MaskControlMixin

PROBE_LATENTS = 24  # rows and columns of the plane whose decoding is timed; the rest is in proportion
PROBE_VOXELS = 64  # the same of masks
REPEATS = 3
KERNELS = 1.22  # memory that kernels use inside: 1.20 to 1.28 times the arithmetic of the published models on CPU


@dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Args:
        weights, steering, denoising, decoding: bytes; what each needs while it runs. The steps follow each other.
            Steering is what masks need until they are tokens; 0 without an adapter.
        steering_seconds, denoising_seconds, decoding_seconds: of all samples together.
    """

    weights: int
    denoising: int
    decoding: int
    denoising_seconds: float
    decoding_seconds: float
    steering: int = 0
    steering_seconds: float = 0.0

    @property
    def bytes(self) -> int:
        """At the worst moment, beside what Python and its libraries take themselves."""
        return self.weights + max(self.steering, self.denoising, self.decoding)

    @property
    def seconds(self) -> float:
        return self.steering_seconds + self.denoising_seconds + self.decoding_seconds

    def __str__(self) -> str:
        steps = ["steering"] * (self.steering > 0) + ["denoising", "decoding"]
        memory = ", ".join(f"{step} {getattr(self, step) / 2**30:.2f}" for step in steps)
        times = ", ".join(f"{step} {_plain_time(getattr(self, f'{step}_seconds'))}" for step in steps)
        return (
            f"about {self.bytes / 2**30:.2f} GiB beside Python itself (weights {self.weights / 2**30:.2f}, {memory}) "
            f"and {_plain_time(self.seconds)} ({times})"
        )


@torch.no_grad()
def estimate_sampling(
    pipe: VolumePipeline,
    num_samples: int = 1,
    batch_size: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    decode_batch_size: int = 1,
    depth: int | None = None,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    condition_guidance_scale: float = 1.0,
) -> Estimate:
    """Memory by the model's arithmetic, time by a short probe on the pipeline's device.

    Of a model with an adapter it is that of steered samples; their masks have the size that is given.
    """
    size = pipe.latent_size(depth=depth, height=height, width=width, frames=frames)
    steps = pipe.default_steps if num_inference_steps is None else num_inference_steps
    batch = min(batch_size, num_samples)
    device, kind = pipe._execution_device, pipe.transformer.dtype
    latents = torch.empty(batch, pipe.transformer.config.in_channels, *size, device=device, dtype=kind)
    steering = Steering(pipe, latents) if isinstance(pipe, MaskControlMixin) else None
    voxels = math.prod(size) * math.prod(pipe.voxels_a_latent)
    volumes = batch * voxels * 4  # float32; decoded pieces are joined and then limited to [-1, 1]: three of them
    held = 4 * latents.nbytes + (steering.held if steering else 0)  # sample, prediction, a multistep solver's memory
    passes = 1 + (guidance_scale != 1.0) + (steering is not None and condition_guidance_scale != 1.0)
    calls = math.ceil(num_samples / batch) * steps * passes
    decoding = Decoding(pipe, size, decode_batch_size) if isinstance(pipe, LatentVolumePipeline) else None
    models = [pipe.transformer, *([pipe.vae] if decoding else []), *([steering.adapter] if steering else [])]
    return Estimate(
        weights=weight_bytes(*models),
        denoising=held + _peak(lambda: _denoise_once(pipe, latents, steering)),
        decoding=volumes + max(2 * volumes, decoding.bytes if decoding else 0),
        denoising_seconds=calls * sum(n * _seconds(part) for part, n in pipe.transformer.cost_parts(latents)),
        decoding_seconds=num_samples * decoding.seconds() if decoding else 0.0,
        steering=steering.bytes if steering else 0,
        steering_seconds=num_samples * steering.seconds() if steering else 0.0,
    )


class Decoding:
    """What becoming volumes needs.

    Args:
        pipe: with a VQ model.
        size: of a latent.
        at_once: pieces that are decoded together.
    """

    def __init__(self, pipe: LatentVolumePipeline, size: Sequence[int], at_once: int) -> None:
        self.vae, channels = pipe.vae, pipe.transformer.config.in_channels
        self.pieces, piece = pipe.pieces_of(size)
        device, dtype = pipe._execution_device, pipe.vae.dtype
        self.together = torch.empty(at_once, channels, *piece, device=device, dtype=dtype)

    @property
    def bytes(self) -> int:
        return _peak(lambda: self.vae.decode(self.together).sample)

    def seconds(self) -> float:
        """Of one volume, in proportion to a part of the plane; where tiles overlap, voxels are decoded repeatedly."""
        piece = self.together[:1]
        part = piece[..., :PROBE_LATENTS, :PROBE_LATENTS, :].contiguous().zero_()
        share = part[0, 0].numel() / piece[0, 0].numel()
        one = _seconds(lambda: self.vae.decode(part)) / share * _repetition(self.vae, piece.shape[2:])
        return self.pieces * one


class Steering:
    """What the masks of a batch need.

    Args:
        pipe: with an adapter.
        latents: of the batch; each sample has masks of its own.
    """

    def __init__(self, pipe: MaskControlMixin, latents: torch.Tensor) -> None:
        self.adapter, self.transformer = pipe.adapter, pipe.transformer
        self.grid = self.transformer.grid_of(latents.shape[2:])
        size = [n * factor for n, factor in zip(latents.shape[2:], pipe.voxels_a_latent, strict=True)]
        self.shape = (len(latents), self.adapter.config.condition_channels, *size)
        self.device, self.dtype = latents.device, self.adapter.dtype
        width = self.adapter.config.hidden_size
        self.tokens = torch.empty(len(latents), math.prod(self.grid), width, device=self.device, dtype=self.dtype)

    @property
    def held(self) -> int:
        """Tokens of the masks and of an empty mask, during all steps."""
        return 2 * self.tokens.nbytes

    @property
    def bytes(self) -> int:
        """Their channels, an empty one's, and what the embedding makes of these at full size."""

        def embed() -> torch.Tensor:
            empty = torch.empty(self.shape, device=self.device, dtype=self.dtype)
            return self.adapter.embed(empty, self.transformer, self.grid)

        return math.prod(self.shape) * 4 + _peak(embed)

    def seconds(self) -> float:
        """Of one sample, in proportion to a part of the plane; an empty mask is embedded, too."""
        _, channels, *size = self.shape
        size = size[-SEEN_AT_ONCE:]
        part = [*(min(length, PROBE_VOXELS) for length in size[:2]), size[2]]
        masks = torch.zeros(1, channels, *part, device=self.device, dtype=self.dtype)
        share = math.prod(part) / math.prod(self.shape[2:])
        return 2 * _seconds(lambda: self.adapter.condition_embed(masks)) / share


def _denoise_once(pipe: VolumePipeline, latents: torch.Tensor, steering: Steering | None) -> torch.Tensor:
    timestep = torch.zeros(len(latents), device=latents.device, dtype=torch.long)
    if steering is None:
        return pipe.transformer(latents, timestep).sample
    controls = steering.adapter(steering.tokens, pipe.transformer.embed_time(latents, timestep))
    return pipe.transformer(latents, timestep, block_controls=controls).sample


def _peak(run: Callable[[], object]) -> int:
    return int(KERNELS * peak_bytes(run))


def _repetition(vae: Any, size: Sequence[int]) -> float:
    """Latents of all tiles over those of the whole."""
    if not vae.use_tiling:
        return 1.0
    times = 1.0
    for axis, (tile, stride) in vae.tile_sizes.items():
        place = vae.axis_names.index(axis)
        length, factor = size[place], vae.scale_factors[place]
        tiles = AxisTiles(tile // factor, stride // factor, margin=0)
        times *= len(tiles.starts(length)) * min(tiles.tile, length) / length
    return times


def _seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _plain_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
