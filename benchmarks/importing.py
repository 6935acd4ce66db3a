"""Measure the time that `import cardiodit` adds to importing torch and diffusers.

    python benchmarks/importing.py

The base imports what any diffusers pipeline with a model imports. Both run alternately, in separate processes.
"""

import statistics
import subprocess
import sys
import time

BASE = (
    "import torch, diffusers; from diffusers import DiffusionPipeline, DDIMScheduler, DDPMScheduler, "
    "DPMSolverMultistepScheduler, UniPCMultistepScheduler; from diffusers.models import AutoencoderKL; "
    "from diffusers.models.transformers import DiTTransformer2DModel; from diffusers.loaders import PeftAdapterMixin"
)
ROUNDS = 7


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    found: dict[str, list[float]] = {"base": [], "cardiodit": []}
    for _ in range(ROUNDS):
        found["base"].append(seconds(BASE))
        found["cardiodit"].append(seconds(f"{BASE}; import cardiodit"))
    base, ours = statistics.median(found["base"]), statistics.median(found["cardiodit"])
    print(f"torch and diffusers {base:.2f} s, with cardiodit {ours:.2f} s: {ours - base:+.2f} s")


if __name__ == "__main__":
    main()
