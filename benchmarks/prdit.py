"""Measure what PRDiT's refiner improves, and the cost of a step.

    python benchmarks/prdit.py proof --output prdit     # three seeds, both stages: about an hour on two cores
    python benchmarks/prdit.py step                     # B/12/4 and a plain DiT at 64³, 128³ and 256³
    python benchmarks/prdit.py gpu                      # on a GPU: sampling and training at 128³

The proof trains the local denoiser and then the refiner on chest phantoms, samples both, and compares the samples with
held-out phantoms: Fréchet distance of features of a random network, and the mean gradient length, of unsmoothed
volumes and after smoothing by one voxel, which reduces the influence of noise. The verdict uses unsmoothed volumes and
the fewest sampling steps. Run again to resume. `proof.json` contains the results, `proof.png` shows samples.

The memory of a step is computed from fake tensors. Its time is measured if it takes less than a minute and the machine
has four times the memory it needs; otherwise it is estimated from counted operations and the last measured speed.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import count_operations, machine
from scipy.ndimage import gaussian_filter

from cardiodit import DiT3DTransformerModel, NoiseAndImageScheduler, PRDiTPipeline, PRDiTTransformerModel
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.memory import peak_bytes, weight_bytes
from cardiodit.evaluation.features.catalogue import load_network
from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.phantom import write_chests
from cardiodit.imaging.pictures import write_captioned
from cardiodit.training import train_prdit
from cardiodit.training.build_prdit import freeze_local_part
from cardiodit.training.objectives import NoiseAndImage

SIZE = (32, 32, 24)
COHORTS = {"training": (400, 0), "validation": (16, 1), "test": (128, 5000)}  # number and seed
WINDOW = (-1000.0, 1000.0)
STAGES = ("local", "refined")
SLICES = 8  # per volume in the picture
CLOSER = 0.9  # greatest difference from the phantoms' gradient, as a share of stage 1's
SIDES = (64, 128, 256)
MAX_SECONDS, MEMORY_FACTOR = 60.0, 4  # a step is timed up to this duration, and if this many times its memory is free
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("proof", "step", "gpu"))
    parser.add_argument("--output", type=Path, default=Path("prdit"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50], help="sampling steps (default %(default)s)")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="options of all trainings; must be last")
    arguments = parser.parse_args()
    print(machine())
    if arguments.what == "proof":
        return prove(arguments)
    return step_costs() if arguments.what == "step" else on_gpu()


# --- The proof ---


def prove(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    settings = check_settings(folder / "settings.json", arguments)
    for name, (number, seed) in COHORTS.items():
        if not (folder / name).is_dir():
            write_chests(folder / name, number, seed, SIZE, workers=2)
    cases = read_manifest(folder / "test" / "manifest.csv")
    real = np.stack([to_model(read_nifti(case.image).voxels, WINDOW) for case in cases])
    held_out, other_half = real[: len(real) // 2], real[len(real) // 2 :]
    results: dict[str, dict[int, list[dict[str, float]]]] = {stage: {} for stage in STAGES}
    examples: dict[str, np.ndarray] = {}
    for seed in range(arguments.seeds):
        for stage in STAGES:
            for steps in sorted(arguments.steps):
                volumes = samples_of(folder, stage, seed, steps, arguments)
                results[stage].setdefault(steps, []).append(compare(held_out, volumes))
                print(f"seed {seed}, {stage}, {steps} steps: {results[stage][steps][-1]}", flush=True)
                examples.setdefault(stage, volumes[:2])
    floor = compare(held_out, other_half)
    met = {
        steps: [
            better(local, refined) for local, refined in zip(*(results[stage][steps] for stage in STAGES), strict=True)
        ]
        for steps in sorted(arguments.steps)
    }
    record = {"settings": settings, "floor": floor, **results, "met": met}
    with atomic_file(folder / "proof.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    draw(folder / "proof.png", {"real": held_out[:2], "stage 1": examples["local"], "stage 2": examples["refined"]})
    print(json.dumps(record, indent=1))
    improved = all(met[min(met)])
    print(
        "The refiner improves the samples for every seed." if improved else "The criteria are not met for every seed."
    )
    return 0 if improved else 1


def check_settings(file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that affect samples; refuse a folder that was started with others."""
    settings = {"samples": arguments.samples, "train": arguments.train}
    if file.is_file() and (before := json.loads(file.read_text())) != settings:
        raise SystemExit(f"{file.parent} was started with {before}, not {settings}. Choose another --output.")
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(settings) + "\n")
    return settings


def samples_of(folder: Path, stage: str, seed: int, steps: int, arguments: argparse.Namespace) -> np.ndarray:
    """Train a stage if needed, and return its samples in [-1, 1], (B, H, W, D)."""
    cache, run = folder / f"{stage}-{seed}-{steps}.npy", f"{stage}-{seed}"
    if cache.is_file():
        return np.load(cache)
    ids = [str(folder / name / "manifest.csv") for name in ("training", "validation")]
    config = "chest/prdit_local.yaml" if stage == "local" else "chest/prdit.yaml"
    stage1 = [] if stage == "local" else ["--stage1", str(folder / f"local-{seed}")]
    options = ["--config", config, "--training_ids", ids[0], "--validation_ids", ids[1], "--output_dir", str(folder)]
    if not (folder / run / "pipeline").is_dir():
        train_prdit.main([*options, "--run_name", run, "--seed", str(seed), *stage1, *arguments.train])
    pipe = PRDiTPipeline.from_pretrained(folder / run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": steps, "seed": seed, "output_type": "np"}
    batches = {start: min(8, arguments.samples - start) for start in range(0, arguments.samples, 8)}
    parts = [pipe(num_samples=number, first_sample=start, **settings).volumes for start, number in batches.items()]
    volumes = np.concatenate(parts)
    with atomic_file(cache) as temporary, temporary.open("wb") as file:
        np.save(file, volumes)
    return volumes


def compare(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    features = [features_of(volumes) for volumes in (real, other)]
    return {
        "frechet": frechet_distance(*features),
        "gradient": gradient_length(other),
        "gradient_of_real": gradient_length(real),
        "smoothed": gradient_length(smoothed(other)),
        "smoothed_of_real": gradient_length(smoothed(real)),
    }


def features_of(volumes: np.ndarray) -> np.ndarray:
    network = load_network("random")
    return np.stack([network.features(volume) for volume in volumes])


def gradient_length(volumes: np.ndarray) -> float:
    """Return the mean over all voxels, in model units per voxel."""
    parts = np.gradient(volumes, axis=(1, 2, 3))
    return float(np.sqrt(sum(part**2 for part in parts)).mean())


def smoothed(volumes: np.ndarray) -> np.ndarray:
    return gaussian_filter(volumes, sigma=(0, 1, 1, 1))


def better(local: dict[str, float], refined: dict[str, float]) -> bool:
    errors = [abs(stage["gradient"] - stage["gradient_of_real"]) for stage in (local, refined)]
    return refined["frechet"] < local["frechet"] and errors[1] <= CLOSER * errors[0]


def draw(path: Path, rows: dict[str, np.ndarray]) -> None:
    places = np.linspace(0, SIZE[2] - 1, SLICES + 2).round().astype(int)[1:-1]
    write_captioned(path, [(name, volume[:, :, places]) for name, volumes in rows.items() for volume in volumes])


# --- The cost of a step ---


@dataclass(frozen=True)
class Cost:
    """Cost for one volume: bytes of a sampling step and of a step of stage 2, operations of a forward pass."""

    sampling: int
    training: int
    operations: int


def step_costs() -> int:
    models = {"PRDiT-B/12/4": PRDiTTransformerModel(num_layers=4), "plain DiT": plain_dit()}
    print("volume | model | tokens | sampling, GiB | stage 2, GiB | forward, TFLOP | s per step")
    speeds = dict.fromkeys(models, math.nan)
    for side in SIDES:
        for name, model in models.items():
            cost = cost_of(model, side)
            seconds, mark = cost.operations / speeds[name], " (estimated)"
            if cost.sampling * MEMORY_FACTOR < free_bytes() and not seconds > MAX_SECONDS:
                seconds, mark = seconds_of(model.eval(), side), ""
                speeds[name] = cost.operations / seconds
            print(
                f"{side}³ | {name} | {(side // 8) ** 3} | {cost.sampling / GIB:.2f} | {cost.training / GIB:.2f} | "
                f"{cost.operations / 1e12:.2f} | {seconds:.2f}{mark}",
                flush=True,
            )
    return 0


def plain_dit() -> DiT3DTransformerModel:
    """Return a DiT of the same width on the same tokens, without a local part."""
    return DiT3DTransformerModel(sample_size=(64,) * 3, patch_size=(8,) * 3, in_channels=1, num_layers=4)


def cost_of(model: Any, side: int) -> Cost:
    volume, step = torch.zeros(1, 1, side, side, side), torch.zeros(1)
    model.eval().requires_grad_(True)
    with torch.no_grad():
        sampling = peak_bytes(lambda: model(volume, step).sample) + weight_bytes(model)
        operations = count_operations(lambda: model(volume, step))
    if isinstance(model, PRDiTTransformerModel):
        freeze_local_part(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    of_weights = sum(weight.nbytes for weight in weights)

    def train() -> None:
        torch.autograd.grad(model(volume, step).sample.square().mean(), weights)

    training = peak_bytes(train) + weight_bytes(model) + 3 * of_weights  # Adam's two moments and the EMA weights
    return Cost(sampling, training, operations)


@torch.no_grad()
def seconds_of(model: Any, side: int) -> float:
    volume, times = torch.randn(1, 1, side, side, side), []
    for _ in range(3):
        start = time.perf_counter()
        model(volume, 500)
        times.append(time.perf_counter() - start)
    return min(times)


def free_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available


# --- On a GPU ---


def on_gpu(side: int = 128, steps: int = 100, rounds: int = 20) -> int:
    """Measure PRDiT-B/12/4 in bfloat16: sampling as in `cardiodit sample`, and steps of stage 2."""
    if not torch.cuda.is_available():
        print("No GPU was found.")
        return 1
    model = PRDiTTransformerModel(sample_size=(side,) * 3, num_layers=4).to("cuda", torch.bfloat16).eval()
    pipe = PRDiTPipeline(model, NoiseAndImageScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=2, seed=0, output_type="pt")
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    pipe(num_inference_steps=steps, seed=0, output_type="np")
    seconds, memory = time.perf_counter() - start, torch.cuda.max_memory_allocated() / GIB
    print(f"sampling {side}³, {steps} steps, bf16: {seconds:.2f} s, {memory:.2f} GiB")
    for batch in (1, 2, 4, 8):
        print(f"stage 2, batch {batch}: {volumes_per_second(side, batch, rounds):.2f} volumes/s", flush=True)
    return 0


def volumes_per_second(side: int, batch: int, rounds: int) -> float:
    model = PRDiTTransformerModel(sample_size=(side,) * 3, num_layers=4).to("cuda").train()
    freeze_local_part(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, process = torch.optim.AdamW(weights, 8e-5, fused=True), NoiseAndImage()
    shape = (batch, 1, side, side, side)
    item = {"noise": torch.randn(shape, device="cuda"), "timestep": torch.full((batch,), 500, device="cuda")}
    volumes = torch.randn(shape, device="cuda")
    for number in range(rounds + 3):
        if number == 3:
            torch.cuda.synchronize()
            start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = process.losses(model, volumes, item).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize()
    return rounds * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
