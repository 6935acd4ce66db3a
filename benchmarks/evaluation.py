"""Measure the duration of `cardiodit evaluate`, and its memory for many volumes.

    python benchmarks/evaluation.py                       64 phantoms against 64 samples, two processes
    python benchmarks/evaluation.py --memory 10 1000      peak memory for 1000 small volumes per set and for 10,
                                                          with masks, so that heart function is also measured
    python benchmarks/evaluation.py --volumes 8 --size 32 32 6 8    a quick trial run

The samples are other phantoms, written like the output of `cardiodit sample`; for --memory they are a manifest. Each
evaluation runs in a separate process, including its imports.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine

from cardiodit.imaging import Intensity, Preprocessing, prepare_case, read_manifest, read_nifti, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.phantom import write_cohort

STEPS = Preprocessing(intensity=Intensity("p0.5", "p99.5"))
PHANTOMS = 8  # different phantoms for --memory; the other volumes are copies with different noise
SMALL = (32, 32, 6, 8)


def write_sets(folder: Path, volumes: int, size: tuple[int, int, int, int]) -> None:
    for seed, name in enumerate(("real", "others")):
        write_cohort(folder / name, volumes, seed=seed, size=size, workers=2)
    write_samples(folder)


def write_noisy_sets(folder: Path, volumes: int) -> None:
    """Quickly write two manifests of many volumes with masks."""
    (folder / "steps.json").write_text(json.dumps(STEPS.to_dict()))
    for seed, name in enumerate(("real", "others")):
        manifest = write_cohort(folder / f"{name}-phantoms", PHANTOMS, seed=seed, size=SMALL)
        (folder / name).mkdir()
        cases, rows = read_manifest(manifest), []
        random = np.random.default_rng([seed, volumes])
        for i in range(volumes):
            case = cases[i % PHANTOMS]
            volume = read_nifti(case.image)
            noisy = volume.voxels + random.integers(-8, 9, volume.voxels.shape, dtype=np.int16)
            write_nifti(folder / name / f"{i:04d}.nii.gz", noisy, volume.geometry)
            columns = {column: case.row[column] for column in ("mask_order", "slices", "ed_frame")}
            rows.append({"image": f"{i:04d}.nii.gz", "mask": f"../{name}-phantoms/{case.row['mask']}", **columns})
        write_manifest(folder / name / "manifest.csv", rows)


def write_samples(folder: Path) -> None:
    (folder / "samples").mkdir()
    for i, case in enumerate(read_manifest(folder / "others" / "manifest.csv")):
        volume = prepare_case(case, STEPS).volume
        file = folder / "samples" / f"seed0-{i:05d}.nii.gz"
        write_nifti(file, volume.voxels, volume.geometry)
        with (folder / "samples" / "samples.jsonl").open("a") as records:
            records.write(json.dumps({"file": file.name, "units": None, "preprocessing": STEPS.to_dict()}) + "\n")


def run_evaluation(folder: Path, segmenter: str | None, processes: int) -> tuple[float, float]:
    """Return the seconds, and the peak memory of the largest process in MiB."""
    command = [sys.executable, __file__, "--one", str(folder), "--processes", str(processes)]
    command += ["--segmenter", segmenter or ""]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, float(done.stdout.splitlines()[-1])


def evaluate_one(folder: Path, segmenter: str | None, processes: int) -> None:
    from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate

    real, samples, steps = folder / "real" / "manifest.csv", folder / "samples", None
    if not samples.is_dir():
        samples, steps = folder / "others" / "manifest.csv", str(folder / "steps.json")
    settings = EvaluationSettings(
        real, samples, folder / "out", preprocessing=steps, segmenter=segmenter, processes=processes
    )
    report = evaluate(settings).report
    if (segmenter or steps) and not report["curves"]:
        raise SystemExit(f"Heart function was not measured: {report['protocol']['left_out']}")
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(max(peaks) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=64, help="volumes per set (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=4, default=(64, 64, 8, 16), metavar=("H", "W", "D", "T"))
    parser.add_argument("--segmenter", default="phantom-segmenter", help="default %(default)s; ignored with --memory")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs=2, metavar=("FEW", "MANY"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        evaluate_one(arguments.one, arguments.segmenter or None, arguments.processes)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        if arguments.memory:
            peaks = []
            for volumes in arguments.memory:
                folder = Path(name) / str(volumes)
                folder.mkdir()
                write_noisy_sets(folder, volumes)
                seconds, peak = run_evaluation(folder, "", 1)
                peaks.append(peak)
                print(f"{volumes} against {volumes} volumes of {SMALL}: peak {peak:.0f} MiB, {seconds:.0f} s")
            print(f"{peaks[1] - peaks[0]:.0f} MiB more")
            return
        write_sets(Path(name), arguments.volumes, tuple(arguments.size))
        seconds, peak = run_evaluation(Path(name), arguments.segmenter, arguments.processes)
        print(
            f"{arguments.volumes} against {arguments.volumes} volumes of {tuple(arguments.size)}, "
            f"{arguments.processes} processes: {seconds:.0f} s, at most {peak:.0f} MiB in one"
        )


if __name__ == "__main__":
    main()
