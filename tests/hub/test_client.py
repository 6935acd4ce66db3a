"""Uploads by `--push_to_hub` and downloads of the authors' files: the real client against a small Hub on loopback."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cardiodit import PRDiTPipeline, VolDiTControlPipeline, VQModel4D
from cardiodit.cli import main
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import write_manifest
from cardiodit.latents import LatentHeader, identity_of_vae, write_latent

from ..prdit_cases import config, save, small_weights
from ..prepared_python import python
from .conftest import Repository

TRAIN = [
    *("--vae", "vae", "--training_ids", "training/manifest.csv", "--validation_ids", "validation/manifest.csv"),
    *("--output_dir", "runs", "--max_train_steps", "2", "--model.num_layers", "1"),
    *("--model.patch_size", "[1, 2, 2, 2]"),
    *("--model.num_attention_heads", "2", "--preview_samples", "0", "--report_to", "none", "--push_to_hub"),
    *("--without_audit", "random numbers, nobody's data"),
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
    offline = "http://127.0.0.1:9"  # nothing answers there
    uploading = start_training(tmp_path, hub.url, "a", "lab/trained")
    failing = start_training(tmp_path, offline, "b", "lab/other")
    printed, errors = uploading.communicate()
    assert uploading.returncode == 0, errors
    assert "Uploaded to" in printed
    files = hub.repositories["lab/trained"].commits[-1].files
    assert {"model_index.json", "README.md", "transformer/diffusion_pytorch_model.safetensors"} <= set(files)
    assert b"Lowest validation loss" in files["README.md"]
    assert b"**Published without an audit.** random numbers, nobody's data" in files["README.md"]

    _, errors = failing.communicate()
    assert failing.returncode == 1
    assert "--push_to_hub: The repository lab/other cannot be created" in errors
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
    command = [python(), "-m", "cardiodit.training.train_dit", *TRAIN]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    more = ["--run_name", name, "--hub_model_id", repository]
    return subprocess.Popen([*command, *more], cwd=folder, env=environment, **pipes)


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "voldit"
FILES = {
    "--stage1_ckpt": "stage1/best_model.pth",
    "--stage1_cfg": "configs/vqgan.yaml",
    "--diff_ckpt": "dit/best_model.pth",
    "--diff_cfg": "configs/dit.yaml",
    "--tgca_ckpt": "tgca/best_model.pth",
    "--tgca_cfg": "configs/tgca.yaml",
}
SOURCES = ("vqgan_best_model.pth", "vqgan.yaml", "dit_best_model.pth", "dit.yaml", "tgca_best_model.pth", "tgca.yaml")


@pytest.fixture
def client(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


def convert(output: Path, **replaced: str) -> int:
    arguments = [text for pair in {**FILES, **replaced}.items() for text in pair]
    return main(
        ["convert", "voldit", "--repo", "lab/voldit", *arguments, "--scale_factor", "1", "--output_dir", str(output)]
    )


def test_checkpoints_come_from_a_repository(hub: Any, client: None, tmp_path: Path, capsys: Any) -> None:
    hub.repositories["lab/voldit"] = Repository(private=False)
    hub.repositories["lab/voldit"].add({name: (GOLDEN / s).read_bytes() for name, s in zip(FILES.values(), SOURCES)})
    assert convert(tmp_path / "model") == 0, capsys.readouterr().err
    pipe = VolDiTControlPipeline.from_pretrained(tmp_path / "model")
    assert pipe.adapter.conditions.keys == ("mask",)
    assert convert(tmp_path / "other", **{"--diff_cfg": "configs/dti.yaml"}) == 1
    errors = capsys.readouterr().err
    assert "configs/dti.yaml of lab/voldit cannot be downloaded" in errors and "names are right" in errors
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_with_its_config_inside_comes_alone(hub: Any, client: None, tmp_path: Path, capsys: Any) -> None:
    content = save(tmp_path / "008000.pt", small_weights()).read_bytes()
    hub.repositories["lab/prdit"] = Repository(private=False)
    hub.repositories["lab/prdit"].add({"weights/008000.pt": content, "lidc.yaml": yaml.safe_dump(config()).encode()})
    arguments = ["convert", "prdit", "--repo", "lab/prdit", "--ckpt", "weights/008000.pt"]
    for name, more in [("a", []), ("b", ["--cfg", "lidc.yaml"])]:
        assert main([*arguments, *more, "--output_dir", str(tmp_path / name)]) == 0, capsys.readouterr().err
        record = json.loads((tmp_path / name / "conversion.json").read_text())
        assert record["transformer"]["file"] == "008000.pt"
        assert PRDiTPipeline.from_pretrained(tmp_path / name).transformer.config.num_layers == 1
