"""Compare the newest training options, each alone and the best ones together, at equal processor time.

    OMP_NUM_THREADS=1 python benchmarks/newest.py --output newest      # 24 trainings, about 1.5 hours of one core

Small transformers are trained on the latents of phantoms, encoded by the bundled VQ model: v-prediction as shipped,
and one change each. The time of a step of each variant is measured first, and the number of steps follows from it, so
that all trainings take the same processor time. With three seeds, samples with balanced labels are compared with
held-out phantoms; the number of sampling steps that a model needs is the smallest whose latents differ by less than 5%
(root mean square) from those of 100 steps. The options whose mean Fréchet distance is below that of v-prediction are
then trained together, if they are compatible. Run again to resume. Writes `newest.json` and `table.md`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dimensions import BASE, LABELS, draw, mean_and_range, value_of
from measuring import machine

from cardiodit import DiT4DTransformerModel
from cardiodit._util.atomic_io import atomic_file
from cardiodit.cli import main as cardiodit
from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.imaging.phantom import cohort, write_cohort
from cardiodit.pipelines.load import open_pipeline

COHORTS = {"training": (300, 0), "validation": (8, 1), "test": (32, 3000)}  # number and seed
# Title, options of `cardiodit train dit`, and what it cannot be combined with.
VARIANTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "v": ("v-prediction, as shipped", (), ()),
    "flow": ("flow matching", ("--diffusion.objective", "flow_matching"), ("zero_snr",)),
    "rotary": ("rotary positions", ("--model.position_mode", "axial_rope"), ()),
    "self": ("self-conditioning", ("--model.self_conditioning", "true"), ()),
    "min_snr": ("min-SNR, γ = 5", ("--diffusion.min_snr_gamma", "5"), ("zero_snr",)),
    "zero_snr": ("zero-terminal SNR", ("--diffusion.zero_terminal_snr", "true"), ("flow", "min_snr")),
}
TOGETHER = "together"
METRICS = {
    "frechet_spatial": "Fréchet distance",
    "coverage_spatial": "coverage",
    "wasserstein_lv_ef_percent": "EF, Wasserstein distance in points",
}
PATCH, LAYERS, HEADS, WIDTH = (1, 4, 4, 8), 4, 4, 32
CONFIG = f"""
label_column: label
model:
  patch_size: {list(PATCH)}
  num_layers: {LAYERS}
  num_attention_heads: {HEADS}
  attention_head_dim: {WIDTH}
training:
  learning_rate: 1.0e-3
  adam_beta2: 0.99
  lr_scheduler: cosine
  lr_warmup_steps: 50
  train_batch_size: 8
  ema_decay: 0.99
  mixed_precision: bf16
  preview_samples: 0
  dataloader_num_workers: 0
"""
CONVERGED, TRIED, CLOSE = 100, (3, 5, 10, 25, 50), 0.05  # sampling steps, and the largest difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=110, help="processor time of a training (%(default)s)")
    arguments = parser.parse_args()
    comparison = Comparison(arguments.output, arguments.seconds)
    comparison.prepare()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for seed in range(arguments.seeds):  # seed by seed, so that an interrupted comparison has whole seeds
        for name in VARIANTS:
            results[name].append(comparison.result(name, (name,), seed))
    chosen = best_together(results)
    if len(chosen) > 1:
        results[TOGETHER] = [comparison.result("-".join(chosen), chosen, seed) for seed in range(arguments.seeds)]
    record = {"machine": machine(), "steps": comparison.steps, "together": chosen, "results": results}
    with atomic_file(arguments.output / "newest.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(results, chosen))
    print(table(results, chosen))


def best_together(results: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    """Return the compatible variants with a lower mean Fréchet distance than v-prediction, the best first."""
    means = {name: float(np.mean([each["frechet_spatial"] for each in found])) for name, found in results.items()}
    chosen: list[str] = []
    for name in sorted(means, key=lambda name: means[name]):
        if means[name] < means["v"] and not any(other in VARIANTS[name][2] for other in chosen):
            chosen.append(name)
    return tuple(chosen)


class Comparison:
    """The trainings, samples and measurements in a folder; what is there is not made again.

    Args:
        folder: of everything.
        seconds: processor time of a training.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.steps: dict[str, int] = {}

    def prepare(self) -> None:
        """Write phantoms and latents, and measure the time of a training step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cohort.PICTURED = 0
        (self.folder / "config.yaml").write_text(CONFIG)
        for name, (number, seed) in COHORTS.items():
            if not (self.folder / name).is_dir():
                write_cohort(self.folder / name, number, seed)
        ids = [str(self.folder / name / "manifest.csv") for name in ("training", "validation")]
        options = ["--vae", BASE, "--output_dir", str(self.folder / "latents"), "--batch_size", "8", "--device", "cpu"]
        if cardiodit(["encode", "--ids", *ids, *options]):
            raise SystemExit(1)
        times = self.folder / "step_seconds.json"
        if not times.is_file():
            each = {mode: step_seconds(position_mode=mode) for mode in ("absolute", "axial_rope")}
            times.write_text(json.dumps(each))
        self.step_seconds = json.loads(times.read_text())

    def result(self, name: str, variants: Sequence[str], seed: int) -> dict[str, Any]:
        """Return the metrics of a training, with its steps and its processor time."""
        run = f"{name}-{seed}"
        file = self.folder / "results" / f"{run}.json"
        if file.is_file():
            return json.loads(file.read_text())
        file.parent.mkdir(exist_ok=True)
        step = self.step_seconds["axial_rope" if "rotary" in variants else "absolute"]
        step *= 7 / 6 if "self" in variants else 1  # half of the steps have one more forward pass, a third of a step
        steps = self.steps.setdefault(name, round(self.seconds / step))
        seconds = self._train(run, variants, seed, steps)
        samples = self.folder / "samples" / run
        if not samples.is_dir():
            samples.parent.mkdir(exist_ok=True)
            draw(self.folder / run / "pipeline", samples, COHORTS["test"][0], seed, slice_by_slice=False)
        settings = EvaluationSettings(
            self.folder / "test" / "manifest.csv", samples, self.folder / "evaluated" / run, model=BASE
        )
        report = evaluate(replace(settings, segmenter="phantom-segmenter")).report
        found = {metric["name"]: value_of(report, metric["name"]) for metric in report["metrics"]}
        needed = sampling_steps_needed(self.folder / run / "pipeline")
        result = {**found, "steps": steps, "seconds": seconds, "sampling_steps": needed}
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def _train(self, run: str, variants: Sequence[str], seed: int, steps: int) -> float:
        """Train in a process of its own, and return the processor time of the call that finished it."""
        if (self.folder / run / "pipeline").is_dir():
            return float("nan")  # finished by an interrupted call
        latents = self.folder / "latents"
        ids = [str(latents / split / "manifest.csv") for split in ("training", "validation")]
        words = ["--config", str(self.folder / "config.yaml"), "--vae", BASE, "--run_name", run]
        words += ["--training_ids", ids[0], "--validation_ids", ids[1], "--output_dir", str(self.folder)]
        words += [
            "--max_train_steps",
            str(steps),
            "--validation_steps",
            str(steps),
            "--checkpointing_steps",
            str(steps),
        ]
        words += [word for variant in variants for word in VARIANTS[variant][1]]
        words += ["--seed", str(seed), "--report_to", "none", "--cpu"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "cardiodit", "train", "dit", *words], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step_seconds(**settings: Any) -> float:
    """Return the processor time of a training step of 8 hearts, the median of 8."""
    size = {"sample_size": (8, 16, 16, 8), "patch_size": PATCH, "in_channels": 4, "num_layers": LAYERS}
    model = DiT4DTransformerModel(**size, num_attention_heads=HEADS, attention_head_dim=WIDTH, **settings)
    optimizer, found = torch.optim.AdamW(model.parameters()), []
    for _ in range(10):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(8, 4, 8, 16, 16, 8), torch.zeros(8)).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(time.process_time() - started)
    return float(np.median(found[2:]))


def sampling_steps_needed(folder: Path) -> int:
    """Return the fewest sampling steps that come close to a hundred."""
    pipe = open_pipeline(str(folder))
    pipe.set_progress_bar_config(disable=True)

    def latents(steps: int) -> torch.Tensor:
        return pipe(class_labels=list(LABELS), seed=9, num_inference_steps=steps, output_type="latent").volumes

    exact = latents(CONVERGED)
    for steps in TRIED:
        if (latents(steps) - exact).square().mean().sqrt() < CLOSE * exact.std():
            return steps
    return CONVERGED


def table(results: dict[str, list[dict[str, Any]]], chosen: Sequence[str]) -> str:
    """Return a row for each variant: mean, smallest and largest value over the seeds."""
    lines = [f"| variant | {' | '.join(METRICS.values())} | sampling steps needed | training steps | processor s |"]
    lines.append("|---" * (len(METRICS) + 4) + "|")
    for name, found in results.items():
        title = " + ".join(VARIANTS[each][0] for each in chosen) if name == TOGETHER else VARIANTS[name][0]
        names = [*METRICS, "sampling_steps", "steps", "seconds"]
        cells = [mean_and_range([each[metric] for each in found]) for metric in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
