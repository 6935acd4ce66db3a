"""Measure what `cardiodit evaluate` notices: broken generators of phantoms, and the verdicts they get.

    python benchmarks/sensitivity.py --output sensitivity                  all generators, 40 hearts a set
    python benchmarks/sensitivity.py --output sensitivity --only "time reversed" "mirrored"
    python benchmarks/sensitivity.py --output sensitivity --hearts 8 --size 32 32 6 9    a quick trial run

Each generator takes other phantoms than the real set and breaks them in one way, image and labels alike; ideal ones
leave them as they are and show what chance does. The table goes to sensitivity.md and sensitivity.json in the output
folder. Evidence is a distribution that differs after Holm's correction, a metric of features that is outside of its
floor by more than half of the floor's range, or copies with p < 0.01. Measurements are cached there.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measuring import machine
from scipy.ndimage import gaussian_filter, map_coordinates, shift, zoom

from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.evaluation.report.report_file import current_metrics
from cardiodit.evaluation.report.summary import SUSPICIOUS, hearts_of, holm, verdict
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
from cardiodit.imaging.label_order import ACDC_ORDER
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.orientation import BASE_TO_APEX
from cardiodit.imaging.phantom import GROUPS, draw_heart, render

ROOT = Path(__file__).parents[1]
AS_WRITTEN = Preprocessing(intensity=Intensity(-1, 1))
EARLIER = ROOT / "tests" / "fixtures" / "saved" / "report-0.1" / "report.json"  # its metrics are those of version 0.1
RENAMED = {"kid_spatial": "mmd_rbf_spatial", "kid_spatiotemporal": "mmd_rbf_spatiotemporal"}
BY_MUCH = 0.5  # of a floor's range, beyond which a metric without a test is evidence
CERTAIN = 0.01  # p of copies
SHOWN = 3  # metrics named per generator


@dataclass(frozen=True)
class Heart:
    """One volume of a generator: image in [-1, 1] and labels `(H, W, D, T)`."""

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry

    def on_both(self, change: Callable[[np.ndarray], np.ndarray]) -> "Heart":
        return Heart(change(self.image), change(self.labels), self.geometry)

    def on_image(self, change: Callable[[np.ndarray], np.ndarray]) -> "Heart":
        return Heart(np.clip(change(self.image), -1, 1), self.labels, self.geometry)


Break = Callable[[list[Heart], list[Heart], np.random.Generator], list[Heart]]
BREAKS: dict[str, Break] = {}


def generator(name: str) -> Callable[[Break], Break]:
    def register(function: Break) -> Break:
        BREAKS[name] = function
        return function

    return register


def each(name: str, change: Callable[[Heart, np.random.Generator], Heart]) -> None:
    """Register a generator that breaks every heart by itself."""
    BREAKS[name] = lambda hearts, training, rng: [change(heart, rng) for heart in hearts]


def resized(heart: Heart, factor: float) -> Heart:
    """Scale the heart within its planes; the grid and the voxel size remain."""
    centre = (np.array(heart.image.shape[:2]) - 1) / 2
    grid = np.indices(heart.image.shape[:2]).astype(np.float64)
    places = (grid - centre[:, None, None]) / factor + centre[:, None, None]

    def scaled(order: int) -> Callable[[np.ndarray], np.ndarray]:
        def scale(voxels: np.ndarray) -> np.ndarray:
            flat = voxels.reshape(*voxels.shape[:2], -1)
            planes = [map_coordinates(flat[..., i], places, order=order, mode="nearest") for i in range(flat.shape[2])]
            return np.stack(planes, axis=2).reshape(voxels.shape)

        return scale

    return Heart(scaled(1)(heart.image), scaled(0)(heart.labels), heart.geometry)


def with_motion(heart: Heart, share: float) -> Heart:
    """Let the beat go only part of the way to end-systole, or beyond: another ejection fraction."""
    areas = (heart.labels == 3).sum(axis=(0, 1, 2))
    frames, systole = len(areas), int(areas.argmin())
    way = np.arange(frames)
    depth = np.where(way <= systole, way * share, frames - (frames - way) * share)
    return heart.on_both(lambda voxels: voxels[..., np.round(depth).astype(int) % frames])


def noisy(heart: Heart, rng: np.random.Generator, share: float) -> Heart:
    return heart.on_image(lambda image: image + rng.normal(0, 2 * share, image.shape))


def out_of_phase(heart: Heart, rng: np.random.Generator) -> Heart:
    turns = rng.integers(heart.image.shape[3], size=heart.image.shape[2])
    return heart.on_both(
        lambda voxels: np.stack([np.roll(voxels[:, :, d], turn, axis=2) for d, turn in enumerate(turns)], axis=2)
    )


def without_apex(heart: Heart) -> Heart:
    """The last two slices are empty of heart: they repeat the one before, and its labels are background."""
    depth = heart.image.shape[2]
    image = heart.image[:, :, [*range(depth - 2), depth - 3, depth - 3]]
    labels = heart.labels.copy()
    labels[:, :, -2:] = 0
    return Heart(image, labels, heart.geometry)


def with_leaks(heart: Heart) -> Heart:
    """A sector of the myocardium is missing in every slice."""
    h, w = np.indices(heart.labels.shape[:2])[..., None, None]
    centre = np.argwhere(heart.labels == 3)[:, :2].mean(axis=0)
    hole = (heart.labels == 2) & (h > centre[0]) & (np.abs(w - centre[1]) < 4)
    dark = float(np.median(heart.image))
    return Heart(np.where(hole, dark, heart.image), np.where(hole, 0, heart.labels), heart.geometry)


def delayed(heart: Heart, frames: int) -> Heart:
    return heart.on_both(lambda voxels: np.roll(voxels, -frames, axis=3))


def shuffled(heart: Heart, rng: np.random.Generator) -> Heart:
    order = rng.permutation(heart.image.shape[2])
    return heart.on_both(lambda voxels: voxels[:, :, order])


def stretched(heart: Heart, factor: float) -> Heart:
    """Write larger voxels into the header than there are."""
    assert heart.geometry.spacing is not None
    h, w, d = heart.geometry.spacing
    return replace(heart, geometry=replace(heart.geometry, spacing=(factor * h, factor * w, factor * d)))


def smooth(image: np.ndarray, sigma: tuple[float, ...]) -> np.ndarray:
    return gaussian_filter(image, sigma, mode=("nearest", "nearest", "nearest", "wrap"))


def moved(heart: Heart, voxels: int) -> Heart:
    def move(values: np.ndarray) -> np.ndarray:
        return shift(values, (voxels, -voxels, 0, 0), order=0, mode="nearest")

    return heart.on_both(move)


def striped(heart: Heart) -> Heart:
    pattern = 0.1 * ((np.indices(heart.image.shape[:2]).sum(axis=0) // 2) % 2 * 2 - 1)
    return heart.on_image(lambda image: image + pattern[:, :, None, None])


def coarse(image: np.ndarray) -> np.ndarray:
    """Half the resolution in the planes."""
    half = zoom(image, (0.5, 0.5, 1, 1), order=1)
    return zoom(half, (2, 2, 1, 1), order=1)


for number in (1, 2, 3):
    each(f"ideal {number}", lambda heart, rng: heart)
each("time reversed", lambda heart, rng: heart.on_both(lambda v: v[..., np.r_[0, v.shape[3] - 1 : 0 : -1]]))
each("begins a quarter of a beat late", lambda heart, rng: delayed(heart, heart.image.shape[3] // 4))
each("begins at any frame", lambda heart, rng: delayed(heart, int(rng.integers(heart.image.shape[3]))))
each("beat cut at 70%", lambda heart, rng: heart.on_both(lambda v: v[..., np.arange(v.shape[3]) * 7 // 10]))
each("mirrored, left and right", lambda heart, rng: heart.on_both(lambda v: v[::-1]))
each("mirrored, up and down", lambda heart, rng: heart.on_both(lambda v: v[:, ::-1]))
each("apex and base exchanged", lambda heart, rng: heart.on_both(lambda v: v[:, :, ::-1]))
each("turned by 180°", lambda heart, rng: heart.on_both(lambda v: v[::-1, ::-1]))
each("labels of LV and RV exchanged", lambda heart, rng: replace(heart, labels=np.array([0, 3, 2, 1])[heart.labels]))
each("slices shuffled", lambda heart, rng: shuffled(heart, rng))
each("slices out of phase", out_of_phase)
each("frames jittered", lambda heart, rng: heart.on_both(lambda v: v[..., np.arange(v.shape[3] // 2 * 2) ^ 1]))
each("static", lambda heart, rng: heart.on_both(lambda v: np.repeat(v[..., :1], v.shape[3], axis=3)))
each("half of the motion", lambda heart, rng: with_motion(heart, 0.5))
each("cavities larger by 10%", lambda heart, rng: resized(heart, 1.1))
each("off centre by 3 voxels", lambda heart, rng: moved(heart, 3))
each("voxel size 4.5% too large", lambda heart, rng: stretched(heart, 1.045))
each("contrast inverted", lambda heart, rng: heart.on_image(lambda i: -i))
each("contrast flattened (× 0.8)", lambda heart, rng: heart.on_image(lambda i: i.mean() + 0.8 * (i - i.mean())))
each("blurred in the plane", lambda heart, rng: heart.on_image(lambda i: smooth(i, (1, 1, 0, 0))))
each("blurred in time", lambda heart, rng: heart.on_image(lambda i: smooth(i, (0, 0, 0, 1.5))))
each("half the resolution", lambda heart, rng: heart.on_image(coarse))
each("noise of 3%", lambda heart, rng: noisy(heart, rng, 0.03))
each("checkerboard", lambda heart, rng: striped(heart))
each("apex missing", lambda heart, rng: without_apex(heart))
each("holes in the wall", lambda heart, rng: with_leaks(heart))


@generator("copies of training volumes, faint noise")
def copies(hearts: list[Heart], training: list[Heart], rng: np.random.Generator) -> list[Heart]:
    return [noisy(training[i % len(training)], rng, 0.005) for i in range(len(hearts))]


@generator("a quarter are copies of training volumes")
def some_copies(hearts: list[Heart], training: list[Heart], rng: np.random.Generator) -> list[Heart]:
    return [noisy(training[i], rng, 0.005) if i % 4 == 0 else heart for i, heart in enumerate(hearts)]


@generator("too little variety (× 0.7 around the mean)")
def little_variety(hearts: list[Heart], training: list[Heart], rng: np.random.Generator) -> list[Heart]:
    mean = np.mean([heart.image for heart in hearts], axis=0)
    return [Heart(mean + 0.7 * (heart.image - mean), heart.labels, heart.geometry) for heart in hearts]


@generator("two of four groups missing")
def missing_groups(hearts: list[Heart], training: list[Heart], rng: np.random.Generator) -> list[Heart]:
    """Phantoms come in turns from four groups; what is missing is filled up with noisy repetitions."""
    kept = [heart for i, heart in enumerate(hearts) if i % 4 < 2]
    return [*kept, *(noisy(heart, rng, 0.01) for heart in kept)][: len(hearts)]


@generator("one heart repeated")
def one_heart(hearts: list[Heart], training: list[Heart], rng: np.random.Generator) -> list[Heart]:
    return [noisy(hearts[0], rng, 0.01) for _ in hearts]


@lru_cache(maxsize=4)
def phantoms(seed: int, count: int, size: tuple[int, int, int, int]) -> list[Heart]:
    """Return hearts of four groups in turn, as a generator trained on [-1, 1] would sample them."""
    hearts = []
    for i in range(count):
        random = np.random.default_rng([seed, i])
        phantom = render(draw_heart(list(GROUPS)[i % len(GROUPS)], random), size, random)
        low, high = np.percentile(phantom.image, [0.5, 99.5])
        image = np.clip(2 * (phantom.image - low) / (high - low) - 1, -1, 1)
        hearts.append(Heart(image.astype(np.float32), phantom.labels, phantom.geometry))
    return hearts


def write_hearts(folder: Path, hearts: list[Heart]) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for i, heart in enumerate(hearts):
        row = {"image": f"{i:03d}.nii.gz", "mask": f"{i:03d}-labels.nii.gz", "subject": f"{folder.name}-{i:03d}"}
        write_nifti(folder / row["image"], heart.image.astype(np.float32), heart.geometry)
        write_nifti(folder / row["mask"], heart.labels.astype(np.uint8), heart.geometry)
        rows.append({**row, "mask_order": ACDC_ORDER, "slices": BASE_TO_APEX, "ed_frame": 0})
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """Count the verdicts of all metrics and of those of version 0.1, and name the strongest evidence."""
    earlier = {RENAMED.get(metric["name"], metric["name"]) for metric in json.loads(EARLIER.read_text())["metrics"]}
    metrics = current_metrics(report)
    verdicts = {metric["name"]: verdict(metric, hearts_of(report)) for metric in metrics}
    evidence: dict[str, float] = {}
    differing = {}
    for names in (set(verdicts), earlier):
        compared = [d for d in report["distributions"] if f"wasserstein_{d['name']}" in names]
        certain = holm([d["comparison"]["p_value"] for d in compared])
        differing[len(differing)] = [d for d, is_certain in zip(compared, certain, strict=True) if is_certain]
    for found in differing[0]:
        comparison = found["comparison"]
        evidence[found["title"]] = comparison["wasserstein"] / max(comparison["floor_high"], 1e-12)
    for metric in metrics:
        if metric["group"] not in ("distribution", "diversity", "copies") or not verdicts[metric["name"]]:
            continue
        beyond, p_value = _beyond(metric["floor"]), metric["p_value"]
        if beyond > BY_MUCH if p_value is None else p_value < CERTAIN:
            evidence[metric["title"]] = 1 + beyond
    named = sorted(evidence, key=evidence.__getitem__, reverse=True)
    not_within = [name for name, found in verdicts.items() if found not in (None, "within")]
    return {
        "verdicts": [len(not_within), sum(map(bool, verdicts.values()))],
        "verdicts_0_1": [len(earlier & set(not_within)), sum(bool(verdicts.get(name)) for name in earlier)],
        "suspicious": sum(found == SUSPICIOUS for found in verdicts.values()),
        "differing": len(differing[0]),
        "differing_0_1": len(differing[1]),
        "evidence": named,
        "notes": report["protocol"]["notes"],
        "not_within": not_within,
    }


def _beyond(floor: dict[str, Any]) -> float:
    """Return how far a metric is outside of its floor's range, over the width of the range."""
    low, high, matched = floor["low"], floor["high"], floor["matched"]
    if low is None or high is None:
        return 0.0
    return max(low - matched, matched - high, 0.0) / max(high - low, 1e-12)


def table(judged: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| generator | not within the floor: metrics of 0.1 | all metrics | different after Holm: 0.1 | all "
        "| suspicious | strongest evidence |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in judged.items():
        counts = [f"{count} of {total}" for count, total in (found["verdicts_0_1"], found["verdicts"])]
        named = "; ".join(found["evidence"][:SHOWN]) or "none"
        differing = f"{found['differing_0_1']} | {found['differing']}"
        lines.append(f"| {name} | {' | '.join(counts)} | {differing} | {found['suspicious']} | {named} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hearts", type=int, default=40, help="hearts per set (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=4, default=(48, 48, 6, 12), metavar=("H", "W", "D", "T"))
    parser.add_argument("--only", nargs="+", choices=BREAKS, metavar="GENERATOR", help="default: all")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    output, size = arguments.output, tuple(arguments.size)
    output.mkdir(parents=True, exist_ok=True)
    (output / "steps.json").write_text(json.dumps(AS_WRITTEN.to_dict()))
    print(machine())

    training = phantoms(1, arguments.hearts, size)
    with TemporaryDirectory(dir=output) as name:
        folder = Path(name)
        real = write_hearts(folder / "real", phantoms(0, arguments.hearts, size))
        settings = EvaluationSettings(
            real,
            real,
            output / "report",
            training=write_hearts(folder / "training", training),
            preprocessing=str(output / "steps.json"),
            processes=arguments.processes,
        )
        judged = {}
        for generator_name in arguments.only or BREAKS:
            number = list(BREAKS).index(generator_name)
            is_ideal = generator_name.startswith("ideal")
            hearts = phantoms(2 + number if is_ideal else 2, arguments.hearts, size)
            broken = BREAKS[generator_name](hearts, training, np.random.default_rng([0, number]))
            samples = write_hearts(folder / f"samples{number}", broken)
            found = judge(evaluate(replace(settings, synthetic=samples)).report)
            judged[generator_name] = found
            shutil.rmtree(samples.parent)
            (output / "sensitivity.json").write_text(json.dumps(judged, indent=1))
            (output / "sensitivity.md").write_text(table(judged))
            print(table({generator_name: found}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
