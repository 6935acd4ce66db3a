"""Compare CardioDiT with the two baselines of its publication, as configs of one transformer.

    python benchmarks/dimensions.py --output dimensions          # nine trainings, about three hours on two cores

The factorised 2D+t model generates each slice independently, conditioned on disease and slice position; the
channel-merged 3D+t model sees all slices as channels of one token; the 4D model attends over all axes. All are trained
on the latents of the same phantoms, encoded by the bundled VQ model, for the same number of steps and hearts, with
three seeds. Then 64 samples of each, with balanced labels, are compared with 64 held-out phantoms. Run again to
resume. Writes `table.md`: the mean over the seeds, and their range.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import new_folder
from cardiodit.cli import main as cardiodit
from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.imaging.manifest import read_table, write_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents.file import read_latent, write_latent
from cardiodit.pipelines.load import open_pipeline
from cardiodit.training import train_dit

MODELS = {"2d_t": "2D+t, factorised", "3d_t": "3D+t, channel-merged", "4d": "4D (CardioDiT)"}
SLICES, BASE = "2d_t", "cardiodit-phantom"
COHORTS = {"training": (600, 0), "validation": (16, 1), "test": (64, 3000)}  # number and seed
LABELS = ("normal", "dilated", "hypertrophic", "infarct")
DEPTH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="options of all trainings; must be last")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    latents = prepare(folder)
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in MODELS}
    for seed in range(arguments.seeds):
        for name in MODELS:
            run = f"{name}-{seed}"
            ids = [latents / split / ("slices.csv" if name == SLICES else "manifest.csv") for split in COHORTS][:2]
            paths = ["--training_ids", str(ids[0]), "--validation_ids", str(ids[1]), "--output_dir", str(folder)]
            options = ["--config", f"phantom/dimensions/{name}.yaml", "--vae", BASE, "--run_name", run, *paths]
            if not (folder / run / "pipeline").is_dir():
                train_dit.main([*options, "--seed", str(seed), *arguments.train])
            samples = folder / "samples" / run
            if not samples.is_dir():
                draw(folder / run / "pipeline", samples, arguments.samples, seed, slice_by_slice=name == SLICES)
            settings = EvaluationSettings(
                folder / "test" / "manifest.csv", samples, folder / "evaluated" / run, model=BASE
            )
            reports[name].append(evaluate(replace(settings, segmenter="phantom-segmenter")).report)
    (folder / "table.md").write_text(table(reports))
    print(table(reports))


def prepare(folder: Path) -> Path:
    """Write phantoms, their latents, and the latents of their slices as separately labelled samples."""
    for name, (number, seed) in COHORTS.items():
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed, workers=2)
    latents = folder / "latents"
    ids = [str(folder / name / "manifest.csv") for name in ("training", "validation")]
    if cardiodit(["encode", "--ids", *ids, "--vae", BASE, "--output_dir", str(latents), "--batch_size", "8"]):
        raise SystemExit(1)
    for name in ("training", "validation"):
        if not (latents / name / "slices.csv").is_file():
            split_slices(latents / name)
    return latents


def split_slices(folder: Path) -> None:
    rows = []
    (folder / "slices").mkdir(exist_ok=True)
    for _, row in read_table(folder / "manifest.csv", ("latent", "subject", "label")):
        file = folder / row["latent"]
        header, latent = read_latent(file)
        for place in range(DEPTH):
            name = f"slices/{file.stem}-{place}.safetensors"
            part = latent[:, place : place + 1].clone()
            write_latent(folder / name, part, replace(header, shape=tuple(part.shape)))
            rows.append({"latent": name, "subject": row["subject"], "label": f"{row['label']}-{place}"})
    write_manifest(folder / "slices.csv", rows)


def draw(model: Path, output: Path, number: int, seed: int, slice_by_slice: bool) -> None:
    """Generate samples with balanced labels, as NIfTI in [-1, 1]."""
    pipe = open_pipeline(str(model))
    pipe.set_progress_bar_config(disable=True)
    with new_folder(output) as folder:
        for index in range(number):
            label = LABELS[index % len(LABELS)]
            labels: Any = [f"{label}-{place}" for place in range(DEPTH)] if slice_by_slice else label
            count = DEPTH if slice_by_slice else 1
            out = pipe(
                class_labels=labels,
                num_samples=count,
                num_inference_steps=25,
                seed=seed,
                first_sample=index * count,
                decode_batch_size=8,
                output_type="np",
            )
            cine = np.concatenate(list(out.volumes), axis=2)  # slices (H, W, 1, T), or a single cine
            write_nifti(folder / f"sample{index:03d}.nii.gz", cine.astype(np.float32), pipe.geometry)


def table(reports: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table with mean, minimum and maximum over the seeds; the floor is that of the first seed."""
    lines = [f"| metric | {' | '.join(MODELS[name] for name in reports)} | floor | better |"]
    lines.append("|---" * (len(reports) + 3) + "|")
    first = next(iter(reports.values()))[0]
    for metric in first["metrics"]:
        cells = [mean_and_range([value_of(report, metric["name"]) for report in seeds]) for seeds in reports.values()]
        floor = metric["floor"]["value"] if metric["floor"] else None
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        cells += ["" if floor is None else f"{floor:.3g}", metric["better"]]
        lines.append(f"| {metric['title']}{unit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def value_of(report: dict[str, Any], name: str) -> float:
    return next((float(metric["value"]) for metric in report["metrics"] if metric["name"] == name), float("nan"))


def mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
