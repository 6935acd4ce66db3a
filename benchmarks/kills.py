"""Kill commands at random moments, damage what they left, and check that the same command ends as if undisturbed.

    python benchmarks/kills.py --kills 100 --output kills.json      # about half an hour on a core

Each trial starts a command with small models, ends it with SIGKILL at a random moment of its usual duration, and starts
it again until it ends by itself. Then every output must equal that of an undisturbed run to the bit: weights and
moments, latents, samples (none lost, none twice), manifests and the report; and nothing half-written may remain. In a
third of the trials of training, the newest checkpoint is also damaged: cut off, one byte flipped, or a file deleted.
Finally a byte is flipped in latents and cached volumes, which must be noticed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from measuring import machine

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "saved"
SHARES = {"train_vqgan": 25, "train_dit": 25, "encode": 15, "sample": 15, "prepare": 10, "evaluate": 10}  # of 100
# Files that hold times, durations or the paths of a trial, so that they differ between any two runs.
UNEQUAL = (
    "run.json",
    "metrics.jsonl",
    "samples.jsonl",
    "report.html",
    "config.yaml",
    "manifest.csv",
    "report.md",
    "README.md",
)
PATIENCE = 300  # seconds


def arguments_of(name: str, data: Path, output: Path) -> list[str]:
    """Return the command line of a command; its output goes to a folder of its own."""
    run, model = data / "run-0.1", data / "cardiodit-0.1"
    images = [run / "images" / split / "manifest.csv" for split in ("training", "validation")]
    latents = [run / "latents" / split / "manifest.csv" for split in ("training", "validation")]
    train = ["--cpu", "--output_dir", output, "--run_name", "run"]
    given: dict[str, list[Any]] = {
        "train_vqgan": ["--config", data / "vqgan.yaml", "--training_ids", images[0], "--validation_ids", images[1]],
        "train_dit": ["--config", data / "dit.yaml", "--training_ids", latents[0], "--validation_ids", latents[1]],
        "encode": ["--ids", images[0], "--vae", run / "runs/vqgan", "--condition_keys", "mask", "--device", "cpu"],
        "sample": [model, "--num_samples", 12, "--num_inference_steps", 4, "--device", "cpu"],
        "prepare": ["folder", run / "images/training/images", "--min_slices", 1],
        "evaluate": ["--real", images[0], "--synthetic", images[1], "--preprocessing", "cine", "--max_volumes", 4],
    }
    arguments = given[name]
    if name == "train_dit":
        arguments += ["--vae", run / "runs/vqgan"]
    arguments = arguments + train if name.startswith("train") else [name, *arguments, "--output_dir", output]
    return [str(argument) for argument in arguments]


def work(name: str, arguments: list[str], said: Path) -> None:
    """Run a command in a new process, whose exit code is that of the command."""
    from importlib import import_module

    from cardiodit.cli import main
    from cardiodit.training.harness.processes import run_script

    stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if name.startswith("train"):
        module = import_module(f"cardiodit.training.{name}")
        run_script(lambda: module.main(arguments))
    else:
        sys.exit(main(arguments))


def start(name: str, arguments: list[str], said: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(name, arguments, said))
    process.start()
    return process


def finish(name: str, arguments: list[str], said: Path) -> None:
    """Run a command to its end."""
    process = start(name, arguments, said)
    process.join(PATIENCE)
    if process.exitcode != 0:
        process.kill()
        raise AssertionError(f"ended with {process.exitcode}: {said.read_text()[-800:]}")


def contents(folder: Path) -> dict[str, bytes]:
    """Return what must be equal: the bytes of every file, or what its lines say without times and energy."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "/cache/" in f"/{name}" or "damaged-" in name or path.name == "energy.jsonl":
            continue
        if ".tmp-" in name:
            raise AssertionError(f"{name} was left behind")
        found[name] = _comparable(path)
    return found


def _comparable(path: Path) -> bytes:
    if path.name not in UNEQUAL:
        return path.read_bytes()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if path.name == "samples.jsonl":  # a sample that was not recorded before the kill is made and recorded again
            names = [line["file"] for line in lines]
            assert len(names) == len(set(names)), f"{path} lists a sample twice"
            return json.dumps(sorted(names)).encode()
        timeless = [{key: line[key] for key in line if key not in ("seconds", "waited")} for line in lines]
        return json.dumps(timeless).encode()
    return b""


def is_complete(name: str, output: Path) -> bool:
    """Return whether `prepare` wrote its folder, in one piece, before it was killed: it takes no folder twice."""
    return name == "prepare" and output.is_dir()


def damage(run: Path, rng: random.Random) -> str:
    """Damage the newest checkpoint of a run, if it has one; return how."""
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if not checkpoints:
        return ""
    files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file() and path.stat().st_size)
    path, how = rng.choice(files), rng.choice(("cut off", "byte flipped", "deleted"))
    good = path.read_bytes()
    place = rng.randrange(len(good))
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(good[:place] if how == "cut off" else flipped(good, place))
    return f"{how}: {path.relative_to(run)}"


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << (place % 8)]) + content[place + 1 :]


def campaign(name: str, kills: int, data: Path, work_folder: Path, rng: random.Random) -> dict[str, Any]:
    """Kill a command many times; return the counts."""
    reference = work_folder / "reference"
    began = time.perf_counter()
    finish(name, arguments_of(name, data, reference), work_folder / "reference.txt")
    duration, expected = time.perf_counter() - began, contents(reference)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    while counts["kills"] < kills:
        output, said = work_folder / f"trial-{counts['trials']}", work_folder / f"trial-{counts['trials']}.txt"
        arguments, damages = arguments_of(name, data, output), ""
        counts["trials"] += 1
        while counts["kills"] < kills and not is_complete(name, output):
            process = start(name, arguments, said)
            process.join(rng.uniform(0, duration))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            counts["kills"] += 1
            if name.startswith("train") and rng.random() < 1 / 3 and (how := damage(output / "run", rng)):
                damages = f"{damages} {how}"
                counts[f"checkpoint {how.partition(':')[0]}"] += 1
        try:
            if not is_complete(name, output):
                finish(name, arguments, said)
            found = contents(output)
            if found != expected:
                different = [key for key in {*found, *expected} if found.get(key) != expected.get(key)]
                raise AssertionError(f"differs in {sorted(different)[:5]}")
            counts["equal"] += 1
        except AssertionError as error:
            failures.append(f"{name} trial {counts['trials']}{damages}: {error}")
            print(failures[-1], flush=True)
            continue
        shutil.rmtree(output)
    print(f"{name}: {dict(counts)}, undisturbed {duration:.1f} s", flush=True)
    return {**counts, "seconds": round(duration, 1), "failures": failures}


def flips(data: Path, work_folder: Path, rng: random.Random, trials: int = 200) -> dict[str, Any]:
    """Flip a byte in a latent and in both files of a cached volume; count what is noticed or harmless."""
    import warnings

    import numpy as np

    from cardiodit.errors import CardioDiTError
    from cardiodit.imaging.cache import PreparedVolumes
    from cardiodit.imaging.manifest import read_manifest
    from cardiodit.imaging.preprocessing import PRESETS
    from cardiodit.latents import read_latent, write_latent

    counts: Counter[str] = Counter()
    path = work_folder / "a.safetensors"
    header, latents = read_latent(next((data / "run-0.1/latents/training").glob("*.safetensors")))
    write_latent(path, latents, header)
    good = path.read_bytes()
    for _ in range(trials):
        path.write_bytes(flipped(good, rng.randrange(len(good))))
        try:
            again = read_latent(path)
            same = again[0] == header and bool((again[1] == latents).all())
            counts["latent: harmless" if same else "latent: MISSED"] += 1
        except CardioDiTError:
            counts["latent: noticed"] += 1
    cases, cache = read_manifest(data / "run-0.1/images/validation/manifest.csv")[:1], work_folder / "cache"
    first = PreparedVolumes(cases, PRESETS["cine"], "disk", cache)
    expected = first[0].numpy()
    described = (first.shapes, first.limits, first.geometries, first.identity)
    for path in sorted(cache.iterdir()):
        good = path.read_bytes()
        for _ in range(trials // 2):
            path.write_bytes(flipped(good, rng.randrange(len(good))))
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                volumes = PreparedVolumes(cases, PRESETS["cine"], "disk", cache)
            now = (volumes.shapes, volumes.limits, volumes.geometries, volumes.identity)
            same = np.array_equal(volumes[0].numpy(), expected) and now == described
            kind = "noticed" if any("damaged" in str(w.message) for w in warned) else "harmless"
            counts[f"cached volume: {kind if same else 'MISSED'}"] += 1
    print(f"flipped bytes: {dict(counts)}", flush=True)
    return dict(counts)


def copy_of_data(folder: Path) -> Path:
    """Copy the small cohort, latents and models, with configs that checkpoint and validate often."""
    shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)
    for config, steps in (("vqgan.yaml", 16), ("dit.yaml", 24)):
        settings = yaml.safe_load((folder / "run-0.1" / config).read_text())
        often = {"max_train_steps": steps, "checkpointing_steps": 3, "validation_steps": 5, "dataloader_num_workers": 0}
        settings["training"] |= {**often, "checkpoints_total_limit": 2}
        (folder / config).write_text(yaml.safe_dump(settings))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(SHARES), help="only this command")
    parser.add_argument("--output", type=Path, help="JSON with the counts")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    import cardiodit.cli
    import cardiodit.training.train_dit
    import cardiodit.training.train_vqgan  # noqa: F401  forked processes start without importing

    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine()}
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        data = copy_of_data(Path(folder) / "data")
        for name, share in SHARES.items():
            if arguments.only in (None, name):
                (place := Path(folder) / name).mkdir()
                results[name] = campaign(name, max(1, share * arguments.kills // 100), data, place, rng)
        results["flips"] = flips(data, Path(folder), rng)
    campaigns = [results[name] for name in SHARES if name in results]
    failures = [failure for counts in campaigns for failure in counts["failures"]]
    missed = sum(number for key, number in results["flips"].items() if "MISSED" in key)
    kills = sum(counts["kills"] for counts in campaigns)
    print(f"{kills} kills, {len(failures)} failures, {missed} flipped bytes missed")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    return int(bool(failures or missed))


if __name__ == "__main__":
    sys.exit(main())
