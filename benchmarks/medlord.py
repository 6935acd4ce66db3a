"""Compute memory and operations that MedLoRD's full-size volumes need, 512 × 512 × 256 voxels, for every U-Net.

    python benchmarks/medlord.py               # all five U-Nets on the latents of ds8 and ds4
    python benchmarks/medlord.py medlord       # one of them
    python benchmarks/medlord.py --measure     # a step of `medlord` on ds8 and a decoded tile on this machine's CPU

Memory is computed from fake tensors and includes the weights, for training also AdamW's moments and the EMA weights;
workspaces of kernels are not included, except beside what is measured. Sampling and decoding are in bfloat16, decoding
in tiles; training is in bfloat16 with gradient checkpointing, one volume at a time. The ControlNet is half as wide as
its U-Net, for one mask.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import count_operations, machine, peak_mib

from cardiodit import MedLoRDControlNetModel, MedLoRDUNetModel, VQModel3D
from cardiodit._util.memory import estimate_memory, peak_bytes, weight_bytes

CONFIGS = Path(__file__).parents[1] / "configs" / "medlord"
UNETS = ("medlord", "medlord_1000", "medlord_3level_300", "medlord_3level_1000", "medlord_wide")
LATENTS = {"ds8_new": (64, 64, 32), "ds4_new": (128, 128, 64)}
VOXELS = (512, 512, 256)
GIB = 2**30
SAMPLING_LIMIT, TRAINING_LIMIT = 8.0, 16.0  # GB


@dataclass(frozen=True)
class Cost:
    """Cost of one volume, in bytes and operations.

    Args:
        weights: number of weights of the U-Net.
        step: a denoising step.
        steered: the same with a ControlNet.
        masks: embedding the masks, once.
        training: a training step of the U-Net.
        operations: multiplications and additions of a denoising step.
    """

    weights: int
    step: int
    steered: int
    masks: int
    training: int
    operations: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unets", nargs="*", choices=[*UNETS, []], help="default: all")
    parser.add_argument("--measure", action="store_true", help="measure memory on the CPU, beside the estimate")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    names = arguments.unets or [name for name in UNETS if not name.endswith("_1000")]
    for autoencoder, size in LATENTS.items():
        decoding = decoding_bytes(autoencoder, size)
        print(f"{autoencoder}: latents of {' × '.join(map(str, size))}, decoding {decoding / GIB:.2f} GiB")
        print("U-Net | weights, M | step | with ControlNet | masks | peak of sampling | training | TFLOP a step")
        for name in names:
            cost = cost_of(name, size)
            peak = max(cost.step, decoding)
            numbers = [cost.step, cost.steered, cost.masks, peak, cost.training]
            print(
                f"{name} | {cost.weights / 1e6:.2f} | "
                + " | ".join(f"{number / GIB:.2f}" for number in numbers)
                + f" | {cost.operations / 1e12:.2f}"
            )
    print(f"Limits: {SAMPLING_LIMIT * 1e9 / GIB:.2f} GiB for sampling, {TRAINING_LIMIT * 1e9 / GIB:.2f} for training.")


@torch.no_grad()
def measure() -> None:
    """Compare the peak of a step, and of decoding a smaller volume, with what `cardiodit sample --estimate` says."""
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # freed memory must be returned, or it hides what a run needs
        os.environ |= dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.manual_seed(0)
    print(machine())
    for dtype in (torch.float32, torch.bfloat16):
        unet = MedLoRDUNetModel(sample_size=LATENTS["ds8_new"], **read("medlord")).eval().to(dtype)
        vae = VQModel3D(**read("vqgan_ds8_new")).eval().to(dtype)
        noise, small = torch.randn(1, 8, *LATENTS["ds8_new"], dtype=dtype), torch.randn(1, 8, 20, 20, 16, dtype=dtype)
        runs = {"a step, 64 × 64 × 32": partial(unet, noise, 7), "decoding 160 × 160 × 128": partial(vae.decode, small)}
        for what, run in runs.items():
            estimated = peak_bytes(run, kernels=True)
            run()  # warm-up: libraries allocate their own memory once
            print(f"{what}, {dtype}: {peak_mib(run) / 1024:.3f} GiB measured, {estimated / GIB:.3f} GiB estimated")


def untouched(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Any:
    """Return a model whose weights are allocated but never written, so that they take no memory."""
    with torch.device("meta"):
        model = make()
    return model.to(dtype).to_empty(device="cpu")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]


@torch.no_grad()
def decoding_bytes(autoencoder: str, size: tuple[int, ...]) -> int:
    model = untouched(lambda: VQModel3D(**read(f"vqgan_{autoencoder}")), torch.bfloat16).eval()
    model.enable_tiling()
    latents = torch.zeros(1, 8, *size, dtype=torch.bfloat16)
    return peak_bytes(lambda: model.decode(latents).sample) + weight_bytes(model)


def cost_of(name: str, size: tuple[int, ...]) -> Cost:
    config = read(name)
    unet = untouched(lambda: MedLoRDUNetModel(sample_size=size, **config), torch.bfloat16).eval()
    levels = {2: (32, 64), 3: (32, 64, 128)}[(VOXELS[0] // size[0]).bit_length() - 1]
    made = lambda: MedLoRDControlNetModel(**config, condition_widths=levels)  # noqa: E731
    controlnet = untouched(made, torch.bfloat16).eval()
    latents, time = torch.zeros(1, 8, *size, dtype=torch.bfloat16), torch.zeros(1)
    masks, grid = torch.zeros(1, 1, *VOXELS, dtype=torch.bfloat16), unet.grid_of(size)
    embedded = torch.zeros(1, *controlnet.embedded_shape(unet, grid), dtype=torch.bfloat16)
    both = weight_bytes(unet) + weight_bytes(controlnet)
    with torch.no_grad():
        step = peak_bytes(lambda: unet(latents, time).sample) + weight_bytes(unet)
        steered = both + peak_bytes(lambda: unet(latents, time, **controlnet.control(embedded, unet, latents, time)))
        embedding = both + peak_bytes(lambda: controlnet.embed(masks, unet, grid))
        operations = count_operations(lambda: unet(latents, time))
    trained = untouched(lambda: MedLoRDUNetModel(sample_size=size, **config)).train()
    trained.enable_gradient_checkpointing()
    inputs = {"sample": latents.float(), "timestep": time}
    training = estimate_memory(trained, inputs, autocast=torch.bfloat16)["total"]
    return Cost(sum(p.numel() for p in unet.parameters()), step, steered, embedding, training, operations)


if __name__ == "__main__":
    main()
