"""Codebook of a VQ model, learned by exponential moving averages.

The update rule is that of van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1. If counts start at zero, the rule
divides by almost zero and moves every code that no vector chose at first far away from the data for good. Four
corrections keep codes in use and processes synchronised; each can be switched off.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from cardiodit._util.gpu import upload, without_autocast
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError

# Distances held at a time: 16 MiB in float32, where 131,072 vectors and 16,384 codes would take 8 GiB. Larger
# blocks do not fit into a processor's cache and are several times slower.
MOST_CODES = 2**24
MAX_DISTANCES = 2**22
# A code is dead when its count is below this share of the count that a restarted code is given. At decay 0.99 a
# code that is never chosen gets there in ln 2 / 0.01 = 69 steps, which is enough time to be chosen.
DEAD_BELOW = 0.5
# Noise added to codes that start from the same vector, as a share of the standard deviation of the vectors.
JITTER = 0.01
LOT_BITS = 31  # of the random numbers by which vectors are drawn


@dataclass
class QuantizerOutput(BaseOutput):
    """Output of `EMACodebook`.

    Args:
        latents: quantised latents `(B, C, *spatial)`, with the gradient of the input (straight-through).
        indices: code of each vector `(B, *spatial)`, int64.
        commitment_loss: scalar in float32, already multiplied by the commitment cost.
    """

    latents: Tensor
    indices: Tensor
    commitment_loss: Tensor


class EMACodebook(nn.Module):
    """Replace each vector by its nearest code; in training mode each forward pass also updates the codes.

    With `accumulate`, forward passes only collect vectors, and `update` updates the codes once for all of them. A step
    over several batches then moves the codes exactly as far as one step over a large batch.

    All arithmetic is in float32, and the module's tensors stay in float32 when it is cast (`.half()`, `.to(dtype)`):
    half precision is too coarse for moving averages and too small for counts.

    Args:
        num_embeddings: number of codes, K.
        embedding_dim: channels of a code, C.
        commitment_cost: weight of the loss that pulls the encoder towards its codes.
        decay: decay of the moving averages.
        epsilon: Laplace smoothing of the counts.
        warm_counts: start the counts at one instead of zero, so that codes do not move until they are chosen.
        data_init: draw the codes from the batch of the first training forward pass.
        restart_dead: move codes that are rarely chosen to vectors of the current batch.
        sync: share statistics and draws between processes, so that their codebooks stay identical.
        seed: random seed; every draw depends only on it and on the number of updates.
        dead_code_threshold: move codes whose count falls below it to the first vectors of the batch, as in CardioDiT's
            newest code; None for no such rule.
    """

    ema_sums: Tensor
    ema_counts: Tensor
    num_updates: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        warm_counts: bool = True,
        data_init: bool = True,
        restart_dead: bool = True,
        sync: bool = True,
        seed: int = 0,
        dead_code_threshold: float | None = None,
    ) -> None:
        super().__init__()
        if num_embeddings > MOST_CODES:
            raise CardioDiTError(f"num_embeddings={num_embeddings} is too large: a codebook has at most {MOST_CODES}.")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        self.data_init = data_init
        self.restart_dead = restart_dead
        self.sync = sync
        self.seed = seed
        self.dead_code_threshold = dead_code_threshold
        self.accumulate = False
        self._collected: list[tuple[Tensor, Tensor]] = []  # vectors (N, C) and their codes (N,) since the last update
        self._counted: tuple[int, int] | None = None  # state of `num_updates` when it was read
        self._updates = 0

        # Devices and dtypes are explicit because loaders build models under `torch.device("meta")` and with a
        # half-precision default: the draw needs a real device, and buffers stay real, as in init_empty_weights.
        device = torch.get_default_device()
        codes = torch.randn(
            num_embeddings, embedding_dim, generator=generator_for(seed, 0), device="cpu", dtype=torch.float32
        )
        self.weight = nn.Parameter(codes.to(device), requires_grad=False)  # (K, C)
        real = torch.device("cpu") if device.type == "meta" else device
        counts = torch.full((num_embeddings,), float(warm_counts), device=real, dtype=torch.float32)
        self.register_buffer("ema_sums", codes.to(real, copy=True))  # (K, C)
        self.register_buffer("ema_counts", counts)  # (K,)
        self.register_buffer("num_updates", torch.zeros((), device=real, dtype=torch.int64))

    def forward(self, z: Tensor, may_learn: bool = True) -> QuantizerOutput:
        """Quantise `z` `(B, C, *spatial)` with any number of spatial axes.

        `may_learn=False` leaves the codes unchanged even in training mode, for latents that are only decoded.
        """
        if z.ndim < 2 or z.shape[1] != self.embedding_dim:
            raise CardioDiTError(
                f"The codebook takes latents (B, {self.embedding_dim}, *spatial), got {tuple(z.shape)}."
            )
        with without_autocast(z.device):
            vectors = z.float()
            flat = vectors.detach().movedim(1, -1).reshape(-1, self.embedding_dim)  # (N, C)
            is_learning = self.training and may_learn
            if is_learning:
                self._prepare_update(flat)
            indices = self.nearest(flat)  # (N,)
            spatial_indices = indices.view(z.shape[0], *z.shape[2:])  # (B, *spatial)
            quantized = self.embed(spatial_indices).detach().float()  # (B, C, *spatial)
            if is_learning:
                self._collected.append((flat, indices))
                if not self.accumulate:
                    self.update()
            loss = self.commitment_cost * F.mse_loss(vectors, quantized)
            latents = vectors + (quantized - vectors).detach()
        return QuantizerOutput(latents=latents.to(z.dtype), indices=spatial_indices, commitment_loss=loss)

    @torch.no_grad()
    def nearest(self, flat: Tensor) -> Tensor:
        """Return the index `(N,)` of the code nearest to each vector of `flat` `(N, C)`, the lowest in a tie."""
        with without_autocast(flat.device), full_float32():
            codes = self.weight.float()
            # ||z - e||^2 = ||z||^2 + 2 (||e||^2 / 2 - z.e), and ||z||^2 is the same for all codes
            half_norms = codes.square().sum(dim=1) / 2  # (K,)
            rows = max(1, min(len(flat), MAX_DISTANCES // self.num_embeddings))
            # One buffer for all blocks: allocating it again between small results would fragment the heap.
            distances = flat.new_empty(rows, self.num_embeddings, dtype=torch.float32)
            smallest = flat.new_empty(len(flat), dtype=torch.float32)
            indices = flat.new_empty(len(flat), dtype=torch.int64)
            for first in range(0, len(flat), rows):
                block = flat[first : first + rows].float()
                part = slice(first, first + len(block))
                torch.addmm(half_norms, block, codes.t(), alpha=-1, out=distances[: len(block)])
                torch.min(distances[: len(block)], dim=1, out=(smallest[part], indices[part]))
        return indices

    def embed(self, indices: Tensor) -> Tensor:
        """Return the codes `(B, C, *spatial)` of `indices` `(B, *spatial)`."""
        return F.embedding(indices, self.weight).movedim(-1, 1)

    @torch.no_grad()
    def _prepare_update(self, flat: Tensor) -> None:
        if self.weight.dtype != torch.float32:
            self.float()  # loaders assign half-precision tensors without calling `_apply`
        if self.data_init and self._count_updates() == 0:
            codes = self._draw(flat, torch.ones(self.num_embeddings, dtype=torch.bool, device=flat.device))
            self.weight.copy_(codes)
            self.ema_sums.copy_(codes)

    def _count_updates(self) -> int:
        """Return the number of updates, reading it from the device only after something else has changed it."""
        version = (id(self.num_updates), self.num_updates._version)
        if self._counted != version:
            self._counted, self._updates = version, int(self.num_updates)
        return self._updates

    @torch.no_grad()
    def update(self) -> None:
        """Apply equations 6 to 8 of appendix A.1 with smoothed counts, over the collected vectors of all processes.

        No value is read back from the device, which would wait until it has done its work.
        """
        flat, indices = (torch.cat(parts) for parts in zip(*self._collected, strict=True))
        self._collected.clear()
        counts = flat.new_zeros(self.num_embeddings).index_add_(0, indices, flat.new_ones(len(indices)))
        sums = torch.zeros_like(self.ema_sums).index_add_(0, indices, flat)
        both = self._sum_over_processes(torch.cat([counts.unsqueeze(1), sums], dim=1))  # (K, 1 + C)
        counts, sums = both[:, 0], both[:, 1:]
        updates = self._count_updates() + 1
        self.num_updates += 1
        self._counted, self._updates = (id(self.num_updates), self.num_updates._version), updates
        self.ema_counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.ema_sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.dead_code_threshold is not None:
            self._replace_dead(flat, self.dead_code_threshold)
        total = self.ema_counts.sum()
        smoothed = (self.ema_counts + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.weight.copy_(self.ema_sums / smoothed.unsqueeze(1))
        if self.restart_dead:
            self._restart_dead(flat)

    def _replace_dead(self, flat: Tensor, threshold: float) -> None:
        """Move codes with too low a count to the first vectors of the batch (of the first process), in their order."""
        dead = self.ema_counts < threshold  # (K,)
        vectors = flat[(dead.cumsum(0) - 1).clamp(0, len(flat) - 1)]
        if self._is_distributed():
            vectors = self._sum_over_processes(vectors * float(dist.get_rank() == 0))
        self.ema_counts.copy_(torch.where(dead, torch.full_like(self.ema_counts, threshold), self.ema_counts))
        self.ema_sums.copy_(torch.where(dead.unsqueeze(1), vectors * threshold, self.ema_sums))

    def _restart_dead(self, flat: Tensor) -> None:
        """Move codes that are rarely chosen to vectors of this batch.

        The threshold is relative to the mean count, at most one. A fixed threshold would declare every code dead when
        a batch has fewer vectors than codes, since the counts then average less than one; the running mean, unlike the
        size of this batch, is robust to batches of unequal size. The counts are synchronised, so that every process
        makes the same decision and takes part in the same draw.
        """
        initial_count = self.ema_counts.mean().clamp(max=1)
        dead = self.ema_counts < DEAD_BELOW * initial_count  # (K,)
        codes, is_dead = self._draw(flat, dead), dead.unsqueeze(1)
        self.weight.copy_(torch.where(is_dead, codes, self.weight))
        self.ema_sums.copy_(torch.where(is_dead, codes * initial_count, self.ema_sums))
        self.ema_counts.copy_(torch.where(dead, initial_count, self.ema_counts))

    def _draw(self, flat: Tensor, wanted: Tensor) -> Tensor:
        """Draw a vector for each wanted code `(K,)` from the batches of all processes; each gets the same `(K, C)`.

        The vectors are divided into as many strata as codes are wanted, and one is drawn from each: they are distinct
        if there are enough; otherwise they repeat evenly, with a little noise added. Rows of other codes mean nothing.
        """
        first = torch.zeros((), dtype=torch.int64, device=flat.device)
        total: Tensor | int = len(flat)
        if self._is_distributed():
            sizes = first.new_zeros(dist.get_world_size())
            sizes[dist.get_rank()] = len(flat)
            ends = self._sum_over_processes(sizes).cumsum(0)
            first, total = ends[dist.get_rank()] - len(flat), ends[-1]
        generator = generator_for(self.seed, self._count_updates())
        lots = upload(torch.randint(2**LOT_BITS, (self.num_embeddings,), generator=generator), flat.device)
        place, count = wanted.cumsum(0) - 1, wanted.sum().clamp(min=1)
        start, end = place * total // count, (place + 1) * total // count
        chosen = start + ((lots * (end - start)) >> LOT_BITS) - first  # (K,), numbered from this process's first vector
        own = wanted & (chosen >= 0) & (chosen < len(flat))
        drawn = flat[chosen.clamp(0, len(flat) - 1)].masked_fill(~own.unsqueeze(1), 0.0)
        drawn = self._sum_over_processes(drawn)  # one process contributes each row, the others zeros
        if len(flat) < self.num_embeddings:
            noise = torch.randn(drawn.shape, generator=generator, dtype=drawn.dtype)
            mean = drawn.sum(dim=0) / count
            variance = (drawn - mean).masked_fill(~wanted.unsqueeze(1), 0.0).square().sum(dim=0) / count
            drawn += (count > total) * JITTER * variance.sqrt() * upload(noise, flat.device)
        return drawn

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self._is_distributed():
            dist.all_reduce(values)
        return values

    def _is_distributed(self) -> bool:
        return self.sync and dist.is_available() and dist.is_initialized()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_float32(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            was_cast = result.is_floating_point() and result.dtype != torch.float32
            return tensor.to(device=result.device, dtype=torch.float32) if was_cast else result

        return super()._apply(keep_float32, recurse)


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(entropy) of code counts: the number of equally used codes that would carry as much information."""
    return torch.exp(torch.special.entr(counts / counts.sum()).sum())


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply matrices in full float32: TF32 finds another code for up to 3% of the vectors."""
    matmul = torch.backends.cuda.matmul  # as training and `encode` set it: torch refuses to mix its two interfaces
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = before
