"""`--push_to_hub`: a run that ends on the Hub, with the real client against a small Hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from cardiodit import VQModel4D
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import write_manifest
from cardiodit.latents import LatentHeader, identity_of_vae, write_latent

TRAIN = [
    *("--vae", "vae", "--training_ids", "training/manifest.csv", "--validation_ids", "validation/manifest.csv"),
    *(
        "--output_dir",
        "runs",
        "--max_train_steps",
        "2",
        "--model.num_layers",
        "1",
        "--model.patch_size",
        "[1, 2, 2, 2]",
    ),
    *("--model.num_attention_heads", "2", "--preview_samples", "0", "--report_to", "none", "--push_to_hub"),
]


def write_model_and_latents(folder: Path) -> None:
    vae = VQModel4D(channels=(8,), num_res_channels=(8,), num_res_layers=1, num_embeddings=16, embedding_dim=2)
    vae.save_pretrained(folder / "vae")
    for seed, split in enumerate(("training", "validation")):
        (folder / split).mkdir()
        header = LatentHeader(identity_of_vae(vae), "p", split, "float32", Geometry(), (2, 2, 4, 4, 2), 4)
        latent = torch.randn(2, 2, 4, 4, 2, generator=torch.Generator().manual_seed(seed))
        write_latent(folder / split / "a.safetensors", latent, header)
        write_manifest(folder / split / "manifest.csv", [{"latent": "a.safetensors", "subject": split}])


def test_a_run_ends_on_the_hub_and_a_missing_login_is_found_before_training(hub: Any, tmp_path: Path) -> None:
    write_model_and_latents(tmp_path)
    nobody = "http://127.0.0.1:9"  # nobody answers there
    uploading = start_training(tmp_path, hub.url, "a", "lab/trained")
    alone = start_training(tmp_path, nobody, "b", "lab/other")
    printed, errors = uploading.communicate()
    assert uploading.returncode == 0, errors
    assert "Uploaded to" in printed
    files = hub.repositories["lab/trained"].commits[-1].files
    assert {"model_index.json", "README.md", "transformer/diffusion_pytorch_model.safetensors"} <= set(files)
    assert b"Lowest validation loss" in files["README.md"]

    _, errors = alone.communicate()
    assert alone.returncode == 1
    assert "--push_to_hub: The repository lab/other cannot be made" in errors
    assert not (tmp_path / "runs" / "b" / "metrics.jsonl").exists()


def start_training(folder: Path, hub_url: str, name: str, repository: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(folder / f"cache-{name}"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cardiodit.training.train_dit", *TRAIN]
    caught: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    more = ["--run_name", name, "--hub_model_id", repository]
    return subprocess.Popen([*command, *more], cwd=folder, env=environment, **caught)
