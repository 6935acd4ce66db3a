"""Small cohorts, a VQ model and latents that all tests of training share, and a way to train in this process."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.imaging import Intensity, Preprocessing, read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import LatentCohort, encode_cohort, measure_scale, write_scale
from cardiodit.training import train_dit, train_vqgan

from ..device_waits import waits_in_training

PATIENCE = 120  # seconds; what takes longer hangs
STEPS = Preprocessing(size=(32, 32, 4), frames=8, intensity=Intensity("p0.5", "p99.5"))

DIT: dict[str, Any] = {
    "label_column": "label",
    "model": {"patch_size": [1, 2, 2, 2], "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16},
    "training": {
        "train_batch_size": 2,
        "max_train_steps": 12,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "checkpointing_steps": 4,
        "validation_steps": 6,
        "preview_samples": 0,
        "dataloader_num_workers": 0,
        "report_to": "none",
    },
}
VQGAN: dict[str, Any] = {
    "model": {
        "channels": [8, 16],
        "num_res_channels": [8, 16],
        "num_res_layers": 1,
        "num_embeddings": 64,
        "embedding_dim": 4,
    },
    "discriminator": {"num_channels": 8, "num_layers_d": 2},
    "losses": {"perceptual_network": "none", "adversarial_start_epoch": 1, "adversarial_ramp_epochs": 2},
    "data": {"preprocessing": {"size": [32, 32, 4], "frames": 8, "intensity": {"low": "p0.5", "high": "p99.5"}}},
    "training": {
        "train_batch_size": 2,
        "max_train_steps": 12,
        "learning_rate": 1e-3,
        "checkpointing_steps": 4,
        "validation_steps": 6,
        "report_to": "none",
    },
}


@dataclass(frozen=True)
class Cohorts:
    """Manifests of images and of latents, for training (8 hearts) and validation (4), and the VQ model's folder."""

    folder: Path
    images: tuple[Path, Path]
    latents: tuple[Path, Path]
    vae: Path


@pytest.fixture(scope="session")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Cohorts:
    folder = tmp_path_factory.mktemp("cohorts")
    images = (
        write_cohort(folder / "training", num=8, seed=0, size=(32, 32, 4, 8)),
        write_cohort(folder / "validation", num=4, seed=1, size=(32, 32, 4, 8)),
    )
    torch.manual_seed(0)
    small = {"channels": (8, 16), "num_res_channels": (8, 16), "num_res_layers": 1, "num_embeddings": 64}
    vae = VQModel4D(**small, embedding_dim=4, preprocessing=STEPS.to_dict(), spacing=(4.5, 4.5, 25.0)).eval()
    latents = [folder / f"latents-{manifest.parent.name}" for manifest in images]
    for manifest, output in zip(images, latents):
        encode_cohort(manifest, vae, output, report=lambda _: None)
    scale = measure_scale(iter(LatentCohort.open(latents[0] / "manifest.csv")))
    vae.save_pretrained(folder / "vae")
    write_scale(folder / "vae", scale)
    return Cohorts(folder, images, (latents[0] / "manifest.csv", latents[1] / "manifest.csv"), folder / "vae")


@pytest.fixture(scope="session")
def mixed(cohorts: Cohorts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Manifests of latents of beats with 8 and with 16 frames, which say the phase of each frame."""
    folder, vae = tmp_path_factory.mktemp("mixed"), VQModel4D.from_pretrained(cohorts.vae).eval()
    manifests = []
    for split, short in zip(("training", "validation"), cohorts.images, strict=True):
        long = write_cohort(folder / f"long-{split}", num=3, seed=len(split), size=(32, 32, 4, 16))
        rows = [
            (case, f"{split}-{number}") for number, case in enumerate([*read_manifest(short), *read_manifest(long)])
        ]
        images = folder / f"{split}.csv"
        counts = [8] * (len(rows) - 3) + [16] * 3
        phases = [" ".join(f"{t / count:g}" for t in range(count)) for count in counts]
        lines = [f"{c.image.resolve()},{name},{c.row['label']},{p}" for (c, name), p in zip(rows, phases, strict=True)]
        images.write_text("\n".join(["image,subject,label,phase", *lines]) + "\n")
        how: dict[str, Any] = {"steps": replace(STEPS, frames=None), "report": lambda _: None}
        with pytest.raises(CardioDiTError, match="would differ in size"):
            encode_cohort(images, vae, folder / "refused", **how)
        encode_cohort(images, vae, folder / split, any_size=True, **how)
        manifests.append(folder / split / "manifest.csv")
    return manifests[0], manifests[1]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate remembers in the process how it was configured; each test configures it anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with changes, section by section."""
    both = dict(config)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if is_section else value
    return both


def arguments_of(
    folder: Path, name: str, config: dict[str, Any], manifests: tuple[Path, Path], *more: str
) -> list[str]:
    """The command line of a run `name` in `folder`, whose config is written there."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    ids = ["--training_ids", str(manifests[0]), "--validation_ids", str(manifests[1])]
    return ["--config", str(file), *ids, "--output_dir", str(folder), "--run_name", name, *more]


@pytest.fixture
def dit_arguments(cohorts: Cohorts, tmp_path: Path) -> Callable[..., list[str]]:
    def make(name: str = "run", *more: str, **changes: Any) -> list[str]:
        return arguments_of(tmp_path, name, merged(DIT, changes), cohorts.latents, "--vae", str(cohorts.vae), *more)

    return make


@pytest.fixture
def train_a_dit(dit_arguments: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process, and returns the run's folder."""

    def train(name: str = "run", *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        train_dit.main(dit_arguments(name, *more, **changes))
        return tmp_path / name

    return train


@pytest.fixture
def train_a_vqgan(cohorts: Cohorts, tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process, and returns the run's folder."""

    def train(name: str = "run", *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        train_vqgan.main(arguments_of(tmp_path, name, merged(VQGAN, changes), cohorts.images, *more))
        return tmp_path / name

    return train


def lines_of(run: Path, key: str = "loss") -> dict[int, float]:
    """What `metrics.jsonl` says of `key`, by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def said_by(process: subprocess.Popen) -> str:
    try:
        return process.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()[0]}") from None


def wait_for_step(run: Path, step: int, process: subprocess.Popen | ForkServerProcess) -> None:
    """Until a run has done so many steps; its process must be alive till then."""
    deadline = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").is_file() or max(lines_of(run), default=0) < step:
        if isinstance(process, ForkServerProcess):
            assert process.is_alive() and time.monotonic() < deadline, process.exitcode
        else:
            assert process.poll() is None and time.monotonic() < deadline, said_by(process)
        time.sleep(0.005)


@pytest.fixture
def waits_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], list[str]]:
    """Where a training would wait for a GPU within a step; its keyword argument `training` sets the intervals."""
    rarely = {"max_train_steps": 9, "checkpointing_steps": 100, "validation_steps": 100}
    return lambda train: waits_in_training(lambda: train(training=rarely), monkeypatch)
