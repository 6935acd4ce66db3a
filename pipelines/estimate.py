"""What a sampling run will need on this machine, before it is begun."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cardiodit.footprint import peak_bytes, weight_bytes
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline

PROBE_LATENTS = 24  # rows and columns of the plane whose decoding is timed; the rest is in proportion
REPEATS = 3
KERNELS = 1.22  # memory that kernels use inside: 1.20 to 1.28 times the arithmetic of the published models on CPU


@dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Args:
        weights, denoising, decoding: bytes; what each needs while it runs. The two steps follow each other.
        denoising_seconds, decoding_seconds: of all samples together.
    """

    weights: int
    denoising: int
    decoding: int
    denoising_seconds: float
    decoding_seconds: float

    @property
    def bytes(self) -> int:
        """At the worst moment, beside what Python and its libraries take themselves."""
        return self.weights + max(self.denoising, self.decoding)

    @property
    def seconds(self) -> float:
        return self.denoising_seconds + self.decoding_seconds

    def __str__(self) -> str:
        return (
            f"about {self.bytes / 2**30:.2f} GiB beside Python itself (weights {self.weights / 2**30:.2f}, denoising "
            f"{self.denoising / 2**30:.2f}, decoding {self.decoding / 2**30:.2f}) and {_plain_time(self.seconds)} "
            f"(denoising {_plain_time(self.denoising_seconds)}, decoding {_plain_time(self.decoding_seconds)})"
        )


@torch.no_grad()
def estimate_sampling(
    pipe: LatentVolumePipeline,
    num_samples: int = 1,
    batch_size: int = 1,
    num_inference_steps: int = 25,
    guidance_scale: float = 1.0,
    decode_batch_size: int = 1,
    depth: int | None = None,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
) -> Estimate:
    """Memory by the model's arithmetic, time by a short probe on the pipeline's device."""
    size = pipe.latent_size(depth=depth, height=height, width=width, frames=frames)
    pieces, piece_size = pipe.pieces_of(size)
    batch = min(batch_size, num_samples)
    device, kind = pipe._execution_device, pipe.transformer.dtype
    latents = torch.empty(batch, pipe.transformer.config.in_channels, *size, device=device, dtype=kind)
    timestep = torch.zeros(batch, device=device, dtype=torch.long)
    together = torch.empty(decode_batch_size, latents.shape[1], *piece_size, device=device, dtype=pipe.vae.dtype)
    voxels = math.prod(size) * math.prod(pipe.voxels_a_latent)
    volumes = batch * voxels * 4  # float32; decoded pieces are joined and then limited to [-1, 1]: three of them
    held = 4 * latents.nbytes  # the sample, the prediction and what a multistep solver remembers
    calls = math.ceil(num_samples / batch) * num_inference_steps * (2 if guidance_scale != 1.0 else 1)
    return Estimate(
        weights=weight_bytes(pipe.transformer, pipe.vae),
        denoising=held + _peak(lambda: pipe.transformer(latents, timestep).sample),
        decoding=volumes + max(2 * volumes, _peak(lambda: pipe.vae.decode(together).sample)),
        denoising_seconds=calls * _denoising_step(pipe, latents),
        decoding_seconds=num_samples * pieces * _decoding_of_a_piece(pipe, together[:1]),
    )


def _peak(run: Callable[[], object]) -> int:
    return int(KERNELS * peak_bytes(run))


def _denoising_step(pipe: LatentVolumePipeline, latents: torch.Tensor) -> float:
    """One block at the true number of tokens, times their number: the rest is a percent."""
    model = pipe.transformer
    tokens = math.prod(model.grid_of(latents.shape[2:]))
    hidden = torch.zeros(len(latents), tokens, model.proj_out.in_features, device=latents.device, dtype=model.dtype)
    conditioning = hidden[:, 0]
    block = model.transformer_blocks[0]
    return len(model.transformer_blocks) * _seconds(lambda: block(hidden, conditioning))


def _decoding_of_a_piece(pipe: LatentVolumePipeline, latent: torch.Tensor) -> float:
    """A part of the plane, in proportion to the whole."""
    part = latent[..., :PROBE_LATENTS, :PROBE_LATENTS, :].contiguous().zero_()
    share = part[0, 0].numel() / latent[0, 0].numel()
    return _seconds(lambda: pipe.vae.decode(part)) / share


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
