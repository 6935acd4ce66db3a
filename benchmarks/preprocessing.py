"""Compare preprocessing from a gzipped NIfTI file to a tensor with the same chain of MONAI transforms.

    python benchmarks/preprocessing.py

Both run alternately on the same files, on one core. Memory is the peak of a separate process, without its imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import peak_mib

from cardiodit.imaging import Geometry, write_nifti
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.phantom import draw_heart, render
from cardiodit.imaging.preprocessing import Preprocessing

SIZE = (192, 192, 10, 30)
FRAMES = 32
CHAINS = {
    "published: minimum-maximum, repeat to 32 frames, pad to 256": Preprocessing(
        size=(256, 256, 10), frames=FRAMES, cycle="repeat"
    ),
    "resampled: 1.4 mm, percentiles, crop to 128, one beat to 32 frames": Preprocessing(
        (1.4, 1.4, None), (128, 128, 10), FRAMES, intensity=Intensity("p0.5", "p99.5")
    ),
}


def ours(steps: Preprocessing) -> Callable[[Path], torch.Tensor]:
    return lambda path: steps(read_nifti(path)).tensor()


def monai(steps: Preprocessing) -> Callable[[Path], torch.Tensor]:
    """Return the fastest chain a MONAI user would write: time as channels, so that space is resampled in one call."""
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        Lambda,
        LoadImage,
        ResizeWithPadOrCrop,
        ScaleIntensity,
        ScaleIntensityRangePercentiles,
        Spacing,
    )

    load = [LoadImage(image_only=True), EnsureChannelFirst(channel_dim=3)]  # (T, H, W, D)
    if steps.cycle == "repeat":
        chain = [
            *load,
            ScaleIntensity(-1, 1),
            Lambda(lambda x: torch.cat([x] * (FRAMES // x.shape[0] + 1))[:FRAMES]),
        ]
    else:
        chain = [
            *load,
            Spacing((1.4, 1.4, -1), mode="bilinear"),
            ScaleIntensityRangePercentiles(0.5, 99.5, -1, 1, clip=True),
            Lambda(_linear_in_time),
        ]
    compose = Compose([*chain, ResizeWithPadOrCrop(steps.size, constant_values=-1)])
    return lambda path: compose(path).permute(3, 1, 2, 0)[None].contiguous().as_tensor()


def _linear_in_time(x: torch.Tensor) -> torch.Tensor:
    position = torch.arange(FRAMES) * x.shape[0] / FRAMES
    below = position.floor().long()
    share = (position - below)[:, None, None, None]
    return x[below] * (1 - share) + x[(below + 1) % x.shape[0]] * share


def make_files(folder: Path, number: int) -> list[Path]:
    """Write one phantom with different noise in each file, so that size and compression match a scanner's files."""
    random = np.random.default_rng(0)
    phantom = render(draw_heart("normal", random), SIZE, random, (1.4, 1.4, 10.0))
    paths = []
    for i in range(number):
        noisy = phantom.image + random.integers(-8, 9, SIZE, dtype=np.int16)
        paths.append(folder / f"{i}.nii.gz")
        write_nifti(paths[-1], noisy, Geometry((1.2, 1.2, 10.0), phantom.geometry.frame_time))
    return paths


def peak_of(chain: int, package: str, path: Path) -> float:
    """Return the peak memory of the chain in a separate process, without its imports."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", str(chain), package, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_one(chain: int, package: str, path: Path) -> None:
    run = {"ours": ours, "monai": monai}[package](list(CHAINS.values())[chain])
    print(json.dumps(peak_mib(lambda: run(path))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        measure_one(int(arguments.one[0]), arguments.one[1], Path(arguments.one[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), arguments.files)
        for number, (name, steps) in enumerate(CHAINS.items()):
            chains = {"ours": ours(steps), "monai": monai(steps)}
            seconds: dict[str, list[float]] = {package: [] for package in chains}
            for _ in range(arguments.rounds):
                for path in paths:
                    for package, run in chains.items():
                        start = time.perf_counter()
                        result = run(path)
                        seconds[package].append(time.perf_counter() - start)
                        assert result.shape == (1, 10, *steps.size[:2], FRAMES), result.shape
            a, b = (statistics.median(seconds[package]) for package in ("ours", "monai"))
            memory = [peak_of(number, package, paths[0]) for package in ("ours", "monai")]
            print(
                f"{name}\n  {1 / a:.2f} volumes/s per core, MONAI {1 / b:.2f}: {b / a:.2f} times as fast; "
                f"peak {memory[0]:.0f} MiB, MONAI {memory[1]:.0f} MiB: {memory[0] / memory[1]:.2f} times"
            )


if __name__ == "__main__":
    main()
