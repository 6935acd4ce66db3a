"""Do masks steer? Structures that were requested beside those that are found in what was generated.

    python benchmarks/steering.py heart --output steering      # an adapter for cardiodit-phantom, about 50 minutes
    python benchmarks/steering.py chest --output steering      # VolDiT in small and its adapter, about 50 minutes
    python benchmarks/steering.py heart --output steering --model my-model      # only judges

Phantoms lie differently in the picture. For some that no training has seen, their own segmentation is requested,
without a class label. Beside the Dice of what is found stand that of samples which nothing steers, and the ceiling:
what is found in the phantoms themselves. The heart's parts are named by the shipped segmenter; the lungs are what
is dark within the chest. The steps go on where they were stopped. Writes `steering.json`, and a GIF: mask,
generated volume, both.
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

LUNGS, HEART, DARK = 2, 5, -0.45  # labels; in [-1, 1] of the window
WINDOWS = 3  # of each body that an adapter learns from
TOLD = ("label", "slices", "mask_order")  # columns that hold for every window
ABOVE_FREE, LEAST = 0.25, 0.75
TILE = 80

Find = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """What is generated, and how its parts are found again.

    Args:
        parts: whose Dice is told.
        least: Dice that the steered must reach.
        config: where the configs lie.
        write: a cohort of phantoms of a size and a spacing.
        size, spacing: of the pictures.
        moves: voxels by which they lie differently at most: else all bodies lay in the same place, steered or not.
        asked: labels of the masks; the others are left out of them.
        shown: how these are coloured.
        cohort: bodies that the adapter learns from.
        finder: of the parts in a volume.
        stages: scripts that make the base.
    """

    parts: dict[int, str]
    least: float
    config: str
    write: Callable[..., Path]
    size: tuple[int, ...]
    spacing: tuple[float, float, float]
    moves: int
    asked: tuple[int, ...]
    shown: dict[int, int]
    cohort: int
    finder: Callable[[], Find]
    stages: tuple[Any, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="a pipeline with an adapter, in place of training one")
    parser.add_argument("--count", type=int, default=16, help="unseen phantoms")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--condition_guidance_scale", type=float, default=1.0)
    arguments = parser.parse_args()
    subject, folder = SUBJECTS[arguments.subject], arguments.output / arguments.subject
    folder.mkdir(parents=True, exist_ok=True)

    model = arguments.model or train(subject, folder)
    fresh = cohort(subject, folder, "fresh", arguments.count, seed=2000)
    found, rows = judge(subject, model, fresh, arguments.steps, arguments.condition_guidance_scale)
    means = {
        name: dict(zip(subject.parts.values(), np.mean(values, axis=0).round(4).tolist()))
        for name, values in found.items()
    }
    print(json.dumps(means, indent=1))
    (folder / "steering.json").write_text(json.dumps({"means": means, "each": found}, indent=1) + "\n")
    recolour = np.vectorize(lambda label: subject.shown.get(label, 0))
    write_gif(folder / "steering.gif", [(recolour(mask), volume) for mask, volume in rows[:4]])
    gains = {part: means["steered"][part] - means["free"][part] for part in subject.parts.values()}
    met = min(gains.values()) >= ABOVE_FREE and min(means["steered"].values()) >= subject.least
    print("Masks steer." if met else f"Missed: Dice {means['steered']}, above free samples by {gains}.")
    return 0 if met else 1


def train(subject: Subject, folder: Path, changes: Mapping[str, Sequence[str]] | None = None) -> Path:
    """The base, where none is shipped, latents with masks beside them, and the adapter; returns its pipeline.

    Args:
        changes: of the configs `vqgan`, `dit` and `tgca`, as options.
    """
    counts = {"training": subject.cohort, "validation": max(2, subject.cohort // 12)}
    images = [cohort(subject, folder, name, count, seed) for seed, (name, count) in enumerate(counts.items())]
    runs, latents = folder / "runs", folder / "latents"

    def run(script: Any, name: str, ids: Sequence[Path], *more: str) -> None:
        given = ["--training_ids", str(ids[0]), "--validation_ids", str(ids[1]), "--output_dir", str(runs)]
        config = ["--config", f"{subject.config}/{name}.yaml", "--run_name", name]
        script.main([*config, *given, *more, *(changes or {}).get(name, ())])

    vae, base = ("cardiodit-phantom",) * 2 if not subject.stages else (str(runs / "vqgan"), str(runs / "dit/pipeline"))
    if subject.stages:
        run(train_vqgan, "vqgan", images)
    ids = [str(path) for path in images]
    command("encode", "--ids", *ids, "--vae", vae, "--output_dir", str(latents), "--condition_keys", "mask")
    coded = [latents / name / "manifest.csv" for name in ("training", "validation")]
    if subject.stages:
        command("scale-factor", "--latents", str(coded[0]), "--vae", vae)
        run(train_dit, "dit", coded, "--vae", vae)
    run(train_tgca, "tgca", coded, "--base", base)
    return runs / "tgca" / "pipeline"


def command(*words: str) -> None:
    if cardiodit(words):
        raise SystemExit(1)


def cohort(subject: Subject, folder: Path, name: str, count: int, seed: int) -> Path:
    if not (folder / name).is_dir():
        write_moved(subject, folder / name, count, seed, WINDOWS if name == "training" else 1)
    return folder / name / "manifest.csv"


def judge(
    subject: Subject, model: Path | str, manifest: Path, steps: int, guidance: float
) -> tuple[dict[str, list[list[float]]], list[tuple[np.ndarray, np.ndarray]]]:
    """Dice of each phantom's parts by what was measured, and masks with what was generated for them."""
    find, pipe = subject.finder(), open_pipeline(str(model))
    pipe.set_progress_bar_config(disable=True)
    preprocessing = Preprocessing.from_dict(pipe.vae.config.preprocessing)
    found: dict[str, list[list[float]]] = {"steered": [], "free": [], "ceiling": []}
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for index, case in enumerate(read_manifest(manifest)):
        prepared = prepare_case(case, preprocessing)
        mask = prepare_mask(case, prepared)
        assert mask is not None  # phantoms have one
        settings: dict[str, Any] = {"num_inference_steps": steps, "seed": 0, "first_sample": index}
        settings |= {"decode_batch_size": 8, "output_type": "np"}
        steered = pipe(mask.voxels, condition_guidance_scale=guidance, **settings).volumes[0]
        free = pipe(mask.voxels, conditioning_scale=0.0, **settings).volumes[0]
        for name, volume in (("steered", steered), ("free", free), ("ceiling", prepared.volume.voxels)):
            found[name].append(list(dice(find(volume), mask.voxels, tuple(subject.parts)).values()))
        rows.append((mask.voxels, steered))
    return found, rows


def heart_finder() -> Find:
    return HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER)).segment


def find_lungs(volume: np.ndarray) -> np.ndarray:
    """What is dark within the chest: with something bright to the left, to the right, in front and behind."""
    bright = np.asarray(volume) >= DARK
    inside = ~bright
    for axis in (0, 1):
        inside &= np.maximum.accumulate(bright, axis)
        inside &= np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
    return np.where(inside, LUNGS, 0)


def write_moved(subject: Subject, folder: Path, number: int, seed: int, windows: int = 1) -> None:
    """Bodies that lie differently in the picture, as patients do: windows into a larger field of view."""
    plane = tuple(n + 2 * subject.moves for n in subject.size[:2])
    with new_folder(folder) as temporary:
        field = subject.write(temporary / "field", number, seed, (*plane, *subject.size[2:]), subject.spacing)
        rows: list[dict[str, str]] = []
        for case in read_manifest(field):
            image, labels = read_nifti(case.image), read_labels(case.folder / case.row["mask"])
            asked = Volume(np.where(np.isin(labels.voxels, subject.asked), labels.voxels, 0), labels.geometry)
            seen: set[tuple[int, ...]] = set()
            for window in range(windows):
                random = np.random.default_rng([seed, len(rows)])
                while (start := tuple(random.integers(0, 2 * subject.moves + 1, 2).tolist())) in seen:
                    pass
                seen.add(start)
                files = {column: f"{case.subject}-{window}-{column}.nii.gz" for column in ("image", "mask")}
                for volume, file in zip((image, asked), files.values()):
                    shown = volume.crop((*start, 0), subject.size[:3])
                    write_nifti(temporary / file, shown.voxels, shown.geometry)
                told = {column: case.row[column] for column in TOLD if column in case.row}
                rows.append({**files, "subject": case.subject, **told})
        write_manifest(temporary / "manifest.csv", rows)


def write_gif(path: Path, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """For each a row: the mask, what was generated, and both. A heart beats; a chest passes slice by slice."""
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
        asked=(1, 2, 3),
        shown={1: 1, 2: 2, 3: 3},
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
        asked=(LUNGS, HEART),
        shown={LUNGS: 2, HEART: 3},
        cohort=200,
        finder=lambda: find_lungs,
        stages=(train_vqgan, train_dit),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
