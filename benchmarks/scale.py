"""Measure how start-up grows from 1,000 to 100,000 subjects: prepare, encode, training, sample, evaluate.

    python benchmarks/scale.py --output scale                  # 1,000, 10,000 and 100,000 subjects
    python benchmarks/scale.py --output scale --subjects 200   # try it

The same command again continues where an earlier one was interrupted.

Images and latents are tiny, everything else is as in a real cohort: the commands' own functions read real files. Each
phase runs in a process of its own, which states its seconds, without those of imports, and its largest memory. What is
done for each volume (encoding, training steps, sampling, measuring) ends after the first one.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

SIZE = (16, 16, 4, 4)
TARGET_SECONDS, TARGET_MIB = 60, 2048
PHASES = ("prepare", "encode", "train", "train_shards", "sample", "evaluate", "train_disk_cache")
HELD_OUT = 20  # subjects of the validation manifest
MOST_LINKS = 30_000  # to one file, less than file systems allow
MOST_READ = 10_000  # files that `prepare` reads; each takes milliseconds, whatever their number


class EnoughError(Exception):
    """Ends a phase when the first volume would be computed."""


def stop(*_: Any, **__: Any) -> None:
    raise EnoughError


# --- The cohort ---


def write_images(folder: Path, subjects: int) -> None:
    """Write a cine for each subject, `ID/sa.nii`, which differ from each other in their voxels."""
    from cardiodit.imaging import Geometry, write_nifti

    template = folder.parent / "template.nii"
    write_nifti(template, voxels_of(0), Geometry((8.0, 8.0, 10.0), 0.1, in_scanner=True))
    content = template.read_bytes()
    header = content[: len(content) - voxels_of(0).nbytes]
    for subject in range(subjects):
        place = folder / f"{subject:06d}"
        place.mkdir(parents=True)
        (place / "sa.nii").write_bytes(header + voxels_of(subject).tobytes(order="F"))


def voxels_of(subject: int) -> np.ndarray:
    """Return noise of the subject's own around a beating blob."""
    x, y, _, t = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    radius = 4 + np.cos(2 * np.pi * t / SIZE[3])
    noise = np.random.default_rng(subject).integers(0, 300, (*SIZE[:3], 1))
    return (noise + 100 * ((x - 8) ** 2 + (y - 8) ** 2 < radius**2)).astype(np.int16)


def write_latents(folder: Path, subjects: int) -> None:
    """Write the manifest, and a latent for each subject, in files of their own and in shards."""
    import torch

    from cardiodit.imaging.manifest import write_manifest
    from cardiodit.latents import LatentHeader, identity_of_vae, write_latent
    from cardiodit.latents.folder import SHARD_SIZE, LatentFolder

    vae = make_vae(folder / "vae")
    header = LatentHeader(
        identity_of_vae(vae), "0" * 64, "", "float32", geometry_of(0), (4, 4, 4, 4, 4), 4, vae.config.preprocessing
    )
    numbers = torch.Generator().manual_seed(0)
    for kind, size in (("single", 1), ("shards", SHARD_SIZE)):
        latents = LatentFolder(folder / kind, subjects + HELD_OUT, size)
        latents.path.mkdir()
        rows = []
        for group in latents.groups(subjects + HELD_OUT):
            for subject in group:
                own = replace(header, source=f"{subject:064d}"[::-1], geometry=geometry_of(subject))
                write_latent(latents.file(own.source[:20]), torch.randn(header.shape, generator=numbers), own)
            places = latents.store([f"{subject:064d}"[::-1][:20] for subject in group])
            rows += [
                {"latent": place, "subject": f"{n:06d}", "label": "ab"[n % 2], "vendor": "x", "ed_frame": "0"}
                for n, place in zip(group, places, strict=True)
            ]
        write_manifest(latents.path / "training.csv", rows[:subjects])
        write_manifest(latents.path / "validation.csv", rows[subjects:])


def geometry_of(subject: int) -> Any:
    """Return the position of a subject's heart, which is everybody's own."""
    from cardiodit.imaging import Geometry

    return Geometry((8.0, 8.0, 10.0), 0.1, origin=(subject / 7, -subject / 11, 3.0), in_scanner=True)


def make_vae(folder: Path) -> Any:
    from cardiodit import VQModel4D
    from cardiodit.imaging import Preprocessing

    small: dict[str, Any] = {"channels": (8, 8), "num_res_channels": (8, 8), "num_res_layers": 1, "num_embeddings": 16}
    vae = VQModel4D(
        **small,
        embedding_dim=4,
        preprocessing=Preprocessing(size=(16, 16, 4), frames=4).to_dict(),
        spacing=(8.0, 8.0, 10.0),
    ).eval()
    if not folder.exists():
        vae.save_pretrained(folder)
    return VQModel4D.from_pretrained(folder).eval()


def write_samples(folder: Path, subjects: int) -> None:
    """Write a folder of samples as `cardiodit sample` leaves it; every volume is the same file."""
    import torch

    pipe = make_pipe(folder.parent)
    pipe(num_samples=1, num_inference_steps=2, seed=0).save(folder)
    first, record = folder / "seed0-00000.nii.gz", json.loads((folder / "samples.jsonl").read_text())
    with (folder / "samples.jsonl").open("a") as file:
        for index in range(1, subjects):
            name = f"seed0-{index:05d}.nii.gz"
            if index % MOST_LINKS:
                os.link(first, folder / name)
            else:
                first = shutil.copy(first, folder / name)
            file.write(json.dumps({**record, "file": name, "index": index}) + "\n")
    assert torch.is_tensor(pipe.transformer.proj_out.weight)


def make_pipe(folder: Path) -> Any:
    from cardiodit import CardioDiTPipeline, DiT4DTransformerModel, make_scheduler

    if not (folder / "pipe").exists():
        shape: dict[str, Any] = {"sample_size": (4, 4, 4, 1), "patch_size": (1, 2, 2, 1), "in_channels": 4}
        transformer = DiT4DTransformerModel(**shape, num_layers=1, num_attention_heads=1, attention_head_dim=16)
        CardioDiTPipeline(make_vae(folder / "vae"), transformer, make_scheduler()).save_pretrained(folder / "pipe")
    pipe = CardioDiTPipeline.from_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- The phases ---


def prepare(folder: Path, subjects: int) -> None:
    """The whole of `cardiodit prepare`; of many subjects, only the first file is read and stands for all."""
    from cardiodit.imaging.cohorts import prepare as module

    check, first = module.check_file, None

    def check_first(file: Any, **settings: Any) -> Any:
        nonlocal first
        first = first or check(file, **settings)
        return replace(first, file=file, content=str(file.image), tile=None, findings=type(first.findings)())

    simulated = mock.patch.object(module, "check_file", check_first) if subjects > MOST_READ else nullcontext()
    with simulated:
        module.prepare_with_summary("ukbb", folder / "images", folder / "prepared")


def encode(folder: Path, subjects: int) -> None:
    from cardiodit.latents import encode_cohort, encoder

    with mock.patch.object(encoder, "encode_volume", stop):
        encode_cohort(folder / "prepared" / "manifest.csv", make_vae(folder / "vae"), folder / "encoded", report=list)


def train(folder: Path, subjects: int, kind: str = "single") -> None:
    from cardiodit.training import train_dit
    from cardiodit.training.harness.run import Run

    ids = ["--training_ids", f"{folder / kind}/training.csv", "--validation_ids", f"{folder / kind}/validation.csv"]
    shape = ["--model.patch_size", "[1, 2, 2, 2]", "--model.num_layers", "1", "--model.num_attention_heads", "1"]
    run = ["--output_dir", f"{folder}/runs", "--run_name", f"{kind}-{time.time_ns()}", "--report_to", "none", "--cpu"]
    with mock.patch.object(Run, "update", stop):
        train_dit.main([*ids, "--vae", f"{folder}/vae", *shape, *run, "--label_column", "label"])


def train_disk_cache(folder: Path, subjects: int) -> None:
    """Stage 1 with prepared volumes on disk, which an earlier start has made; all of them are verified."""
    from cardiodit.imaging import Preprocessing
    from cardiodit.imaging.cache import PreparedVolumes
    from cardiodit.imaging.manifest import read_manifest

    cases = read_manifest(folder / "prepared" / "training.csv")
    PreparedVolumes(cases, Preprocessing(size=(16, 16, 4), frames=4), "disk", folder / "cache")


def sample(folder: Path, subjects: int) -> None:
    """One more sample than the folder has."""
    from cardiodit.pipelines.sampling_job import SamplingJob, sample_many

    job = SamplingJob(0, 0, subjects + 1, settings={"num_inference_steps": 2})
    for path in sample_many(make_pipe(folder), folder / "samples", job):
        path.unlink()


def evaluate(folder: Path, subjects: int) -> None:
    from cardiodit.evaluation import evaluate as module

    settings = module.EvaluationSettings(
        folder / "prepared" / "manifest.csv", folder / "samples", folder / "evaluation"
    )
    with mock.patch.object(module, "measure_all", stop):
        module.evaluate(settings)


def run_phase(name: str, folder: Path, subjects: int) -> None:
    """Run a phase, and print its seconds without those of imports, and its memory with that of the libraries."""
    run: Callable[[Path, int], None] = {
        "prepare": prepare,
        "encode": encode,
        "train": train,
        "train_shards": partial(train, kind="shards"),
        "train_disk_cache": train_disk_cache,
        "sample": sample,
        "evaluate": evaluate,
    }[name]

    make_pipe(folder)
    began, cpu = time.perf_counter(), time.process_time()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(EnoughError):
        run(folder, subjects)
    used = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "mib": peak_mib()}
    print(json.dumps(used))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- The table ---


@contextmanager
def no_fsync() -> Iterator[None]:
    """Write what is only simulated without waiting for the disk."""
    with mock.patch("os.fsync", lambda _: None):
        yield


def measure(output: Path, subjects: int, results: dict[str, dict[str, float]]) -> Iterator[None]:
    """Add the results of phases that are not there yet, and yield after each."""
    folder = output / f"cohort-{subjects}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in (("images", write_images), ("latents", write_latents), ("samples", write_samples)):
        if not (done := folder / f"{name}.done").exists():
            for place in ("single", "shards") if name == "latents" else (name,):
                shutil.rmtree(folder / place, ignore_errors=True)
            with no_fsync():
                write(folder if name == "latents" else folder / name, subjects)
            done.touch()
    for phase in PHASES:
        if phase in results:
            continue
        command = [sys.executable, __file__, "--phase", phase, str(folder), str(subjects)]
        if phase == "prepare":
            shutil.rmtree(folder / "prepared", ignore_errors=True)
        if phase == "train_disk_cache":
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # fills the cache
        done_phase = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        used = results[phase] = json.loads(done_phase.stdout.splitlines()[-1])
        seconds = f"{used['seconds']:7.1f} s, {used['cpu']:7.1f} s of the processor"
        print(f"{subjects:7} {phase:16} {seconds}, {used['mib']:5.0f} MiB", flush=True)
        yield
    shutil.rmtree(folder)


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    sizes = sorted(results)
    lines = ["| phase | " + " | ".join(f"{n:,} subjects" for n in sizes) + " | growth of seconds | growth of memory |"]
    lines.append("|---" * (len(sizes) + 3) + "|")
    for phase in PHASES:
        each = [results[n][phase] for n in sizes]
        cells = [f"{r['cpu']:.1f} s, {r['mib']:.0f} MiB" for r in each]
        growth = [f"{each[-1]['cpu'] / each[0]['cpu']:.0f} times", f"{each[-1]['mib'] - each[0]['mib']:.0f} MiB more"]
        lines.append(f"| {phase} | {' | '.join([*cells, *growth])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for scale.json, and for the cohorts while they are needed")
    parser.add_argument("--subjects", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--phase", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        name, folder, subjects = arguments.phase
        run_phase(name, Path(folder), int(subjects))
        return
    if arguments.output is None:
        parser.error("--output is needed")
    file = arguments.output / "scale.json"
    held = json.loads(file.read_text()) if file.is_file() else {}
    results: dict[int, dict[str, dict[str, float]]] = {n: held.get(str(n), {}) for n in arguments.subjects}
    for subjects in arguments.subjects:
        for _ in measure(arguments.output, subjects, results[subjects]):
            file.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    worst = max(results)
    for phase, used in results[worst].items():
        if phase != "prepare" and (used["cpu"] > TARGET_SECONDS or used["mib"] > TARGET_MIB):
            print(f"MISSED by {phase} at {worst}: at most {TARGET_SECONDS} s and {TARGET_MIB} MiB are the target")


if __name__ == "__main__":
    main()
