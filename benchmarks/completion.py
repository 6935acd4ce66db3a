"""Complete held-out phantoms with the bundled model, and compare the result with cubic interpolation.

    OMP_NUM_THREADS=1 python benchmarks/completion.py --output completion      # about half an hour on one core

Of each phantom a part is taken away: every second of its 8 slices but not the ends, every second of its 16 frames, the
resolution through the plane (pairs of slices are averaged), or noise is added. `cardiodit.complete` and cubic splines
(for noise: a Gaussian filter of the plane, the best of several widths) restore it. Measured are the PSNR of what was
taken away, and the error of the ejection fraction by the bundled segmenter against the phantom's exact one; both for
three seeds with phantoms of their own. Run again to resume. Writes `completion.json`, `table.md` and a picture.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dimensions import mean_and_range
from measuring import machine
from scipy.ndimage import gaussian_filter

from cardiodit import CardioDiTPipeline, Gaps, Preprocessing, Volume, complete, open_segmenter
from cardiodit._util.atomic_io import atomic_file
from cardiodit.evaluation.metrics.function import left_ventricle
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.manifest import Case, read_case, read_manifest
from cardiodit.imaging.phantom import cohort, write_cohort
from cardiodit.imaging.pictures import write_captioned

FIRST_SEED = 7000  # of phantoms that no training has seen
NOISE = 0.1  # of the range of intensities
WIDTHS = (0.5, 0.75, 1.0, 1.5)  # of the Gaussian filter, in voxels


@dataclass(frozen=True)
class Task:
    """A part of the image that is removed and then restored.

    Args:
        title: for the table.
        gaps: what is to be completed; noise is that of the image.
        hearts, samples, steps: phantoms of a seed, completions of each, and noise levels.
    """

    title: str
    gaps: Gaps
    hearts: int
    samples: int
    steps: int


TASKS = {
    "slices": Task("4 of 8 slices", Gaps(missing_slices=(1, 3, 4, 6)), 8, 8, 20),
    "frames": Task("8 of 16 frames", Gaps(missing_frames=tuple(range(1, 16, 2))), 4, 2, 10),
    "thick": Task("4 slices of double thickness", Gaps(split_slices=2), 4, 2, 10),
    "noise": Task(f"noise of {NOISE:.0%} of the range", Gaps(noise=1.0), 4, 2, 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--hearts", type=int, help="phantoms of a seed; default: 8 for slices, 4 for other tasks")
    parser.add_argument("--visits", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    cohort.PICTURED = 0
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.tasks}
    trial = Trial(folder, arguments.visits, arguments.hearts)
    for seed in range(arguments.seeds):
        for name in arguments.tasks:
            results[name].append(trial.result(name, seed))
    with atomic_file(folder / "completion.json") as temporary:
        temporary.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    (folder / "table.md").write_text(table(results))
    print(table(results))


class Trial:
    """The phantoms and results in a folder; what is there is not made again."""

    def __init__(self, folder: Path, visits: int, hearts: int | None) -> None:
        self.folder, self.visits, self.hearts = folder, visits, hearts
        self.pipe = CardioDiTPipeline.from_pretrained("cardiodit-phantom")
        self.pipe.set_progress_bar_config(disable=True)
        self.steps = Preprocessing.from_dict(self.pipe.facts.preprocessing)
        self.segmenter = open_segmenter("phantom-segmenter")

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """Return the means of a task over the phantoms of a seed."""
        file = self.folder / f"{name}-{seed}.json"
        if file.is_file():
            return json.loads(file.read_text())
        task, started = TASKS[name], time.process_time()
        phantoms = self.folder / f"phantoms-{seed}"
        if not phantoms.is_dir():
            write_cohort(phantoms, max(each.hearts for each in TASKS.values()), FIRST_SEED + seed)
        cases = read_manifest(phantoms / "manifest.csv")[: self.hearts or task.hearts]
        each = [self._measure(task, case, index) for index, case in enumerate(cases)]
        means = {key: float(np.mean([found[key] for found in each])) for key in each[0]}
        result = {**means, "seconds": (time.process_time() - started) / len(cases), "each": each}
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
        return result

    def _measure(self, task: Task, case: Case, index: int) -> dict[str, float]:
        whole = read_case(case)
        limits = self.steps(whole).source.limits
        image, gaps = taken_away(whole, task, limits, index)
        done = complete(
            self.pipe,
            image,
            gaps,
            num_samples=task.samples,
            num_inference_steps=task.steps,
            visits=self.visits,
            seed=index,
            slices="base to apex",
        )
        other = smoothed(image, whole, limits) if gaps.noise else done.interpolated
        measured = {}
        for name, volume in (("model", done.volume), ("other", other), ("one sample", done.samples[0])):
            measured[f"psnr, {name}"] = psnr(volume, whole, gaps, limits)
            measured[f"ef, {name}"] = abs(self._ef(volume) - float(case.row["lv_ef_percent"]))
        measured["ef, whole"] = abs(self._ef(whole) - float(case.row["lv_ef_percent"]))
        if index == 0:
            shown = (("phantom", whole), ("splines", other), ("model", done.volume))
            rows = [(caption, to_model(volume.voxels, limits)[..., 4]) for caption, volume in shown]
            write_captioned(self.folder / f"{task.title.replace(' ', '-')}.png", rows)
        return measured

    def _ef(self, volume: Volume) -> float:
        prepared = self.steps(volume).volume
        labels = self.segmenter.segment(prepared.voxels, prepared.geometry)
        return left_ventricle(labels, prepared.geometry).ef


def taken_away(whole: Volume, task: Task, limits: tuple[float, float], index: int) -> tuple[Volume, Gaps]:
    """Return what is left of a phantom, and what is to be completed."""
    gaps, voxels = task.gaps, whole.voxels
    if gaps.noise:
        sigma = NOISE * (limits[1] - limits[0])
        noise = np.random.default_rng(index).normal(0, sigma, voxels.shape)
        return replace(whole, voxels=(voxels + noise).astype(np.float32)), replace(gaps, noise=sigma)
    if gaps.split_slices > 1:
        height, width, depth, frames = voxels.shape
        means = voxels.reshape(height, width, depth // gaps.split_slices, gaps.split_slices, frames).mean(axis=3)
        index_map = np.diag([1.0, 1.0, gaps.split_slices, 1.0])
        index_map[2, 3] = (gaps.split_slices - 1) / 2
        return Volume(means.astype(np.float32), whole.geometry.reindexed(index_map)), gaps
    damaged = voxels.copy()
    damaged[:, :, list(gaps.missing_slices)] = 0
    damaged[..., list(gaps.missing_frames)] = 0
    return replace(whole, voxels=damaged), gaps


def smoothed(image: Volume, whole: Volume, limits: tuple[float, float]) -> Volume:
    """Return the image after the Gaussian filter with which it is most like the phantom."""
    filtered = [replace(image, voxels=gaussian_filter(image.voxels, (width, width, 0, 0))) for width in WIDTHS]
    return max(filtered, key=lambda volume: psnr(volume, whole, Gaps(noise=1.0), limits))


def psnr(volume: Volume, whole: Volume, gaps: Gaps, limits: tuple[float, float]) -> float:
    """Return the peak signal-to-noise ratio in dB of the slices and frames that were taken away."""
    difference = volume.voxels.astype(np.float64) - whole.voxels
    if gaps.missing_slices:
        difference = difference[:, :, list(gaps.missing_slices)]
    if gaps.missing_frames:
        difference = difference[..., list(gaps.missing_frames)]
    return float(10 * np.log10((limits[1] - limits[0]) ** 2 / np.square(difference).mean()))


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a row for each task: mean, smallest and largest value over the seeds."""
    lines = ["| task | PSNR: model, dB | interpolation or filter | EF error: model, points | interpolation or filter |"]
    lines[0] += " of the whole phantom | s per heart |"
    lines.append("|---" * 7 + "|")
    keys: Sequence[str] = ("psnr, model", "psnr, other", "ef, model", "ef, other", "ef, whole", "seconds")
    for name, seeds in results.items():
        cells = [mean_and_range([found[key] for found in seeds]) for key in keys]
        lines.append(f"| {TASKS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
