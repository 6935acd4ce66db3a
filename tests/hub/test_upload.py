"""`--push_to_hub`: a run that ends on the Hub, with the real client against a small Hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PREPARE = """
import torch
from pathlib import Path
from cardiodit import VQModel4D
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import write_manifest
from cardiodit.latents import LatentHeader, identity_of_vae, write_latent

vae = VQModel4D(channels=(8,), num_res_channels=(8,), num_res_layers=1, num_embeddings=16, embedding_dim=2)
vae.save_pretrained("vae")
for seed, split in enumerate(("training", "validation")):
    Path(split).mkdir()
    header = LatentHeader(identity_of_vae(vae), "p", split, "float32", Geometry(), (2, 2, 4, 4, 2), 4)
    torch.manual_seed(seed)
    write_latent(Path(split) / "a.safetensors", torch.randn(2, 2, 4, 4, 2), header)
    write_manifest(Path(split) / "manifest.csv", [{"latent": "a.safetensors", "subject": split}])
"""

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


def test_a_run_ends_on_the_hub_and_a_missing_login_is_found_before_training(hub: Any, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    prepared = subprocess.run([sys.executable, "-c", PREPARE], **run)  # type: ignore[call-overload]
    assert prepared.returncode == 0, prepared.stderr
    train = [sys.executable, "-m", "cardiodit.training.train_dit", *TRAIN]
    pushed = subprocess.run([*train, "--run_name", "a", "--hub_model_id", "lab/trained"], **run)  # type: ignore
    assert pushed.returncode == 0, pushed.stderr
    assert "Uploaded to" in pushed.stdout
    files = hub.repositories["lab/trained"].commits[-1].files
    assert {"model_index.json", "README.md", "transformer/diffusion_pytorch_model.safetensors"} <= set(files)
    assert b"Lowest validation loss" in files["README.md"]

    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers there
    alone = subprocess.run([*train, "--run_name", "b", "--hub_model_id", "lab/other"], **run)  # type: ignore
    assert alone.returncode == 1
    assert "--push_to_hub: The repository lab/other cannot be made" in alone.stderr
    assert not (tmp_path / "runs" / "b" / "metrics.jsonl").exists()
