"""Measure how well the masks that come with samples fit their images.

    python benchmarks/masks.py --output masks

A second decoder of the bundled model's latents is trained on phantoms (`train_masks`). The model then generates hearts
with masks, and the bundled segmenter labels the same images. Run again to resume. Writes `masks.json`.

Goals: Dice of at least 0.90 (left ventricle, myocardium) and 0.85 (right ventricle) in the worst frame, as the mean
over hearts; volumes over the beat that differ by at most 5% of the end-diastolic volume.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.cli import main as cardiodit
from cardiodit.evaluation.metrics.function import LV, MYO, RV, volumes_ml
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, bundled_model
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.phantom import GROUPS, write_cohort
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.pipelines.load import open_pipeline
from cardiodit.training import train_masks

BASE = "cardiodit-phantom"
NAMES = {RV: "rv", MYO: "myo", LV: "lv"}
LEAST, MOST_VOLUME = {"rv": 0.85, "myo": 0.90, "lv": 0.90}, 5.0  # goals
TRAINING_SEED, VALIDATION_SEED = 30, 31


def train(folder: Path, hearts: int, steps: int) -> Path:
    """Return the pipeline with a trained decoder of masks."""
    for name, seed, number in (("training", TRAINING_SEED, hearts), ("validation", VALIDATION_SEED, 8)):
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed)
        manifest, latents = folder / name / "manifest.csv", folder / f"latents-{name}"
        given = ["--vae", BASE, "--output_dir", str(latents), "--condition_keys", "mask"]
        run(["encode", "--ids", str(manifest), *given])
    train_masks.main(
        [
            *("--base", BASE, "--output_dir", str(folder), "--run_name", "decoder"),
            *("--training_ids", str(folder / "latents-training" / "manifest.csv")),
            *("--validation_ids", str(folder / "latents-validation" / "manifest.csv")),
            *("--max_train_steps", str(steps), "--validation_steps", str(max(1, steps // 2)), "--report_to", "none"),
            *("--checkpointing_steps", "50", "--train_batch_size", "1", "--learning_rate", "2e-3"),
        ]
    )
    return folder / "decoder" / "pipeline"


def sample(model: Path, folder: Path, count: int, steps: int) -> list[dict[str, Any]]:
    """Generate what the folder lacks, and return the records of all samples."""
    given = ["--num_samples", str(count), "--num_inference_steps", str(steps), "--class_label", *GROUPS]
    run(["sample", str(model), "--output_dir", str(folder), *given, "--batch_size", "8", "--decode_batch_size", "8"])
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def run(command: Sequence[str]) -> None:
    if cardiodit(command):
        sys.exit(f"cardiodit {' '.join(command)} failed.")


def judge(folder: Path, records: Sequence[dict[str, Any]], units: tuple[float, float]) -> dict[str, Any]:
    segmenter = HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER))
    overlaps, gaps = [], []
    for record in records:
        image, given = read_nifti(folder / record["file"]), read_labels(folder / record["mask"]).voxels
        found = segmenter.segment(to_model(image.voxels, units))
        frames = [dice(given[..., t], found[..., t], tuple(NAMES)) for t in range(given.shape[3])]
        overlaps.append([[scores[label] for label in NAMES] for scores in frames])
        curves = [np.array(volumes_ml(labels, image.geometry, LV)) for labels in (given, found)]
        gaps.append(100 * np.abs(curves[0] - curves[1]).max() / curves[1].max())
    by_frame = np.mean(overlaps, axis=0)  # (T, labels), mean over hearts
    worst = dict(zip(NAMES.values(), by_frame.min(axis=0).tolist(), strict=True))
    return {
        "hearts": len(records),
        "dice": dict(zip(NAMES.values(), by_frame.mean(axis=0).tolist(), strict=True)),
        "dice in the worst frame": worst,
        "largest difference of LV volumes, % of EDV": float(np.mean(gaps)),
        "met": {
            "dice": all(worst[name] >= least for name, least in LEAST.items()),
            "volumes": float(np.mean(gaps)) <= MOST_VOLUME,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hearts", type=int, default=64, help="training phantoms (%(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps (%(default)s)")
    parser.add_argument("--count", type=int, default=16, help="samples (%(default)s)")
    parser.add_argument("--sampling_steps", type=int, default=15)
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    model = train(folder, arguments.hearts, arguments.steps)
    records = sample(model, folder / "samples", arguments.count, arguments.sampling_steps)
    results = judge(folder / "samples", records, open_pipeline(model).units or (-1.0, 1.0))
    (folder / "masks.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    return 0 if all(results["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
