"""Measure how well samples meet the EF and EDV that they are asked for, and what is lost when nothing is asked.

    python benchmarks/conditions.py --output conditions

The bundled model, which knows class labels only, is fine-tuned on phantoms with the conditions EF and EDV, of which a
tenth of the cells is blank; it is trained once per seed. Each model then generates 64 hearts for the EF and EDV of 64
phantoms that it has not seen, without a class label, and 64 without any condition, as does the bundled model. The
bundled segmenter measures all. Run again to resume. Writes `conditions.json`.

Goals: r of at least 0.9, a mean absolute error of at most 5 points of EF and 10% of EDV; without conditions, the
distance to phantoms and the share of hearts in one piece lie within the spread of the bundled model's seeds.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from cardiodit.cli import main as cardiodit
from cardiodit.evaluation.metrics.function import largest_body_share, left_ventricle
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, bundled_model
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.manifest import read_manifest, write_manifest
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.phantom import write_cohort
from cardiodit.models.segmenter import HeartSegmenter
from cardiodit.pipelines.load import open_pipeline
from cardiodit.training import train_dit

BASE = "cardiodit-phantom"
ASKED = {"lv_ef_percent": "EF", "lv_edv_ml": "EDV"}
BLANK = 0.1  # share of the training cells without a value
TRAINING_SEED, VALIDATION_SEED, REQUEST_SEED = 20, 21, 22
ONE_BODY = 0.98
LEAST_R, MOST_EF, MOST_EDV = 0.9, 5.0, 10.0  # goals


def write_data(folder: Path, hearts: int, requests: int) -> None:
    """Write and encode phantoms for training and validation, and write those whose EF and EDV are requested."""
    for name, seed, number in [
        ("training", TRAINING_SEED, hearts),
        ("validation", VALIDATION_SEED, 16),
        ("requests", REQUEST_SEED, requests),
    ]:
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed)
    random = np.random.default_rng(0)
    manifest = folder / "training" / "blanks.csv"
    rows = [case.row for case in read_manifest(folder / "training" / "manifest.csv")]
    for row in rows:
        for name in ASKED:
            row[name] = "" if random.random() < BLANK else row[name]
    write_manifest(manifest, rows)
    for name, ids in (("training", manifest), ("validation", folder / "validation" / "manifest.csv")):
        run(["encode", "--ids", str(ids), "--vae", BASE, "--output_dir", str(folder / f"latents-{name}")])
    with (folder / "requests" / "manifest.csv").open() as file:
        table = [{name: row[name] for name in ASKED} for row in csv.DictReader(file)]
    write_manifest(folder / "requests.csv", table)


def train(folder: Path, seed: int, steps: int) -> Path:
    name = f"seed{seed}"
    train_dit.main(
        [
            *("--vae", BASE, "--init_from", BASE, "--output_dir", str(folder), "--run_name", name),
            *("--training_ids", str(folder / "latents-training" / "manifest.csv")),
            *("--validation_ids", str(folder / "latents-validation" / "manifest.csv")),
            *("--condition_columns", f"[{', '.join(ASKED)}]", "--label_column", "label"),
            *("--max_train_steps", str(steps), "--train_batch_size", "8", "--learning_rate", "3e-4"),
            *("--lr_warmup_steps", "50", "--adam_beta2", "0.99", "--ema_decay", "0.995", "--seed", str(seed)),
            *("--validation_steps", str(steps), "--checkpointing_steps", "50", "--preview_samples", "0"),
            *("--mixed_precision", "bf16", "--dataloader_num_workers", "0", "--report_to", "none"),
        ]
    )
    return folder / name / "pipeline"


def sample(model: str, folder: Path, count: int, seed: int, steps: int, *more: str) -> list[np.ndarray]:
    """Generate what the folder lacks, and return all volumes in [-1, 1] in the order of their numbers."""
    given = ["--num_samples", str(count), "--seed", str(seed), "--num_inference_steps", str(steps)]
    run(["sample", model, "--output_dir", str(folder), *given, "--batch_size", "8", "--decode_batch_size", "8", *more])
    units = open_pipeline(model).units or (-1.0, 1.0)
    return [to_model(read_nifti(path).voxels, units) for path in sorted(folder.glob("*.nii.gz"))]


def run(command: Sequence[str]) -> None:
    if cardiodit(command):
        sys.exit(f"cardiodit {' '.join(command)} failed.")


def measure(cines: Sequence[np.ndarray], segmenter: HeartSegmenter, geometry: Any) -> dict[str, list[float]]:
    """Return EF, EDV and the share of the ventricle in one piece, of each heart."""
    found: dict[str, list[float]] = {"lv_ef_percent": [], "lv_edv_ml": [], "body": []}
    for cine in cines:
        labels = segmenter.segment(cine)
        heart = left_ventricle(labels, geometry)
        for name, value in zip(found, (heart.ef, heart.edv, largest_body_share(labels)), strict=True):
            found[name].append(float(value))
    return found


def judge_requests(asked: dict[str, np.ndarray], found: dict[str, list[float]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, title in ASKED.items():
        wanted, got = asked[name], np.array(found[name])
        errors = np.abs(got - wanted)
        results[title] = {
            "r": float(np.corrcoef(wanted, got)[0, 1]),
            "error": float(errors.mean()),
            "error_percent": float(100 * (errors / wanted).mean()),
            "bias": float((got - wanted).mean()),
        }
    ef, edv = results["EF"], results["EDV"]
    results["met"] = {
        "r": min(ef["r"], edv["r"]) >= LEAST_R,
        "EF": ef["error"] <= MOST_EF,
        "EDV": edv["error_percent"] <= MOST_EDV,
    }
    return results


def judge_free(found: dict[str, list[float]], real: dict[str, np.ndarray]) -> dict[str, float]:
    """Compare hearts without conditions with phantoms."""
    return {
        "EF distance": float(wasserstein_distance(found["lv_ef_percent"], real["lv_ef_percent"])),
        "EDV distance": float(wasserstein_distance(found["lv_edv_ml"], real["lv_edv_ml"])),
        "one body": float(np.mean([body >= ONE_BODY for body in found["body"]])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hearts", type=int, default=240, help="training phantoms (%(default)s)")
    parser.add_argument("--count", type=int, default=64, help="requests (%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="training steps (%(default)s)")
    parser.add_argument("--sampling_steps", type=int, default=15)
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="of the requests (%(default)s)")
    arguments = parser.parse_args()
    folder, count = arguments.output, arguments.count
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, arguments.hearts, count)
    segmenter = HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER))
    geometry = open_pipeline(BASE).geometry
    with (folder / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    asked = {name: np.array([float(row[name]) for row in rows]) for name in ASKED}
    results: dict[str, Any] = {"requests": {}, "without conditions": {}, "bundled model": {}, "each": {}}
    for seed in arguments.seeds:
        model, key = str(train(folder, seed, arguments.steps)), f"seed {seed}"
        table = ("--conditions", str(folder / "requests.csv"), "--guidance_scale", str(arguments.guidance_scale))
        given = sample(model, folder / f"given{seed}", count, seed, arguments.sampling_steps, *table)
        results["each"][key] = measure(given, segmenter, geometry)
        results["requests"][key] = judge_requests(asked, results["each"][key])
        print(key, json.dumps(results["requests"][key]), flush=True)
        for part, name in (("without conditions", model), ("bundled model", BASE)):
            free = sample(name, folder / f"{part.split()[0]}{seed}", count, seed, arguments.sampling_steps)
            results[part][key] = judge_free(measure(free, segmenter, geometry), asked)
            print(key, part, json.dumps(results[part][key]), flush=True)
        (folder / "conditions.json").write_text(json.dumps(results, indent=1) + "\n")
    missed = [key for key, result in results["requests"].items() if not all(result["met"].values())]
    print("All goals are met." if not missed else f"Missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
