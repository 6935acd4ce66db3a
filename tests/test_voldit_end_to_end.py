"""From chest CTs to volumes in Hounsfield units that masks steer: the same scripts and commands as for cines."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import VolDiTControlPipeline, VolDiTPipeline
from cardiodit._util import memory
from cardiodit.cli import main
from cardiodit.imaging.manifest import read_manifest, write_manifest
from cardiodit.imaging.nifti import read_nifti
from cardiodit.models import autoencoder_vq
from cardiodit.training import train_dit, train_tgca, train_vqgan

from .conftest import copy_chests, train

SIZE = (32, 32, 32)  # of the files; 32 × 32 × 24 are cropped from them
BRIEF: dict[str, Any] = {"train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none", "dataloader_num_workers": 0}
VQGAN = {
    "dimensions": 3,
    "model": {"channels": [8, 16], "num_res_channels": [8, 16], "num_res_layers": 1, "num_embeddings": 64},
    "losses": {"perceptual_network": "none", "adversarial_weight": 0.0},
    "data": {
        "preprocessing": {"size": [32, 32, 24], "intensity": {"low": -1000, "high": 1000}, "orient": False},
        "crop": [16, 16, 16],
    },
    "training": {**BRIEF, "max_train_steps": 10, "validation_steps": 10, "checkpointing_steps": 10},
}
DIT: dict[str, Any] = {
    "model": {"patch_size": [2, 2, 2], "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 24},
    "training": {**BRIEF, "max_train_steps": 8, "validation_steps": 4, "checkpointing_steps": 4, "preview_samples": 1},
}
TGCA = {
    "conditions": {"keys": ["mask"], "labels": [list(range(1, 10))]},
    "adapter": {"channels": [4, 8, 8]},
    "training": {**BRIEF, "max_train_steps": 4, "validation_steps": 4, "checkpointing_steps": 4},
}


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with chests, both stages and an adapter."""
    folder = tmp_path_factory.mktemp("voldit")
    images = [copy_chests(folder / f"chests-{seed}", num=2, seed=seed, size=SIZE) for seed in (0, 1)]
    coder = train(train_vqgan, folder, "vqgan", VQGAN, images)
    latents = folder / "latents"
    run("encode", "--ids", *images, "--vae", coder, "--output_dir", latents, "--condition_keys", "mask")
    coded = [latents / image.parent.name / "manifest.csv" for image in images]
    run("scale-factor", "--latents", coded[0], "--vae", coder)
    train(train_dit, folder, "dit", DIT, coded, "--vae", str(coder))
    train(train_tgca, folder, "tgca", TGCA, coded, "--base", str(folder / "dit" / "pipeline"))
    return folder


def test_samples_are_whole_hounsfield_units_with_the_training_volumes_affine(trained: Path, tmp_path: Path) -> None:
    run(
        "sample",
        trained / "dit/pipeline",
        "--output_dir",
        tmp_path / "s",
        "--num_samples",
        2,
        "--num_inference_steps",
        2,
    )
    assert isinstance(VolDiTPipeline.from_pretrained(trained / "dit/pipeline"), VolDiTPipeline)
    first, second = (read_nifti(path) for path in sorted((tmp_path / "s").glob("*.nii.gz")))
    assert first.voxels.shape == (32, 32, 24) and first.voxels.dtype == np.int16
    assert first.voxels.min() >= -1000 and first.voxels.max() <= 1000
    assert not np.array_equal(first.voxels, second.voxels)
    image = read_nifti(read_manifest(trained / "chests-0" / "manifest.csv")[0].image)
    assert np.allclose(first.geometry.spacing, image.geometry.spacing, rtol=1e-4)
    assert len((tmp_path / "s" / "samples.jsonl").read_text().splitlines()) == 2


def test_checkpoints_of_volumes_are_sampled_one_by_one(trained: Path, tmp_path: Path) -> None:
    run(
        "sample",
        trained / "dit",
        "--checkpoints",
        4,
        8,
        4,
        "--output_dir",
        tmp_path / "course",
        "--num_inference_steps",
        2,
    )
    assert len(list((tmp_path / "course").glob("*/*.nii.gz"))) == 2


def test_latents_may_be_made_while_training(trained: Path) -> None:
    """Stage 2 from images: the latents are those of the files, so that the first losses are equal."""
    images = [trained / f"chests-{seed}" / "manifest.csv" for seed in (0, 1)]
    online = train(train_dit, trained, "online", DIT, images, "--vae", str(trained / "vqgan"))
    losses = [
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for path in (online, trained / "dit")
    ]
    assert len(losses[0]) == 8
    assert np.allclose(losses[0], losses[1], rtol=1e-3)


def test_a_table_of_masks_becomes_volumes_that_lie_where_the_masks_do(trained: Path, tmp_path: Path) -> None:
    cases = read_manifest(trained / "chests-1" / "manifest.csv")
    rows = [{"subject": case.subject, "mask": str(case.path("mask"))} for case in cases]
    write_manifest(tmp_path / "masks.csv", rows)
    model = trained / "tgca" / "pipeline"
    assert isinstance(VolDiTControlPipeline.from_pretrained(model), VolDiTControlPipeline)
    run("sample", model, "--masks", tmp_path / "masks.csv", "--output_dir", tmp_path / "s", "--num_inference_steps", 2)
    made, _ = sorted((tmp_path / "s").glob("*.nii.gz"))
    volume, source = read_nifti(made), read_nifti(cases[0].image)
    # 32 × 32 × 24 voxels around the middle of the file's 32 × 32 × 32: the same places in the scanner.
    shift = np.eye(4)
    shift[2, 3] = 4
    assert np.allclose(volume.geometry.affine, source.geometry.affine @ shift, atol=1e-3)
    assert volume.geometry.in_scanner and volume.voxels.dtype == np.int16
    with (trained / "latents/chests-0/manifest.csv").open() as file:
        assert "mask" in (next(csv.reader(file)))


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry for each coding in tiles."""
    calls: list[int] = []
    original = autoencoder_vq.run_tiled

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(autoencoder_vq, "run_tiled", counted)
    return calls


@pytest.mark.parametrize("command", ["sample", "reconstruct", "encode"])
def test_commands_tile_what_is_large(
    trained: Path, tmp_path: Path, tiled: list[int], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    ids = ["--ids", trained / "chests-1" / "manifest.csv", "--vae", trained / "vqgan"]
    words = [trained / "dit" / "pipeline", "--num_inference_steps", 1] if command == "sample" else ids
    run(command, *words, "--output_dir", tmp_path / "small")
    assert not tiled
    run(command, *words, "--tiling", "on", "--output_dir", tmp_path / "asked")
    assert tiled
    tiled.clear()
    monkeypatch.setattr(memory, "TILED_ABOVE", 0)
    run(command, *words, "--tiling", "off", "--output_dir", tmp_path / "refused")
    assert not tiled
    run(command, *words, "--output_dir", tmp_path / "large")
    assert tiled


def test_a_checkpoint_of_an_adapter_is_sampled(trained: Path, tmp_path: Path) -> None:
    """As the pipeline that the run became of its only checkpoint."""
    case = read_manifest(trained / "chests-1" / "manifest.csv")[0]
    write_manifest(tmp_path / "masks.csv", [{"mask": str(case.path("mask"))}])
    common = ["--masks", tmp_path / "masks.csv", "--num_inference_steps", 2, "--output_dir"]
    run("sample", trained / "tgca", "--checkpoints", 4, 4, 1, *common, tmp_path / "course")
    run("sample", trained / "tgca" / "pipeline", "--solver", "dpm++", *common, tmp_path / "s")
    made, expected = (
        read_nifti(tmp_path / folder / "seed0-00000.nii.gz").voxels for folder in ("course/checkpoint-4", "s")
    )
    assert made.shape == (32, 32, 24) and np.abs(made - expected).max() <= 1


def test_what_steering_needs_is_told_beforehand(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    case = read_manifest(trained / "chests-1" / "manifest.csv")[0]
    write_manifest(tmp_path / "masks.csv", [{"mask": str(case.path("mask"))}])
    masks = ["--masks", tmp_path / "masks.csv", "--estimate", "--output_dir", tmp_path / "s"]
    run("sample", trained / "tgca" / "pipeline", *masks)
    assert re.search(r"1 samples on .*steering 0\.\d\d, denoising", capsys.readouterr().out)
    assert not (tmp_path / "s").exists()


def test_the_card_of_a_steered_model_tells_of_its_adapter(trained: Path) -> None:
    text = (trained / "tgca" / "pipeline" / "README.md").read_text()
    for told in (
        "from cardiodit import VolDiTControlPipeline",
        "pipe(mask, num_samples=4",
        "| Adapter for masks (`adapter`) | `TGCAAdapterModel`",
        "| Masks | `mask` (labels 1, 2, 3, 4, 5, 6, 7, 8, 9)",
        "### The adapter for masks (`train_tgca`)",
        "### Stage 2, the denoiser (`train_dit`)",
    ):
        assert told in text, told
    assert text.count("byte for byte those of this run's best step") == 3
