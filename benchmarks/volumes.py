"""Measure the cost of VolDiT's full-size volumes, 512 × 512 × 256 voxels: tiled decoding and a step of each model.

    python benchmarks/volumes.py --decode     # a whole volume in tiles; about an hour on a CPU
    python benchmarks/volumes.py --seams      # tiled compared with untiled, on a size that fits untiled
    python benchmarks/volumes.py --table      # memory and time of XS to L with patches of 2 and 4
    python benchmarks/volumes.py --sample     # on a GPU: a whole volume of VolDiT-B/4, seconds and peak memory

Memory is computed from fake tensors, unless marked as measured. The time of a step is measured if the machine has four
times the memory it needs; otherwise it is estimated from counted operations and the speed of the last measured model,
and marked. The table omits dropout, for which attention on a CPU would store all scores.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import count_operations, interleaved, machine, peak_mib, synchronize

from cardiodit import DiT3DTransformerModel, VolDiTPipeline, VQModel3D
from cardiodit._util.memory import estimate_memory, peak_bytes, weight_bytes
from cardiodit.schedulers import make_scheduler

CONFIGS = Path(__file__).parents[1] / "configs" / "voldit"
LATENT = (64, 64, 32)
PUBLISHED_VQ = {"num_res_layers": 2, "num_embeddings": 4096, "embedding_dim": 8}
WIDTHS = (128, 256, 512)
GIB = 2**30
MEMORY_FACTOR, MAX_SECONDS = 4, 60.0  # a step is timed if this many times its memory is free, and up to this duration
LIMIT, SEAM = 8.0, 1e-3
STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("decode", "seams", "table", "sample"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(machine())
    for name, run in {"seams": seams, "table": table, "decode": decode, "sample": sample}.items():
        if getattr(arguments, name):
            run(arguments.device, getattr(torch, arguments.dtype))


def vq_model() -> VQModel3D:
    """Return the published VQ model with random weights, which cost the same."""
    torch.manual_seed(0)
    return VQModel3D(channels=WIDTHS, num_res_channels=WIDTHS, **PUBLISHED_VQ).eval()


@torch.no_grad()
def decode(device: str, dtype: torch.dtype) -> None:
    model = vq_model().to(device, dtype)
    model.enable_tiling()
    latents = torch.randn(1, 8, *LATENT, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    synchronize()
    start = time.perf_counter()
    peak = measured_gib(lambda: model.decode(latents), device) + weight_bytes(model) / GIB
    synchronize()
    print(
        f"decode 512 × 512 × 256 in tiles, {dtype}: {time.perf_counter() - start:.0f} s, "
        f"{peak:.2f} GiB with weights (measured); "
        f"limit {LIMIT:.0f}. Untiled: {untiled_gib():.1f} GiB (computed)."
    )


def untiled_gib() -> float:
    with torch.device("meta"):
        model = vq_model()
    latents = torch.zeros(1, 8, *LATENT, device="meta")
    return (peak_bytes(lambda: model.decode(latents).sample) + weight_bytes(model)) / GIB


@torch.no_grad()
def seams(device: str, dtype: torch.dtype) -> None:
    """Decode a narrow volume of full length: two tiles that overlap like those of the whole volume."""
    model = vq_model().to(device)
    latents = torch.randn(1, 8, LATENT[0], 8, 4, generator=torch.Generator().manual_seed(0)).to(device)
    whole = model.decode(latents).sample
    model.enable_tiling()
    difference = (model.decode(latents).sample - whole).abs().max() / (whole.max() - whole.min())
    print(f"seams of {tuple(whole.shape)}: {difference:.1e} of the range (limit {SEAM:.0e})")


def table(device: str, dtype: torch.dtype) -> None:
    print("model | weights, M | tokens | sampling, GiB | training, GiB | with checkpointing, bf16 | s per step")
    speed = math.nan  # operations per second of the last model that was timed
    for patch in (4, 2):
        for size in ("xs", "s", "b", "l"):
            config = yaml.safe_load((CONFIGS / f"dit_ds8_{size}{patch}.yaml").read_text())["model"]
            config["dropout"] = 0.0
            cost = cost_of_step(config)
            seconds, mark = cost.operations / speed, " (estimated)"
            if cost.sampling * MEMORY_FACTOR < free_bytes(device) and not seconds > MAX_SECONDS:
                seconds, mark = seconds_of_step(DiT3DTransformerModel(in_channels=8, **config).to(device, dtype)), ""
                speed = cost.operations / seconds
            print(
                f"VolDiT-{size.upper()}/{patch} | {cost.weights / 1e6:.2f} | {cost.tokens} | "
                f"{cost.sampling / GIB:.2f} | {cost.training / GIB:.1f} | {cost.lean / GIB:.1f} | {seconds:.2f}{mark}"
            )


@dataclass(frozen=True)
class Cost:
    """Cost for one volume, in bytes: sampling, training in float32, and in bfloat16 with checkpointing (`lean`)."""

    weights: int  # including position embeddings, as in the publication
    tokens: int
    sampling: int
    training: int
    lean: int
    operations: int


def cost_of_step(config: dict[str, Any]) -> Cost:
    with torch.device("meta"):
        model = DiT3DTransformerModel(in_channels=8, **config)
    model = model.to_empty(device="cpu").eval()  # untouched weights take no memory
    latents, step = torch.zeros(1, 8, *LATENT), torch.zeros(1)
    inputs = {"hidden_states": latents, "timestep": step}
    with torch.no_grad():
        sampling = peak_bytes(lambda: model(latents, step).sample) + weight_bytes(model)
        operations = count_operations(lambda: model(latents, step))
    training = estimate_memory(model.train(), inputs)["total"]
    model.enable_gradient_checkpointing()
    lean = estimate_memory(model, inputs, autocast=torch.bfloat16)["total"]
    tokens = math.prod(LATENT) // math.prod(config["patch_size"])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    weights = sum(p.numel() for p in model.parameters()) + tokens * width
    return Cost(weights, tokens, sampling, training, lean, operations)


@torch.no_grad()
def seconds_of_step(model: DiT3DTransformerModel) -> float:
    reference = next(model.parameters())
    latents = torch.randn(1, 8, *LATENT).to(reference)
    model.eval()
    return interleaved({"step": lambda: model(latents, 7)}, rounds=3)["step"]


def sample(device: str, dtype: torch.dtype) -> None:
    config = yaml.safe_load((CONFIGS / "dit_ds8_b4.yaml").read_text())["model"]
    transformer = DiT3DTransformerModel(in_channels=8, **config).eval()
    vae = vq_model()
    vae.enable_tiling()
    pipe = VolDiTPipeline(vae, transformer, make_scheduler("dpm++")).to(device, dtype)

    def run() -> None:
        start = time.perf_counter()
        pipe(num_inference_steps=STEPS, seed=0)
        print(f"a volume of 512 × 512 × 256, {STEPS} steps, {dtype}: {time.perf_counter() - start:.1f} s")

    run()  # warm-up
    print(f"peak {measured_gib(run, device) + weight_bytes(vae, transformer) / GIB:.2f} GiB (measured)")


def measured_gib(run: Callable[[], object], device: str) -> float:
    """Return the peak memory of a call in GiB, without the weights, which are loaded before."""
    if device == "cpu":
        return peak_mib(run) / 1024
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def free_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


if __name__ == "__main__":
    main()
