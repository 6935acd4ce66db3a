"""Measure how well masks control samples: compare requested structures with those found in generated volumes.

    python benchmarks/steering.py heart --output steering      # an adapter for cardiodit-phantom, about 50 minutes
    python benchmarks/steering.py chest --output steering      # a small VolDiT and its adapter, about 50 minutes
    python benchmarks/steering.py heart --output steering --model my-model      # without training

The phantoms lie at different positions in the image. The masks of held-out phantoms are requested, without a class
label. The Dice of the generated structures is compared with that of samples without control, and with an upper bound:
the Dice of the phantoms themselves. The bundled segmenter finds the heart's parts; lungs are the dark regions within
the chest. Run again to resume. Writes `steering.json`, and a GIF with mask, generated volume, and both overlaid.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cardiodit._util.atomic_io import new_folder
from cardiodit.cli import main as cardiodit
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, bundled_model
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_manifest, write_manifest
from cardiodit.imaging.nifti import read_labels, read_nifti, write_nifti
from cardiodit.imaging.phantom import chest_scene, scene, write_chests, write_cohort
from cardiodit.imaging.pictures import COLOURS, save_beat, strip_of
from cardiodit.imaging.volume import Volume
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.pipelines.load import open_pipeline
from cardiodit.training import train_dit, train_tgca, train_vqgan

LUNGS, HEART, DARK = 2, 5, -0.45  # labels; intensity threshold in [-1, 1]
WINDOWS = 3  # crops of each training phantom
COLUMNS = ("label", "slices", "mask_order")  # manifest columns that are valid for every crop
ABOVE_FREE, LEAST = 0.25, 0.75  # least gain in Dice over samples without control, least Dice
TILE = 80

Find = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A kind of phantom, and how to find its structures in generated volumes.

    Args:
        parts: structures whose Dice is reported, by label.
        least: least Dice of controlled samples.
        config: folder of the configs.
        write: function that writes a cohort of phantoms of a given size and spacing.
        size, spacing: size and voxel spacing of the images.
        moves: greatest shift from the centre in voxels; without shifts, position would show nothing about control.
        mask_labels: labels that the masks contain; others are removed.
        colours: colour index of each label in the GIF.
        cohort: number of training phantoms.
        finder: returns the function that finds the structures in a volume.
        stages: scripts that train the base model; empty if it is bundled.
    """

    parts: dict[int, str]
    least: float
    config: str
    write: Callable[..., Path]
    size: tuple[int, ...]
    spacing: tuple[float, float, float]
    moves: int
    mask_labels: tuple[int, ...]
    colours: dict[int, int]
    cohort: int
    finder: Callable[[], Find]
    stages: tuple[Any, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="a pipeline with an adapter, instead of training one")
    parser.add_argument("--count", type=int, default=16, help="held-out phantoms (default %(default)s)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--condition_guidance_scale", type=float, default=1.0)
    arguments = parser.parse_args()
    subject, folder = SUBJECTS[arguments.subject], arguments.output / arguments.subject
    folder.mkdir(parents=True, exist_ok=True)

    model = arguments.model or train(subject, folder)
    fresh = cohort(subject, folder, "fresh", arguments.count, seed=2000)
    scores, rows = judge(subject, model, fresh, arguments.steps, arguments.condition_guidance_scale)
    means = {
        name: dict(zip(subject.parts.values(), np.mean(values, axis=0).round(4).tolist()))
        for name, values in scores.items()
    }
    print(json.dumps(means, indent=1))
    (folder / "steering.json").write_text(json.dumps({"means": means, "each": scores}, indent=1) + "\n")
    recolour = np.vectorize(lambda label: subject.colours.get(label, 0))
    write_gif(folder / "steering.gif", [(recolour(mask), volume) for mask, volume in rows[:4]])
    gains = {part: means["steered"][part] - means["free"][part] for part in subject.parts.values()}
    met = min(gains.values()) >= ABOVE_FREE and min(means["steered"].values()) >= subject.least
    print("Masks control the samples." if met else f"Missed: Dice {means['steered']}, gain over free samples {gains}.")
    return 0 if met else 1


def train(subject: Subject, folder: Path, changes: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Train the base model unless one is bundled, encode latents with masks, train the adapter; return its pipeline.

    Args:
        changes: options that override the configs `vqgan`, `dit` and `tgca`.
    """
    counts = {"training": subject.cohort, "validation": max(2, subject.cohort // 12)}
    images = [cohort(subject, folder, name, count, seed) for seed, (name, count) in enumerate(counts.items())]
    runs, latents = folder / "runs", folder / "latents"

    def run(script: Any, name: str, ids: Sequence[Path], *more: str) -> None:
        paths = ["--training_ids", str(ids[0]), "--validation_ids", str(ids[1]), "--output_dir", str(runs)]
        config = ["--config", f"{subject.config}/{name}.yaml", "--run_name", name]
        script.main([*config, *paths, *more, *(changes or {}).get(name, ())])

    vae, base = ("cardiodit-phantom",) * 2 if not subject.stages else (str(runs / "vqgan"), str(runs / "dit/pipeline"))
    if subject.stages:
        run(train_vqgan, "vqgan", images)
    ids = [str(path) for path in images]
    command("encode", "--ids", *ids, "--vae", vae, "--output_dir", str(latents), "--condition_keys", "mask")
    manifests = [latents / name / "manifest.csv" for name in ("training", "validation")]
    if subject.stages:
        command("scale-factor", "--latents", str(manifests[0]), "--vae", vae)
        run(train_dit, "dit", manifests, "--vae", vae)
    run(train_tgca, "tgca", manifests, "--base", base)
    return runs / "tgca" / "pipeline"


def command(*words: str) -> None:
    if cardiodit(words):
        raise SystemExit(1)


def cohort(subject: Subject, folder: Path, name: str, count: int, seed: int) -> Path:
    if not (folder / name).is_dir():
        write_shifted(subject, folder / name, count, seed, WINDOWS if name == "training" else 1)
    return folder / name / "manifest.csv"


def judge(
    subject: Subject, model: Path | str, manifest: Path, steps: int, guidance: float
) -> tuple[dict[str, list[list[float]]], list[tuple[np.ndarray, np.ndarray]]]:
    """Return the Dice of each phantom's parts by kind of volume, and masks with the volumes generated for them."""
    find, pipe = subject.finder(), open_pipeline(str(model))
    pipe.set_progress_bar_config(disable=True)
    preprocessing = Preprocessing.from_dict(pipe.vae.config.preprocessing)
    scores: dict[str, list[list[float]]] = {"steered": [], "free": [], "ceiling": []}
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for index, case in enumerate(read_manifest(manifest)):
        prepared = prepare_case(case, preprocessing)
        mask = prepare_mask(case, prepared)
        assert mask is not None  # phantoms have masks
        settings: dict[str, Any] = {"num_inference_steps": steps, "seed": 0, "first_sample": index}
        settings |= {"decode_batch_size": 8, "output_type": "np"}
        steered = pipe(mask.voxels, condition_guidance_scale=guidance, **settings).volumes[0]
        free = pipe(mask.voxels, conditioning_scale=0.0, **settings).volumes[0]
        for name, volume in (("steered", steered), ("free", free), ("ceiling", prepared.volume.voxels)):
            scores[name].append(list(dice(find(volume), mask.voxels, tuple(subject.parts)).values()))
        rows.append((mask.voxels, steered))
    return scores, rows


def heart_finder() -> Find:
    return HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER)).segment


def find_lungs(volume: np.ndarray) -> np.ndarray:
    """Label dark voxels that are enclosed by bright ones on the left, right, front and back."""
    bright = np.asarray(volume) >= DARK
    inside = ~bright
    for axis in (0, 1):
        inside &= np.maximum.accumulate(bright, axis)
        inside &= np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
    return np.where(inside, LUNGS, 0)


def write_shifted(subject: Subject, folder: Path, number: int, seed: int, windows: int = 1) -> None:
    """Write phantoms at different positions in the image, like patients: crops of a larger field of view."""
    plane = tuple(n + 2 * subject.moves for n in subject.size[:2])
    with new_folder(folder) as temporary:
        field = subject.write(temporary / "field", number, seed, (*plane, *subject.size[2:]), subject.spacing)
        rows: list[dict[str, str]] = []
        for case in read_manifest(field):
            image, labels = read_nifti(case.image), read_labels(case.folder / case.row["mask"])
            requested = Volume(np.where(np.isin(labels.voxels, subject.mask_labels), labels.voxels, 0), labels.geometry)
            seen: set[tuple[int, ...]] = set()
            for window in range(windows):
                random = np.random.default_rng([seed, len(rows)])
                while (start := tuple(random.integers(0, 2 * subject.moves + 1, 2).tolist())) in seen:
                    pass
                seen.add(start)
                files = {column: f"{case.subject}-{window}-{column}.nii.gz" for column in ("image", "mask")}
                for volume, file in zip((image, requested), files.values()):
                    cropped = volume.crop((*start, 0), subject.size[:3])
                    write_nifti(temporary / file, cropped.voxels, cropped.geometry)
                columns = {column: case.row[column] for column in COLUMNS if column in case.row}
                rows.append({**files, "subject": case.subject, **columns})
        write_manifest(temporary / "manifest.csv", rows)


def write_gif(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write one row per volume: mask, generated volume, and both. Hearts play over time, chests over slices."""
    frames = []
    is_cine = rows[0][0].ndim == 4
    for place in range(rows[0][0].shape[-1]):
        lines = []
        for mask, volume in rows:
            middle = slice(mask.shape[2] // 2 - 2, mask.shape[2] // 2 + 1) if is_cine else slice(place, place + 1)
            where = (slice(None), slice(None), middle, *((place,) if is_cine else ()))
            grey, outlined = (strip_of(volume[where], drawn, (-1, 1)) for drawn in (None, mask[where]))
            lines.append(np.concatenate([coloured(mask[where]), rgb(grey), outlined], axis=1))
        sheet = Image.fromarray(np.concatenate(lines))
        zoom = TILE / rows[0][0].shape[1]
        frames.append(sheet.resize((round(sheet.width * zoom), round(sheet.height * zoom)), Image.Resampling.BICUBIC))
    save_beat(path, frames, None)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def coloured(mask: np.ndarray) -> np.ndarray:
    turned = strip_of(mask.astype(float), None, (0, 255))
    picture = np.zeros((*turned.shape, 3), np.uint8)
    for label, colour in COLOURS.items():
        picture[turned == label] = colour
    return picture


HEART_SIZE, CHEST_SIZE = (64, 64, 8, 16), (64, 64, 48)
SUBJECTS = {
    "heart": Subject(
        parts={2: "myocardium", 3: "left ventricle"},
        least=LEAST,
        config="phantom",
        write=partial(write_cohort, workers=2),
        size=HEART_SIZE,
        spacing=scene.default_spacing(HEART_SIZE),
        moves=12,
        mask_labels=(1, 2, 3),
        colours={1: 1, 2: 2, 3: 3},
        cohort=200,
        finder=heart_finder,
        stages=(),
    ),
    "chest": Subject(
        parts={LUNGS: "lungs"},
        least=0.0,
        config="chest",
        write=partial(write_chests, workers=2),
        size=CHEST_SIZE,
        spacing=chest_scene.default_spacing(CHEST_SIZE),
        moves=6,
        mask_labels=(LUNGS, HEART),
        colours={LUNGS: 2, HEART: 3},
        cohort=200,
        finder=lambda: find_lungs,
        stages=(train_vqgan, train_dit),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
