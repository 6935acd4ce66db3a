"""A new system works with every command without a change to the package: train, sample, evaluate, card, publish."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import pytest
from accelerate.state import AcceleratorState
from huggingface_hub.repocard import metadata_load

from cardiodit import open_pipeline
from cardiodit.cli import main
from cardiodit.systems import find_system, registry

CONFIG = """
model: {width: 4}
diffusion: {num_train_timesteps: 20}
data:
  preprocessing: {size: [16, 16, 8], intensity: {low: -1000, high: 1000}}
training:
  max_train_steps: 4
  validation_steps: 2
  checkpointing_steps: 2
  preview_samples: 1
  preview_inference_steps: 2
  report_to: none
"""
FACTS = """
license: cc-by-4.0
datasets: [drawn chests]
cohort: Three drawn chests.
consent: Not needed.
scanners: None.
lacks: Everything real.
evaluation: Not meaningful.
memorization: Not tested.
country: Nowhere
contact: nobody
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The toy system, installed as a package with an entry point, as a user would distribute it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(Path(__file__).with_name("toy_system.py"), site)
    info = site / "toy_system-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-system\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cardiodit.systems]\ntoy = toy_system:SYSTEM\n")
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    registry._installed.cache_clear()
    yield importlib.import_module("toy_system")
    sys.path.remove(str(site))
    del sys.modules["toy_system"]
    registry._installed.cache_clear()


@pytest.fixture(scope="module")
def pipeline(toy: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    chests = ["phantom", "--kind", "chest", "--size", "24", "24", "16"]
    assert main([*chests, "--output_dir", str(folder / "training"), "--num", "3"]) == 0
    assert main([*chests, "--output_dir", str(folder / "validation"), "--num", "2", "--seed", "1"]) == 0
    (folder / "toy.yaml").write_text(CONFIG)
    ids = [f"--{split}_ids={folder / split / 'manifest.csv'}" for split in ("training", "validation")]
    AcceleratorState._reset_state(reset_partial_state=True)
    toy.main(["--config", str(folder / "toy.yaml"), *ids, "--output_dir", str(folder), "--run_name", "run", "--cpu"])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / "run" / "pipeline"


def test_it_is_found_like_a_published_system(toy: object) -> None:
    assert find_system("toy") is toy.SYSTEM and find_system("toy").components == {"unet": "ToyUNet"}


def test_it_is_trained_and_opened(pipeline: Path) -> None:
    assert (pipeline.parent / "checkpoint-4" / "unet").is_dir() and (
        pipeline.parent / "previews" / "step-4.png"
    ).is_file()
    pipe = open_pipeline(pipeline)
    assert type(pipe).__name__ == "ToyPipeline" and pipe.units == (-1000, 1000)
    assert pipe(seed=0, num_inference_steps=2).volumes.shape == (1, 16, 16, 8)


def test_it_is_sampled_evaluated_described_and_published(pipeline: Path, tmp_path: Path) -> None:
    samples, facts = tmp_path / "samples", tmp_path / "facts.yaml"
    assert main(["sample", str(pipeline), "--output_dir", str(samples), "--num_samples", "3", "--batch_size", "2"]) == 0
    assert nibabel.load(samples / "seed0-00002.nii.gz").shape == (16, 16, 8)
    assert json.loads((samples / "samples.jsonl").read_text().splitlines()[0])["num_inference_steps"] == 5
    assert main(["sample", str(pipeline), "--output_dir", str(samples), "--estimate"]) == 0

    real = pipeline.parents[1] / "training" / "manifest.csv"
    report = tmp_path / "evaluation"
    assert main(["evaluate", "--real", str(real), "--synthetic", str(samples), "--output_dir", str(report)]) == 0
    names = [metric["name"] for metric in json.loads((report / "report.json").read_text())["metrics"]]
    assert "frechet_spatial" in names

    facts.write_text(FACTS)
    described = ["card", str(pipeline), "--facts", str(facts), "--evaluation", str(report / "report.json")]
    assert main(described) == 0
    card = (pipeline / "README.md").read_text()
    assert (
        "Three convolutions denoise voxels." in card and "| Width | 4 |" in card and "### The toy's only stage" in card
    )
    assert "byte for byte those of this run's best step" in card
    assert metadata_load(pipeline / "README.md")["tags"][-2:] == ["toy", "3d"]
    assert (
        main(["publish", str(pipeline), "lab/toy", "--facts", str(facts), "--dry_run", "--without_audit", "A toy."])
        == 0
    )
