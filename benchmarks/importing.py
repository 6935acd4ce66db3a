"""Time that `import cardiodit` and its public names add to torch and diffusers, and time of `cardiodit --help`.

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
    found: dict[str, list[float]] = {"base": [], "cardiodit": [], "pass": [], "help": []}
    for _ in range(ROUNDS):
        found["base"].append(seconds(BASE))
        found["cardiodit"].append(seconds(f"{BASE}; from cardiodit import CardioDiTControlPipeline, PRDiTPipeline"))
        found["pass"].append(seconds("pass"))
        found["help"].append(seconds("from cardiodit.cli import build_parser; build_parser().print_help()"))
    base, ours = statistics.median(found["base"]), statistics.median(found["cardiodit"])
    nothing, shown = statistics.median(found["pass"]), statistics.median(found["help"])
    print(f"cardiodit --help {shown:.2f} s, python -c pass {nothing:.2f} s: {shown / nothing:.1f} times")
    print(f"torch and diffusers {base:.2f} s, with cardiodit {ours:.2f} s: {ours - base:+.2f} s")


if __name__ == "__main__":
    main()
