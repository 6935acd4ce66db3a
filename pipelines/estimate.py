"""Estimate the memory, time and energy of a sampling run before it starts."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cardiodit._util.memory import peak_bytes, weight_bytes
from cardiodit.energy import Energy, EnergyMeter
from cardiodit.energy.electricity import format_duration
from cardiodit.energy.forecast import Work, count_operations
from cardiodit.energy.scenarios import Cost
from cardiodit.models.adapter_tgca import SEEN_AT_ONCE
from cardiodit.models.autoencoder_vq import AxisTiles
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline, VolumePipeline
from cardiodit.pipelines.mask_control import MaskControlMixin

PROBE_LATENTS = 24  # rows and columns of the part whose decoding is timed; the rest is in proportion
PROBE_VOXELS = 64  # the same for masks
REPEATS = 3
KERNEL_OVERHEAD = 1.22  # assumed share of buffers inside kernels where they are not known, which is not on a CPU
NO_ENERGY = Energy(())


@dataclass(frozen=True)
class Estimate:
    """Memory, time and energy of a sampling run.

    Args:
        weights: bytes of the models' weights.
        denoising, decoding, steering: peak bytes of each phase beside the weights; the phases follow each other.
            Steering is the embedding of masks; 0 without an adapter.
        denoising_seconds, decoding_seconds, steering_seconds: total time of each phase over all samples.
        energy: of all samples, with the power that was measured during the probe.
    """

    weights: int
    denoising: int
    decoding: int
    denoising_seconds: float
    decoding_seconds: float
    steering: int = 0
    steering_seconds: float = 0.0
    energy: Energy = NO_ENERGY

    @property
    def bytes(self) -> int:
        """Peak memory, beside that of Python and its libraries."""
        return self.weights + max(self.steering, self.denoising, self.decoding)

    @property
    def seconds(self) -> float:
        return self.steering_seconds + self.denoising_seconds + self.decoding_seconds

    def __str__(self) -> str:
        steps = ["steering"] * (self.steering > 0) + ["denoising", "decoding"]
        memory = ", ".join(f"{step} {getattr(self, step) / 2**30:.2f}" for step in steps)
        times = ", ".join(f"{step} {format_duration(getattr(self, f'{step}_seconds'))}" for step in steps)
        return (
            f"about {self.bytes / 2**30:.2f} GiB beside Python itself (weights {self.weights / 2**30:.2f}, {memory}) "
            f"and {format_duration(self.seconds)} ({times})"
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
    """Estimate memory from tensor shapes, and time and energy by a short probe on the pipeline's device.

    For a model with an adapter the samples are steered by masks of the given size.
    """
    size = pipe.latent_size(depth=depth, height=height, width=width, frames=frames)
    steps = pipe.default_steps if num_inference_steps is None else num_inference_steps
    batch = min(batch_size, num_samples)
    device, kind = pipe._execution_device, pipe.denoiser.dtype
    latents = torch.empty(batch, pipe.denoiser.config.in_channels, *size, device=device, dtype=kind)
    steering = Steering(pipe, latents) if isinstance(pipe, MaskControlMixin) else None
    voxels = math.prod(size) * math.prod(pipe.voxels_per_latent)
    volumes = batch * voxels * 4  # float32; decoded pieces are joined and then limited to [-1, 1]: three of them
    held = 4 * latents.nbytes + (steering.held if steering else 0)  # sample, prediction, a multistep solver's memory
    passes = _passes(pipe, guidance_scale, condition_guidance_scale)
    calls = math.ceil(num_samples / batch) * steps * passes
    decoding = Decoding(pipe, size, decode_batch_size) if isinstance(pipe, LatentVolumePipeline) else None
    models = [pipe.denoiser, *([pipe.vae] if decoding else []), *([steering.adapter] if steering else [])]
    probe, started = EnergyMeter(device), time.perf_counter()
    denoising_seconds = calls * sum(n * _seconds(part) for part, n in _cost_parts(pipe, latents, steering))
    decoding_seconds = num_samples * decoding.seconds() if decoding else 0.0
    steering_seconds = num_samples * steering.seconds() if steering else 0.0
    seconds = denoising_seconds + decoding_seconds + steering_seconds
    energy = probe.read() * (seconds / (time.perf_counter() - started))
    return Estimate(
        weights=weight_bytes(*models),
        denoising=held + _peak(lambda: _denoise_once(pipe, latents, steering), device),
        decoding=volumes + max(2 * volumes, decoding.bytes if decoding else 0),
        denoising_seconds=denoising_seconds,
        decoding_seconds=decoding_seconds,
        steering=steering.bytes if steering else 0,
        steering_seconds=steering_seconds,
        energy=energy,
    )


@torch.no_grad()
def sampling_work(
    pipe: VolumePipeline,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    condition_guidance_scale: float = 1.0,
    **voxels: int | None,
) -> Work:
    """Count the operations of generating one volume: its denoising steps, its decoding and the embedding of its mask.

    Args:
        voxels: size, as in the pipeline's call.
    """
    size = pipe.latent_size(**voxels)
    steps = pipe.default_steps if num_inference_steps is None else num_inference_steps
    where = {"device": pipe._execution_device, "dtype": pipe.denoiser.dtype}
    latents = torch.empty(1, pipe.denoiser.config.in_channels, *size, **where)
    steering = Steering(pipe, latents) if isinstance(pipe, MaskControlMixin) else None
    work = count_operations(lambda: _denoise_once(pipe, latents, steering)) * (
        steps * _passes(pipe, guidance_scale, condition_guidance_scale)
    )
    if steering is not None:
        work += count_operations(steering.embed) * 2  # an empty mask is embedded as well
    return work + _decoding_work(pipe, size)


@torch.no_grad()
def scaled_costs(pipe: VolumePipeline, sizes: Sequence[float], width: float = 1.0) -> list[Cost]:
    """Count the operations of volumes of other sizes, with a denoiser that is wider or narrower; nothing is loaded.

    Args:
        sizes: factors of the model's own height and width, and of the depth of 3D volumes. The nearest size that the
            networks can generate is taken, and each only once.
        width: factor of the number of attention heads, or of the channels of a U-Net.
    """
    costs: dict[str, Cost] = {}
    names = pipe.denoiser.axis_names
    scaled = ("height", "width") if "frames" in names else names
    for factor in sizes:
        latent = [
            max(token, round(factor * n / token) * token) if name in scaled else n
            for name, n, token in zip(names, pipe.denoiser.config.sample_size, pipe.denoiser.token_size, strict=True)
        ]
        voxels = [n * scale for n, scale in zip(latent, pipe.voxels_per_latent, strict=True)]
        words = " × ".join(map(str, voxels))
        if words in costs:
            continue
        config = {**_widened(pipe.denoiser.config, width), "sample_size": latent}
        channels, kind = pipe.denoiser.config.in_channels, type(pipe.denoiser)

        def step(kind: Any = kind, config: Any = config, shape: Any = (1, channels, *latent)) -> torch.Tensor:
            return kind.from_config(config).eval()(torch.empty(shape), torch.zeros(1, dtype=torch.long)).sample

        costs[words] = Cost(words, count_operations(step), _decoding_work(pipe, latent))
    return list(costs.values())


def _widened(config: Any, width: float) -> dict[str, Any]:
    """Return a denoiser's config with so many times the heads or channels."""
    changed = {key: value for key, value in config.items() if not key.startswith("_")}  # lists of keys left at default
    if "num_attention_heads" in changed:
        changed["num_attention_heads"] = max(1, round(width * changed["num_attention_heads"]))
    elif "block_out_channels" in changed:
        changed["block_out_channels"] = [round(width * n) for n in changed["block_out_channels"]]
    return changed


def _decoding_work(pipe: VolumePipeline, size: Sequence[int]) -> Work:
    """Count the operations of decoding one latent."""
    if not isinstance(pipe, LatentVolumePipeline):
        return Work()
    pieces, piece = pipe.decoding_batches(size)
    where = {"device": pipe._execution_device, "dtype": pipe.vae.dtype}
    part = torch.empty(1, pipe.denoiser.config.in_channels, *piece, **where)
    return count_operations(lambda: pipe.vae.decode(part).sample) * pieces


def _passes(pipe: VolumePipeline, guidance_scale: float, condition_guidance_scale: float) -> int:
    """Return how often the denoiser runs in a step: several times with guidance, and with solvers of higher order."""
    is_guided_by_masks = isinstance(pipe, MaskControlMixin) and condition_guidance_scale != 1.0
    return getattr(pipe.scheduler, "order", 1) * (1 + (guidance_scale != 1.0) + is_guided_by_masks)


class Decoding:
    """Memory and time needed to decode latents.

    Args:
        pipe: pipeline with a VQ model.
        size: size of a latent.
        batch_size: pieces decoded at once.
    """

    def __init__(self, pipe: LatentVolumePipeline, size: Sequence[int], batch_size: int) -> None:
        self.vae, channels = pipe.vae, pipe.denoiser.config.in_channels
        self.pieces, piece = pipe.decoding_batches(size)
        device, dtype = pipe._execution_device, pipe.vae.dtype
        self.batch = torch.empty(batch_size, channels, *piece, device=device, dtype=dtype)

    @property
    def bytes(self) -> int:
        return _peak(lambda: self.vae.decode(self.batch).sample, self.batch.device)

    def seconds(self) -> float:
        """Return the time of one volume, in proportion to a part of it; overlapping tiles are decoded repeatedly."""
        piece = self.batch[:1]
        part = piece[..., :PROBE_LATENTS, :PROBE_LATENTS, :].contiguous().zero_()
        share = part[0, 0].numel() / piece[0, 0].numel()
        one = _seconds(lambda: self.vae.decode(part)) / share * _repetition(self.vae, piece.shape[2:])
        return self.pieces * one


class Steering:
    """Memory and time needed to embed the masks of a batch.

    Args:
        pipe: pipeline with an adapter.
        latents: latents of the batch; each sample has its own masks.
    """

    def __init__(self, pipe: MaskControlMixin, latents: torch.Tensor) -> None:
        self.adapter, self.denoiser = pipe.mask_adapter, pipe.denoiser
        self.grid = self.denoiser.grid_of(latents.shape[2:])
        size = [n * factor for n, factor in zip(latents.shape[2:], pipe.voxels_per_latent, strict=True)]
        self.shape = (len(latents), self.adapter.config.condition_channels, *size)
        self.device, self.dtype = latents.device, self.adapter.dtype
        embedded = self.adapter.embedded_shape(self.denoiser, self.grid)
        self.embedded = torch.empty(len(latents), *embedded, device=self.device, dtype=self.dtype)

    @property
    def held(self) -> int:
        """Bytes of the embedded masks and an empty one, which are held during all steps."""
        return 2 * self.embedded.nbytes

    @property
    def bytes(self) -> int:
        """Peak bytes of the masks' channels and their embedding at full size."""
        return math.prod(self.shape) * 4 + _peak(self.embed, self.device)

    def embed(self) -> torch.Tensor:
        """Embed masks without content."""
        empty = torch.empty(self.shape, device=self.device, dtype=self.dtype)
        return self.adapter.embed(empty, self.denoiser, self.grid)

    def seconds(self) -> float:
        """Return the time of one sample, in proportion to a part of it; an empty mask is embedded as well."""
        _, channels, *size = self.shape
        size = size[-SEEN_AT_ONCE:]
        part = [*(min(length, PROBE_VOXELS) for length in size[:2]), size[2]]
        masks = torch.zeros(1, channels, *part, device=self.device, dtype=self.dtype)
        share = math.prod(part) / math.prod(self.shape[2:])
        return 2 * _seconds(lambda: self.adapter.condition_embed(masks)) / share


def _denoise_once(pipe: VolumePipeline, latents: torch.Tensor, steering: Steering | None) -> torch.Tensor:
    timestep = torch.zeros(len(latents), device=latents.device, dtype=torch.long)
    control = {} if steering is None else steering.adapter.control(steering.embedded, pipe.denoiser, latents, timestep)
    return pipe.denoiser(latents, timestep, **control).sample


def _cost_parts(
    pipe: VolumePipeline, latents: torch.Tensor, steering: Steering | None
) -> list[tuple[Callable[[], object], float]]:
    """Return parts of a forward pass to time, each with how often it runs; the whole pass if the model has none."""
    if hasattr(pipe.denoiser, "cost_parts"):
        return pipe.denoiser.cost_parts(latents)
    return [(lambda: _denoise_once(pipe, latents, steering), 1.0)]


def _peak(run: Callable[[], object], device: torch.device) -> int:
    if device.type == "cpu":
        return peak_bytes(run, kernels=True)
    return int(KERNEL_OVERHEAD * peak_bytes(run))


def _repetition(vae: Any, size: Sequence[int]) -> float:
    """Return how often each latent is decoded on average, because tiles overlap."""
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
