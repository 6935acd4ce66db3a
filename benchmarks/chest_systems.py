"""Compare MedLoRD, VolDiT and PRDiT in small on one cohort of chest phantoms, each with the same processor time.

    OMP_NUM_THREADS=1 python benchmarks/chest_systems.py --output systems      # three seeds, about an hour of one core

The chests lie at different places in the image. MedLoRD and VolDiT share a VQ-GAN, whose training, encoding and scaling
count towards the time of both; PRDiT, which needs none, spends that time on its own two stages. Masks steer MedLoRD
through its ControlNet and VolDiT through its adapter, trained for equally long. Every training is a process of its own,
of which the system counts the processor time. The number of steps follows from two short probes and is the same for all
seeds. Samples of each model, with and without masks, are compared with held-out phantoms by `cardiodit evaluate`; the
masks are those of the same phantoms, and lungs are the dark regions within the chest. Run again to resume. Writes
`systems.json`, `table.md`, and `systems.png` with samples.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dimensions import mean_and_range, value_of
from measuring import machine
from steering import LUNGS, SUBJECTS, cohort, command, find_lungs

from cardiodit._util.atomic_io import atomic_file
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.pictures import write_captioned

SIZE, SPACING, MOVES = (32, 32, 32), (12.0, 12.0, 10.5), 3  # voxels, mm, voxels from the centre
COHORTS = {"training": (100, 0), "validation": (8, 1), "test": (64, 5000)}  # number of phantoms, and seed
STAGE1, SAMPLER, STEERING = 120.0, 160.0, 50.0  # processor seconds
PROBES = (10, 40)  # steps of the two short trainings that measure the time of a step
SLICES, WINDOW = 8, (-1000.0, 1000.0)  # in the picture
BRIEF = ("--train_batch_size", "8", "--dataloader_num_workers", "0", "--report_to", "none", "--cpu")
AVERAGED = ("--ema_decay", "0.995", "--lr_warmup_steps", "20")
METRICS = {
    "frechet_spatial": "Fréchet distance, random network",
    "coverage_spatial": "coverage",
    "wasserstein_volume_ml_lungs": "lung volume, Wasserstein distance in mL",
    "adherence_lungs": "Dice of lungs with the requested ones, %",
}


@dataclass(frozen=True)
class Stage:
    """A training.

    Args:
        script: stage of `cardiodit train`.
        config: in the folder of configs for chests.
        seconds: processor time, from the start of the process to its end.
        origin: option that names the result of the stage before it.
        options: other options.
    """

    script: str
    config: str
    seconds: float
    origin: str = ""
    options: tuple[str, ...] = AVERAGED


@dataclass(frozen=True)
class System:
    """A published system: the stages that lead to its sampler, and the one that steers it by masks, if any."""

    title: str
    stages: tuple[Stage, ...]
    steering: Stage | None = None


VOXELS = ("--data.preprocessing.size", str(list(SIZE)), "--data.crop", "null", "--lr_warmup_steps", "20")
VQGAN = Stage("vqgan", "vqgan", STAGE1, options=VOXELS)
NO_PREVIEW = (*AVERAGED, "--preview_samples", "0")
SYSTEMS = {
    "medlord": System(
        "MedLoRD",
        (Stage("unet", "medlord", SAMPLER, "--vae", NO_PREVIEW),),
        Stage("controlnet", "controlnet", STEERING, "--base"),
    ),
    "voldit": System(
        "VolDiT", (Stage("dit", "dit", SAMPLER, "--vae", NO_PREVIEW),), Stage("tgca", "tgca", STEERING, "--base")
    ),
    "prdit": System(
        "PRDiT",
        (
            Stage("prdit", "prdit_local", (STAGE1 + SAMPLER) / 2),
            Stage("prdit", "prdit", (STAGE1 + SAMPLER) / 2, "--stage1"),
        ),
    ),
}
CHEST = replace(SUBJECTS["chest"], size=SIZE, spacing=SPACING, moves=MOVES, cohort=COHORTS["training"][0])


def lungs(volume: np.ndarray, _: object) -> np.ndarray:
    """Segment the lungs of a generated chest; the phantoms' outermost slices show none, but may show the stomach."""
    labels = find_lungs(volume)
    labels[..., [0, -1]] = 0
    return labels


lungs.structures = {"lungs": LUNGS}  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default %(default)s)")
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, (number, seed) in COHORTS.items():
        cohort(CHEST, folder, name, number, seed)
    proof = Proof(folder, arguments.steps)
    proof.encode()
    reports: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for name, system in SYSTEMS.items():
            model = str(proof.runs / "vqgan")
            for stage in system.stages:
                model = proof.train(stage, model, seed)
            reports.setdefault(name, []).append(proof.evaluate(f"{name}-{seed}", model, seed, ()))
            if system.steering is not None:
                steered = proof.train(system.steering, model, seed)
                masks = ("--masks", str(folder / "test" / "manifest.csv"))
                reports.setdefault(f"{name}, steered", []).append(
                    proof.evaluate(f"{name}-steered-{seed}", steered, seed, masks)
                )
    record = {"machine": machine(), **proof.record, "metrics": {name: map_of(each) for name, each in reports.items()}}
    with atomic_file(folder / "systems.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    (folder / "table.md").write_text(table(reports) + "\n" + times(proof.record, arguments.seeds))
    print((folder / "table.md").read_text())
    draw(folder, arguments.seeds)


class Proof:
    """The trainings, samples and evaluations in a folder; what is there is not made again.

    Args:
        folder: of everything.
        steps: sampling steps.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps, self.runs = folder, steps, folder / "runs"
        self._file = folder / "progress.json"
        empty: dict[str, Any] = {"seconds": {}, "steps": {}}
        self.record = json.loads(self._file.read_text()) if self._file.is_file() else empty

    def encode(self) -> None:
        """Train the VQ-GAN that both latent models share, and encode the cohort with its masks."""
        self.train(VQGAN, "", 0)
        ids = [str(self.folder / name / "manifest.csv") for name in ("training", "validation")]
        latents = self.folder / "latents"
        if "encode" not in self.record["seconds"]:
            vae = ("--vae", str(self.runs / "vqgan"))
            self._run("encode", "encode", "--ids", *ids, *vae, "--output_dir", str(latents), "--condition_keys", "mask")
            self._run("encode", "scale-factor", "--latents", str(latents / "training" / "manifest.csv"), *vae)

    def train(self, stage: Stage, origin: str, seed: int) -> str:
        """Train a stage for its processor time, and return what the next stage begins with."""
        name = "vqgan" if stage is VQGAN else f"{stage.config}-{seed}"
        if stage.config not in self.record["steps"]:
            short, long = (self._launch(stage, origin, seed, f"probe-{stage.config}-{n}", n) for n in PROBES)
            step = (long - short) / (PROBES[1] - PROBES[0])
            rest = short - PROBES[0] * step  # imports, data, validation, saving
            self.record["steps"][stage.config] = max(PROBES[1], round((stage.seconds - rest) / step))
            self._save()
        result = self.runs / name / ("best" if stage is VQGAN else "pipeline")
        if not result.is_dir() or not (self.runs / name / "finished").is_file():
            self._launch(stage, origin, seed, name, self.record["steps"][stage.config])
            (self.runs / name / "finished").touch()
        return str(self.runs / name) if stage is VQGAN else str(result)

    def evaluate(self, name: str, model: str, seed: int, masks: Sequence[str]) -> dict[str, Any]:
        """Sample as many volumes as there are held-out phantoms, and return the report of their comparison."""
        samples, result, real = (self.folder / part for part in ("samples", "evaluated", "test/manifest.csv"))
        options = ("--num_samples", str(COHORTS["test"][0]), "--batch_size", "1" if masks else "8", "--seed", str(seed))
        options = (*options, "--num_inference_steps", str(self.steps), *masks, "--output_dir", str(samples / name))
        if not (result / name / "report.json").is_file():
            self._run(f"sample-{name}", "sample", model, *options, "--device", "cpu")
            segmenter = ("--segmenter", f"{Path(__file__).resolve()}:lungs", "--masks", str(real), "--device", "cpu")
            paths = ("--real", str(real), "--synthetic", str(samples / name), "--output_dir", str(result / name))
            command("evaluate", *paths, *segmenter)
        return json.loads((result / name / "report.json").read_text())

    def _launch(self, stage: Stage, origin: str, seed: int, name: str, steps: int) -> float:
        images = stage is VQGAN or stage.script == "prdit"
        root = self.folder if images else self.folder / "latents"
        ids = [str(root / split / "manifest.csv") for split in ("training", "validation")]
        place = ("--output_dir", str(self.runs), "--run_name", name)
        paths = ("--training_ids", ids[0], "--validation_ids", ids[1], *place)
        length = ("--max_train_steps", str(steps), "--validation_steps", str(max(1, steps // 4)))
        length = (*length, "--checkpointing_steps", str(max(1, steps // 2)), "--seed", str(seed))
        before = (stage.origin, origin) if stage.origin else ()
        config = ("--config", f"chest/{stage.config}.yaml", *stage.options)
        return self._run(name, "train", stage.script, *config, *paths, *before, *length, *BRIEF)

    def _run(self, name: str, *words: str) -> float:
        """Run a command of cardiodit, and return the processor time that it took, with that of an interrupted run."""
        before = children_seconds()
        try:
            subprocess.run([sys.executable, "-m", "cardiodit", *words], check=True)
        finally:
            seconds = self.record["seconds"]
            seconds[name] = seconds.get(name, 0.0) + children_seconds() - before
            self._save()
        return seconds[name]

    def _save(self) -> None:
        with atomic_file(self._file) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n")


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def map_of(reports: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the values of every metric over the seeds."""
    names = [metric["name"] for metric in reports[0]["metrics"]]
    return {name: [value_of(report, name) for report in reports] for name in names}


def entry(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next((metric for metric in report["metrics"] if metric["name"] == name), {})


def table(reports: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of the metrics: mean, smallest and largest value over the seeds, and the floor."""
    titles = [f"{SYSTEMS[key].title}{comma}{rest}" for key, comma, rest in (name.partition(",") for name in reports)]
    lines = [f"| metric | {' | '.join(titles)} | real against real |", "|---" * (len(titles) + 2) + "|"]
    for name, title in METRICS.items():
        cells = [mean_and_range([value_of(report, name) for report in each]) for each in reports.values()]
        floor = entry(next(iter(reports.values()))[0], name).get("floor")
        lines.append(f"| {title} | {' | '.join(cells)} | {'' if floor is None else format(floor['value'], '.3g')} |")
    return "\n".join(lines) + "\n"


def times(record: dict[str, Any], seeds: int) -> str:
    """Return the table of the processor seconds of every stage, and of one sample."""
    lines = ["| stage | steps | processor seconds |", "|---|---|---|"]
    seconds, steps = record["seconds"], record["steps"]
    lines.append(f"| VQ-GAN, with encoding | {steps['vqgan']} | {seconds['vqgan'] + seconds['encode']:.0f} |")
    for name, system in SYSTEMS.items():
        for stage in (*system.stages, *([system.steering] if system.steering else [])):
            spent = mean_and_range([seconds[f"{stage.config}-{seed}"] for seed in range(seeds)])
            lines.append(f"| {system.title}, {stage.config} | {steps[stage.config]} | {spent} |")
        each = mean_and_range([seconds[f"sample-{name}-{seed}"] / COHORTS["test"][0] for seed in range(seeds)])
        lines.append(f"| {system.title}, one sample | | {each} |")
    return "\n".join(lines) + "\n"


def draw(folder: Path, seeds: int) -> None:
    """Draw real volumes, and the first samples of each system."""
    real = sorted((folder / "test").glob("*-image.nii.gz"))[:2]
    rows = [("real", file) for file in real]
    for name, system in SYSTEMS.items():
        files = [min((folder / "samples" / f"{name}-{seed}").glob("*.nii.gz")) for seed in range(min(2, seeds))]
        rows += [(system.title, file) for file in files]
    places = np.linspace(0, SIZE[2] - 1, SLICES + 2).round().astype(int)[1:-1]
    volumes = [(caption, to_model(read_nifti(file).voxels, WINDOW)[:, :, places]) for caption, file in rows]
    write_captioned(folder / "systems.png", volumes)


if __name__ == "__main__":
    main()
