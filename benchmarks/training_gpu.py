"""Training steps of dit_ds8_b4 on a GPU: samples a second, share of the GPU's arithmetic that is used, peak memory.

    python benchmarks/training_gpu.py --output results             # eight cases, a table and results/training_gpu.json
    python benchmarks/training_gpu.py --output results --dry_run   # the same with a tiny model, also on a CPU

A step is what training/train_dit.py does: noise, bf16 autocast, loss, backward pass, clipping, AdamW, moving average.
Counted as useful are the matrix products and attention of one forward pass, three times (forward, and twice for
backward); what checkpointing computes again is not counted.
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
from cardiodit.training.objectives import Denoising

# Dense bf16, TFLOP/s, as the makers state them; the first name that is part of the GPU's name counts.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "A40": 150,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
PUBLISHED: dict[str, Any] = {"num_layers": 12, "sample_size": (6, 64, 64, 8)}
TINY: dict[str, Any] = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "sample_size": (2, 8, 8, 4),
}
MARGIN = 0.92  # of the memory; the rest is for what the allocator cannot use
MOST = 64  # samples a batch; more is not faster


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
    samples_a_second: float
    tflops: float
    utilisation: float | None  # where the GPU's peak is known
    peak_gib: float


def forward_flops(settings: dict[str, Any]) -> int:
    """Of one sample, counted on tensors without content."""
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
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=1e-4)
    ema = EMAModel(parameters, 0.9999)
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
        step()  # compiles, and makes what the optimizer keeps
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
    peak = next((peak for name, peak in PEAKS.items() if name in machine()), None)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    used = tflops / peak if peak else None
    return Result(**asdict(case), milliseconds=1000 * taken, samples_a_second=case.batch / taken, tflops=tflops,
                  utilisation=used, peak_gib=memory)  # fmt: skip


def largest_batch(settings: dict[str, Any], case: Case, device: str, backend: str) -> int:
    """Foretold from what batches of 1 and 2 need, then tried; at most MOST."""
    if device != "cuda":
        return 3
    first, second = (_peak_bytes(settings, Case(n, case.compiled, case.checkpointing), backend) for n in (1, 2))
    room = MARGIN * torch.cuda.get_device_properties(0).total_memory - first
    batch = max(1, min(MOST, 1 + int(room // max(1, second - first))))
    while batch > 1:
        try:
            _peak_bytes(settings, Case(batch, case.compiled, case.checkpointing), backend)
            break
        except torch.cuda.OutOfMemoryError:
            batch = int(0.9 * batch)
        forget(device)  # outside of the handler, which would hold the failed step's tensors
    return max(1, batch)


def _peak_bytes(settings: dict[str, Any], case: Case, backend: str) -> int:
    forget("cuda")
    torch.cuda.reset_peak_memory_stats()
    step = training_step(settings, case, "cuda", backend)
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def forget(device: str) -> None:
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
        f"| {result.batch} | {kind} | {checkpointing} | {result.milliseconds:.1f} | {result.samples_a_second:.2f} | "
        f"{result.tflops:.1f} | {used} | {result.peak_gib:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for training_gpu.json")
    parser.add_argument("--rounds", type=int, default=7, help="of three steps each")
    parser.add_argument("--dry_run", action="store_true", help="a tiny model, on whatever there is")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.dry_run:
        parser.error("there is no CUDA GPU; --dry_run tries the rest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings, rounds = (TINY, 2) if arguments.dry_run else (PUBLISHED, arguments.rounds)
    backend = "inductor" if device == "cuda" else "aot_eager"  # which needs no C++ compiler
    torch.backends.cuda.matmul.allow_tf32 = True  # as the script has it
    arguments.output.mkdir(parents=True, exist_ok=True)

    flops = forward_flops(settings)
    print(f"{machine()}\n{flops / 1e12:.4g} TFLOP a forward pass of one sample, {3 * flops / 1e12:.4g} a training step")
    print("| batch | blocks | checkpointing | ms a step | samples/s | TFLOP/s | of the peak | peak GiB |")
    print("|---|---|---|---|---|---|---|---|")
    results: list[Result] = []
    for compiled, checkpointing in product((False, True), (False, True)):
        largest = largest_batch(settings, Case(1, compiled, checkpointing), device, backend)
        for batch in sorted({1, largest}):
            forget(device)
            results.append(measure(settings, Case(batch, compiled, checkpointing), device, rounds, backend))
            print(row(results[-1]), flush=True)
            record = {"machine": machine(), "forward_flops": flops, "dry_run": arguments.dry_run}
            rows = [asdict(result) for result in results]
            text = json.dumps({**record, "results": rows}, indent=2)  # all that is known, should the next case fail
            (arguments.output / "training_gpu.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
