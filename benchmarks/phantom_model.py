"""Test the quality of the model in checkpoints/cardiodit-phantom against held-out phantoms.

Tests the VQ model alone, then the pipeline: for each of three seeds, 64 samples with balanced labels are compared with
64 held-out phantoms. The bundled segmenter measures both. Writes `results.json` and pictures of the first samples, and
prints all results; the exit code is 1 if a criterion is missed.

    python benchmarks/phantom_model.py --model checkpoints/cardiodit-phantom --output results
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.stats import wasserstein_distance

from cardiodit import CardioDiTPipeline
from cardiodit.evaluation.metrics.function import (
    LV,
    largest_body_share,
    leak_share,
    left_ventricle,
    wall_thickness_mm,
    weakest_contraction,
)
from cardiodit.evaluation.reconstruction import reconstruct
from cardiodit.hub.load import open_vae
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.pictures import strip_of
from cardiodit.imaging.preprocessing import Prepared, Preprocessing
from cardiodit.models.segmenter import HeartSegmenter, dice

LABELS = ("normal", "dilated", "hypertrophic", "infarct")  # in the order of a cohort
ORDER = ("dilated", "infarct", "normal", "hypertrophic")  # by ejection fraction
FIRST_FRESH_SEED = 1000
ONE_BODY = 0.98  # least share of the ventricle's voxels in one piece
MARGIN = 3  # voxels around the labels that count as the heart's region
# Limits of the criteria.
VQ_SHIFT, EF_SHIFT, EF_DISTANCE, BODIES, TEXTURE, STEERING, DICE = 2.0, 5.0, 4.0, 0.90, 0.25, 0.5, 0.9


@dataclass(frozen=True)
class Measured:
    """One heart, measured by the segmenter."""

    label: str
    ef: float
    edv: float
    wall: float
    weakest: float
    body: float
    leak: float
    between_slices: float
    between_frames: float


def measure(cine: np.ndarray, label: str, geometry: Geometry, segmenter: HeartSegmenter) -> Measured:
    labels = segmenter.segment(cine)
    heart = left_ventricle(labels, geometry)
    region = binary_dilation((labels > 0).any(axis=3), iterations=MARGIN)
    both = region[:, :, 1:] & region[:, :, :-1]
    return Measured(
        label=label,
        ef=heart.ef,
        edv=heart.edv,
        wall=wall_thickness_mm(labels, geometry),
        weakest=weakest_contraction(labels, geometry),
        body=largest_body_share(labels),
        leak=leak_share(labels),
        between_slices=float(np.abs(np.diff(cine, axis=2))[both].mean()),
        between_frames=float(np.abs(cine - np.roll(cine, 1, axis=3))[region].mean()),
    )


class Phantoms:
    """Held-out phantoms of a seed, preprocessed like the model's training volumes."""

    def __init__(self, folder: Path, seed: int, count: int, steps: Preprocessing) -> None:
        if not folder.is_dir():
            write_cohort(folder, count, seed, workers=2)
        self.cases = read_manifest(folder / "manifest.csv")
        self.prepared: list[Prepared] = [prepare_case(case, steps) for case in self.cases]
        self.masks = [prepare_mask(case, prepared) for case, prepared in zip(self.cases, self.prepared)]
        self.labels = [case.row["label"] for case in self.cases]
        self.exact_ef = [float(case.row["lv_ef_percent"]) for case in self.cases]

    def measure(self, segmenter: HeartSegmenter, vae: torch.nn.Module | None = None) -> list[Measured]:
        """Measure the phantoms, or their reconstructions by the VQ model."""
        measured = []
        for prepared, label in zip(self.prepared, self.labels):
            cine = prepared.volume.voxels if vae is None else reconstruct(vae, prepared).voxels
            measured.append(measure(cine, label, prepared.volume.geometry, segmenter))
        return measured


def judge_segmenter(phantoms: Phantoms, segmenter: HeartSegmenter, raw: Sequence[Measured]) -> dict:
    overlaps = [
        dice(segmenter.segment(p.volume.voxels), mask.voxels) for p, mask in zip(phantoms.prepared, phantoms.masks)
    ]
    means = {name: float(np.mean([o[i] for o in overlaps])) for i, name in ((1, "rv"), (2, "myo"), (3, "lv"))}
    bias = float(np.mean([m.ef - exact for m, exact in zip(raw, phantoms.exact_ef)]))
    return {"dice": means, "ef_bias": bias, "met": {"dice": min(means.values()) >= DICE}}


def judge_vae(raw: Sequence[Measured], reconstructed: Sequence[Measured]) -> dict:
    shifts = [b.ef - a.ef for a, b in zip(raw, reconstructed)]
    of_labels = {label: mean([s for s, m in zip(shifts, raw) if m.label == label]) for label in LABELS}
    results = {"ef_shift": mean(shifts), "ef_shift_of_labels": of_labels, "ef_shift_absolute": mean(np.abs(shifts))}
    return {**results, "met": {"ef_shift": abs(results["ef_shift"]) <= VQ_SHIFT}}


def judge_samples(samples: Sequence[Measured], raw: Sequence[Measured], reconstructed: Sequence[Measured]) -> dict:
    """Compare samples with phantoms (function, effect of labels) and with reconstructed phantoms (texture)."""
    ef, ef_raw = by_label(samples, "ef"), by_label(raw, "ef")
    steering = {name: share(samples, raw) for name, share in STEERED.items()}
    texture = {
        name: mean([getattr(m, name) for m in samples]) / mean([getattr(m, name) for m in reconstructed])
        for name in ("between_slices", "between_frames")
    }
    results = {
        "ef_of_labels": ef,
        "ef_of_labels_of_phantoms": ef_raw,
        "ef_distance": float(wasserstein_distance([m.ef for m in samples], [m.ef for m in raw])),
        "one_body": mean([m.body >= ONE_BODY for m in samples]),
        "one_body_of_phantoms": mean([m.body >= ONE_BODY for m in raw]),
        "leak": mean([m.leak for m in samples]),
        "leak_of_phantoms": mean([m.leak for m in raw]),
        "texture": texture,
        "steering": steering,
        "edv_of_labels": by_label(samples, "edv"),
        "edv_of_labels_of_phantoms": by_label(raw, "edv"),
        "wall_of_labels": by_label(samples, "wall"),
        "wall_of_labels_of_phantoms": by_label(raw, "wall"),
        "weakest_of_labels": by_label(samples, "weakest"),
        "weakest_of_labels_of_phantoms": by_label(raw, "weakest"),
    }
    results["met"] = {
        "ef_of_labels": all(abs(ef[label] - ef_raw[label]) <= EF_SHIFT for label in LABELS),
        "order": sorted(ef, key=ef.__getitem__) == list(ORDER),
        "ef_distance": results["ef_distance"] <= EF_DISTANCE,
        "one_body": results["one_body"] >= BODIES,
        "texture": all(abs(ratio - 1) <= TEXTURE for ratio in texture.values()),
        "steering": all(strength >= STEERING for strength in steering.values()),
    }
    return results


def separation(measured: Sequence[Measured], name: str, label: str, others: Sequence[str]) -> float:
    values = by_label(measured, name)
    return values[label] - mean([values[other] for other in others])


def steered(name: str, label: str, others: Sequence[str]):
    """Return a function for the effect of a label on a measure among samples, relative to phantoms."""
    return lambda samples, raw: separation(samples, name, label, others) / separation(raw, name, label, others)


STEERED = {
    "size of dilated hearts": steered("edv", "dilated", ("normal", "hypertrophic", "infarct")),
    "wall of hypertrophic hearts": steered("wall", "hypertrophic", ("normal", "dilated", "infarct")),
    "ejection of infarcted hearts": steered("ef", "infarct", ("normal",)),
    "weakest sector of infarcted hearts": steered("weakest", "infarct", ("normal",)),
}


def by_label(measured: Sequence[Measured], name: str) -> dict[str, float]:
    return {label: mean([getattr(m, name) for m in measured if m.label == label]) for label in LABELS}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def sample(pipe: CardioDiTPipeline, seed: int, count: int, arguments: argparse.Namespace) -> list[np.ndarray]:
    made: list[np.ndarray] = []
    while len(made) < count:
        batch = min(8, count - len(made))
        labels = [LABELS[(len(made) + i) % 4] for i in range(batch)]
        made += list(
            pipe(
                class_labels=labels,
                seed=seed,
                first_sample=len(made),
                num_inference_steps=arguments.steps,
                guidance_scale=arguments.guidance_scale,
                decode_batch_size=8,
                output_type="np",
            ).volumes
        )
    return made


def picture(path: Path, cines: Sequence[np.ndarray], segmenter: HeartSegmenter) -> None:
    """Write all slices of each heart at its first and its smallest frame, two hearts a row, with and without labels."""
    tiles = []
    for cine in cines:
        labels = segmenter.segment(cine)
        least, rows = int((labels == LV).sum(axis=(0, 1, 2)).argmin()), []
        for t in (0, least):
            rows += [strip_of(cine[..., t], labels[..., t] * overlay, (-1, 1)) for overlay in (0, 1)]
        tiles.append(np.concatenate(rows))
    across = 2
    lines = [np.concatenate(tiles[i : i + across], axis=1) for i in range(0, len(tiles), across)]
    Image.fromarray(np.concatenate(lines)).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder; without it only the VQ model is tested")
    parser.add_argument("--vae", help="VQ model (default: that of the pipeline)")
    parser.add_argument("--segmenter", default="checkpoints/phantom-segmenter")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    segmenter = HeartSegmenter.from_pretrained(arguments.segmenter)
    vae = open_vae(arguments.vae or arguments.model)
    pipe = CardioDiTPipeline.from_pretrained(arguments.model) if arguments.model else None
    results = {}
    for seed in arguments.seeds:
        fresh = FIRST_FRESH_SEED + seed
        phantoms = Phantoms(
            arguments.output / f"fresh{fresh}-{arguments.count}",
            fresh,
            arguments.count,
            Preprocessing.from_dict(vae.config.preprocessing),
        )
        raw, reconstructed = phantoms.measure(segmenter), phantoms.measure(segmenter, vae)
        result = {"segmenter": judge_segmenter(phantoms, segmenter, raw), "vae": judge_vae(raw, reconstructed)}
        if pipe is not None:
            pipe.set_progress_bar_config(leave=False)
            cines = sample(pipe, seed, arguments.count, arguments)
            labels = [LABELS[i % 4] for i in range(len(cines))]
            samples = [measure(cine, label, pipe.geometry, segmenter) for cine, label in zip(cines, labels)]
            result["samples"] = judge_samples(samples, raw, reconstructed)
            result["each"] = [asdict(m) for m in samples]
            picture(arguments.output / f"samples-seed{seed}.png", cines[:16], segmenter)
        results[seed] = result
        print(f"seed {seed}")
        for part, values in result.items():
            if part != "each":
                print(f"  {part}")
                for name, value in values.items():
                    print(f"    {name}: {formatted(value)}")
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    missed = [
        f"seed {seed}: {part}.{name}"
        for seed, result in results.items()
        for part, values in result.items()
        if part != "each"
        for name, met in values["met"].items()
        if not met
    ]
    print("All criteria are met." if not missed else f"Missed: {'; '.join(missed)}")
    return 1 if missed else 0


def formatted(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {formatted(v)}" for name, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
