"""Measure training steps of dit_ds8_b4 on a GPU: samples per second, utilisation, peak memory.

    python benchmarks/training_gpu.py --output results             # eight cases; a table and training_gpu.json
    python benchmarks/training_gpu.py --output results --dry_run   # the same with a tiny model, even on a CPU

A step does what training/train_dit.py does: noise, bf16 autocast, loss, backward pass, clipping, AdamW, EMA.
Utilisation counts the matrix products and attention of one forward pass three times (once for forward, twice for
backward), without the recomputation of checkpointing.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from measuring import machine
from torch.utils.flop_counter import FlopCounterMode

from cardiodit import DiT4DTransformerModel
from cardiodit._util.gpu import set_kernels
from cardiodit.energy.forecast import known_gpu
from cardiodit.training.objectives import Denoising

PUBLISHED: dict[str, Any] = {"num_layers": 12, "sample_size": (6, 64, 64, 8)}
TINY: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "sample_size": (2, 8, 8, 4),
}
MEMORY_SHARE = 0.92  # usable share of the memory; the rest allows for fragmentation
MAX_BATCH = 64  # larger batches are not faster


@dataclass(frozen=True)
class Case:
    batch: int
    compiled: bool
    checkpointing: bool


@dataclass(frozen=True)
class Result:
    batch: int
    compiled: bool
    checkpointing: bool
    milliseconds: float
    samples_per_second: float
    tflops: float
    utilisation: float | None  # None if the GPU's peak is unknown
    peak_gib: float


def forward_flops(settings: dict[str, Any]) -> int:
    """Count the operations of a forward pass for one sample, on meta tensors."""
    with torch.device("meta"), torch.no_grad():
        model = DiT4DTransformerModel(**settings)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 8, *settings["sample_size"]), torch.empty(1, dtype=torch.long))
    return counter.get_total_flops()


def training_step(settings: dict[str, Any], case: Case, device: str, backend: str) -> Callable[[], None]:
    model = DiT4DTransformerModel(**settings).to(device).train()
    if case.checkpointing:
        model.enable_gradient_checkpointing()
    if case.compiled:
        model.compile_repeated_blocks(fullgraph=True, backend=backend)
    parameters = list(model.parameters())
    is_cuda = device == "cuda"  # as in the training script
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=1e-4, fused=is_cuda or None)
    ema = EMAModel(parameters, 0.9999, foreach=is_cuda)
    scheduler = Denoising().scheduler
    latents, noise = torch.randn(2, case.batch, 8, *settings["sample_size"], device=device)
    timesteps = torch.randint(300, (case.batch,), device=device)

    def step() -> None:
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        with torch.autocast(device, torch.bfloat16):
            predicted = model(noisy, timesteps).sample
        F.smooth_l1_loss(predicted.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)

    return step


def measure(settings: dict[str, Any], case: Case, device: str, rounds: int, backend: str) -> Result:
    step = training_step(settings, case, device, backend)
    for _ in range(3):
        step()  # compiles, and allocates the optimizer's state
    _synchronize(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(3):
            step()
        _synchronize(device)
        seconds.append((time.perf_counter() - start) / 3)
    taken = statistics.median(seconds)
    tflops = 3 * forward_flops(settings) * case.batch / taken / 1e12
    device = known_gpu(machine())
    peak = device.tflops if device else None
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    used = tflops / peak if peak else None
    return Result(**asdict(case), milliseconds=1000 * taken, samples_per_second=case.batch / taken, tflops=tflops,
                  utilisation=used, peak_gib=memory)  # fmt: skip


def largest_batch(settings: dict[str, Any], case: Case, device: str, backend: str) -> int:
    """Predict the largest batch from the memory of batches of 1 and 2, then try it; at most MAX_BATCH."""
    if device != "cuda":
        return 3
    first, second = (_peak_bytes(settings, Case(n, case.compiled, case.checkpointing), backend) for n in (1, 2))
    free = MEMORY_SHARE * torch.cuda.get_device_properties(0).total_memory - first
    batch = max(1, min(MAX_BATCH, 1 + int(free // max(1, second - first))))
    while batch > 1:
        try:
            _peak_bytes(settings, Case(batch, case.compiled, case.checkpointing), backend)
            break
        except torch.cuda.OutOfMemoryError:
            batch = int(0.9 * batch)
        free_memory(device)  # outside the handler, which would keep the failed step's tensors alive
    return max(1, batch)


def _peak_bytes(settings: dict[str, Any], case: Case, backend: str) -> int:
    free_memory("cuda")
    torch.cuda.reset_peak_memory_stats()
    step = training_step(settings, case, "cuda", backend)
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def free_memory(device: str) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def row(result: Result) -> str:
    used = "-" if result.utilisation is None else f"{result.utilisation:.1%}"
    kind = "compiled" if result.compiled else "eager"
    checkpointing = "yes" if result.checkpointing else "no"
    return (
        f"| {result.batch} | {kind} | {checkpointing} | {result.milliseconds:.1f} | {result.samples_per_second:.2f} | "
        f"{result.tflops:.1f} | {used} | {result.peak_gib:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for training_gpu.json")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of three steps each (default %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="use a tiny model, on any device")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.dry_run:
        parser.error("no CUDA GPU was found; use --dry_run to test the script without one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings, rounds = (TINY, 2) if arguments.dry_run else (PUBLISHED, arguments.rounds)
    backend = "inductor" if device == "cuda" else "aot_eager"  # aot_eager needs no C++ compiler
    set_kernels(benchmark=True)
    arguments.output.mkdir(parents=True, exist_ok=True)

    flops = forward_flops(settings)
    print(f"{machine()}\n{flops / 1e12:.4g} TFLOP per forward pass, {3 * flops / 1e12:.4g} per training step")
    print("| batch | blocks | checkpointing | ms per step | samples/s | TFLOP/s | utilisation | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    results: list[Result] = []
    for compiled, checkpointing in product((False, True), (False, True)):
        largest = largest_batch(settings, Case(1, compiled, checkpointing), device, backend)
        for batch in sorted({1, largest}):
            free_memory(device)
            results.append(measure(settings, Case(batch, compiled, checkpointing), device, rounds, backend))
            print(row(results[-1]), flush=True)
            record = {"machine": machine(), "forward_flops": flops, "dry_run": arguments.dry_run}
            rows = [asdict(result) for result in results]
            # Written after each case, in case the next one fails.
            text = json.dumps({**record, "results": rows}, indent=2)
            (arguments.output / "training_gpu.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
