"""Measure whether synthetic hearts help a segmenter: trained on few patients, on synthetic hearts only, and on both.

    python benchmarks/augmentation.py --output augmentation --model masks/decoder/pipeline

"Patients" are phantoms as one scanner shows them; the test set is of other scanners (other contrast, noise, sharpness
and voxel size). The synthetic hearts and their masks come from a pipeline of `train_masks` that was trained on the
first scanner. Each segmenter is trained for the same number of steps. Run again to resume. Writes `augmentation.json`:
Dice and 95th percentile of the Hausdorff distance, averaged over seeds, with 95% intervals over test patients.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.ndimage import binary_erosion, distance_transform_edt

from cardiodit.cli import main as cardiodit
from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_manifest, write_manifest
from cardiodit.imaging.phantom import GROUPS, Style, write_cohort
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.training import train_segmenter

NAMES = {1: "rv", 2: "myo", 3: "lv"}
PATIENT_SEED, VALIDATION_SEED, TEST_SEED = 40, 41, 42
COLUMNS = ("image", "subject", "mask", "mask_order", "slices", "ed_frame")
ORDER = "RV=1 MYO=2 LV=3"


def write_patients(folder: Path, most: int, tests: int) -> None:
    for name, seed, number, style in [
        ("patients", PATIENT_SEED, most, Style()),
        ("validation", VALIDATION_SEED, 4, Style()),
        *((f"test-{vendor}", TEST_SEED, tests, Style(vendor)) for vendor in ("grey", "coarse")),
    ]:
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed, style=style)


def write_synthetic(folder: Path, model: Path, count: int, steps: int) -> list[dict[str, str]]:
    """Generate hearts with masks and return them as rows of a manifest."""
    out = folder / "synthetic"
    given = ["--num_samples", str(count), "--num_inference_steps", str(steps), "--class_label", *GROUPS]
    if cardiodit(["sample", str(model), "--output_dir", str(out), *given, "--batch_size", "8"]):
        sys.exit("cardiodit sample failed.")
    records = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return [
        dict(
            zip(
                COLUMNS,
                (
                    str((out / record["file"]).resolve()),
                    f"synthetic-{record['index']}",
                    str((out / record["mask"]).resolve()),
                    ORDER,
                    "base to apex",
                    "0",
                ),
                strict=True,
            )
        )
        for record in records
    ]


def rows_of(folder: Path, count: int) -> list[dict[str, str]]:
    cases = read_manifest(folder / "manifest.csv")[:count]
    rows = []
    for case in cases:
        row = {column: case.row[column] for column in COLUMNS}
        rows.append(row | {name: str((case.folder / row[name]).resolve()) for name in ("image", "mask")})
    return rows


def train(folder: Path, name: str, rows: Sequence[dict[str, str]], seed: int, steps: int) -> HeartSegmenter:
    manifest = folder / f"{name}.csv"
    write_manifest(manifest, rows)
    run = f"{name}-seed{seed}"
    train_segmenter.main(
        [
            *("--training_ids", str(manifest), "--validation_ids", str(folder / "validation" / "manifest.csv")),
            *("--output_dir", str(folder), "--run_name", run, "--seed", str(seed), "--report_to", "none"),
            *("--max_train_steps", str(steps), "--validation_steps", str(steps), "--checkpointing_steps", "100"),
            *("--train_batch_size", "4", "--learning_rate", "2e-3"),
            *("--data.preprocessing.spacing", "[2.25, 2.25, null]", "--data.preprocessing.size", "[64, 64, null]"),
            *("--data.preprocessing.intensity.low", "p0.5", "--data.preprocessing.intensity.high", "p99.5"),
        ]
    )
    return HeartSegmenter.from_pretrained(folder / run / "best" / "segmenter")


def measure(segmenter: HeartSegmenter, manifest: Path) -> list[dict[str, float]]:
    """Return Dice and Hausdorff distance of each test patient."""
    steps = Preprocessing.from_dict(segmenter.config.preprocessing)
    rows = []
    for case in read_manifest(manifest):
        prepared = prepare_case(case, steps)
        mask = prepare_mask(case, prepared)
        assert mask is not None
        found, spacing = segmenter.segment(prepared.volume.voxels), prepared.volume.geometry.spacing
        row = {f"dice_{NAMES[label]}": score for label, score in dice(found, mask.voxels, tuple(NAMES)).items()}
        ends = (0, int((mask.voxels == 3).sum(axis=(0, 1, 2)).argmin()))
        for label, name in NAMES.items():
            far = [hausdorff_95(found[..., t] == label, mask.voxels[..., t] == label, spacing) for t in ends]
            row[f"hausdorff_{name}_mm"] = float(np.mean(far))
        rows.append(row)
    return rows


def hausdorff_95(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...] | None) -> float:
    """Return the 95th percentile of the distances between two surfaces in mm; the image's diagonal if one is empty."""
    size = np.array(first.shape) * (spacing or (1.0, 1.0, 1.0))
    if not first.any() or not second.any():
        return float(np.linalg.norm(size)) if first.any() != second.any() else 0.0
    edges = [mask & ~binary_erosion(mask) for mask in (first, second)]
    away = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float(np.percentile(np.concatenate([away[1][edges[0]], away[0][edges[1]]]), 95))


def summarize(seeds: Sequence[Sequence[dict[str, float]]]) -> dict[str, list[float]]:
    """Return mean and 95% interval of every measure over patients, each averaged over the seeds."""
    summary = {}
    for name in seeds[0][0]:
        values = np.mean([[row[name] for row in rows] for rows in seeds], axis=0)
        reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
        summary[name] = [float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="pipeline whose samples have masks")
    parser.add_argument("--patients", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--synthetic", type=int, default=64, help="generated hearts (%(default)s)")
    parser.add_argument("--tests", type=int, default=16, help="test patients of each scanner (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="training steps of each segmenter (%(default)s)")
    parser.add_argument("--sampling_steps", type=int, default=15)
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    write_patients(folder, max(arguments.patients), arguments.tests)
    synthetic = write_synthetic(folder, arguments.model, arguments.synthetic, arguments.sampling_steps)
    sets: dict[str, Any] = {"synthetic": synthetic}
    for count in arguments.patients:
        own = rows_of(folder / "patients", count)
        sets |= {f"patients{count}": own, f"both{count}": [*own, *synthetic]}
    file = folder / "augmentation.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"each": {}}
    for seed in arguments.seeds:
        for name, rows in sets.items():
            key = f"{name}-seed{seed}"
            if key in results["each"]:
                continue
            segmenter = train(folder, name, rows, seed, arguments.steps)
            found = [measure(segmenter, folder / f"test-{vendor}" / "manifest.csv") for vendor in ("grey", "coarse")]
            results["each"][key] = [row for rows_of_vendor in found for row in rows_of_vendor]
            done = results["each"].items()
            results["summary"] = {
                each: summarize([rows for key, rows in done if key.startswith(f"{each}-seed")])
                for each in dict.fromkeys(key.rpartition("-seed")[0] for key, _ in done)
            }
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(key, json.dumps(summarize([results["each"][key]])), flush=True)


if __name__ == "__main__":
    main()
