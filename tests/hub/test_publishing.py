"""Push, wipe the cache, load: the real client of the Hub against a small Hub on loopback."""

import os
import subprocess
import sys
from typing import Any

import pytest

# Six layers, so that the weights are more than the 10 MB that the client keeps at a time.
PREPARE = """
import sys, torch, cardiodit
from cardiodit import CardioDiTPipeline, DiT4DTransformerModel, VQModel4D, make_scheduler

def small_pipe(seed):
    torch.manual_seed(seed)
    vae = VQModel4D(channels=(8, 16), num_res_channels=(8, 16), num_embeddings=64, spacing=(1.5, 1.5, 8.0))
    transformer = DiT4DTransformerModel(
        sample_size=(2, 8, 8, 4), num_layers=6, num_attention_heads=2, attention_head_dim=128
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    pipe = CardioDiTPipeline(vae, transformer, make_scheduler("dpm++"))
    pipe.set_progress_bar_config(disable=True)
    return pipe

def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(seed=1, num_inference_steps=3).volumes
"""

PUSH = """
first, second = small_pipe(1), small_pipe(2)
first.push_to_hub("lab/hearts")
from huggingface_hub import HfApi
HfApi().create_tag("lab/hearts", tag="v1")
second.push_to_hub("lab/hearts", commit_message="trained longer")
torch.save({"v1": sample(first), "main": sample(second)}, "expected.pt")
"""

LOAD = """
from diffusers import DiffusionPipeline
expected = torch.load("expected.pt", weights_only=True)
for cls in (CardioDiTPipeline, DiffusionPipeline):
    for revision in ("main", "v1"):
        pipe = cls.from_pretrained("lab/hearts", revision=revision)
        assert type(pipe) is CardioDiTPipeline
        assert torch.equal(sample(pipe), expected[revision]), (cls, revision)
record = pipe(seed=1, num_inference_steps=3).records[0]
assert record["model"] == "lab/hearts" and len(record["revision"]) == 40, record
vae = VQModel4D.from_pretrained("lab/hearts", subfolder="vae")
assert tuple(vae.config.spacing) == (1.5, 1.5, 8.0)
"""


@pytest.fixture(scope="module")
def run(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("client")

    def run_(code: str, cache: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / cache),
            "HF_TOKEN": "hf_secret",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True
        )

    pushed = run_(PREPARE + PUSH, cache="pushing")
    assert pushed.returncode == 0, pushed.stderr
    return run_


def test_what_is_pushed_are_safetensors_and_configs(hub: Any, run: Any) -> None:
    repository = hub.repositories["lab/hearts"]
    assert sorted(repository.commits[-1].files) == [
        ".gitattributes",
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert b"library_name: diffusers" in repository.commits[-1].files["README.md"]


def test_it_loads_by_name_and_revision_with_the_same_output_to_the_bit(hub: Any, run: Any) -> None:
    hub.cut.add("transformer/diffusion_pytorch_model.safetensors")
    loaded = run(PREPARE + LOAD, cache="fresh")
    if loaded.returncode != 0:  # older clients stop where newer ones go on by themselves; the user starts again
        loaded = run(PREPARE + LOAD, cache="fresh")
    assert loaded.returncode == 0, loaded.stderr
    # The download that broke off half-way went on where it was, and was not begun anew.
    assert not hub.cut
    (resumed,) = [line for line in hub.ranges if line.startswith("transformer/diffusion")]
    assert int(resumed.split("bytes=")[1].split("-")[0]) > 0


def test_offline_it_opens_from_the_cache(hub: Any, run: Any) -> None:
    before = len(hub.requests)
    offline = run(PREPARE + LOAD, cache="fresh", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert len(hub.requests) == before


def test_what_is_not_there_is_said(run: Any) -> None:
    missing = run(PREPARE + "CardioDiTPipeline.from_pretrained('lab/nothing')", cache="fresh")
    assert missing.returncode != 0 and "lab/nothing" in missing.stderr


EXPORT = """
from pathlib import Path
from huggingface_hub import HfApi
from cardiodit.cli import main
pipe = small_pipe(1)
pipe.save_pretrained("model")
assert main(["export", "model", "--output_dir", "with-code"]) == 0
HfApi().create_repo("lab/with-code")
HfApi().upload_folder(repo_id="lab/with-code", folder_path="with-code")
"""

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["cardiodit"] = None  # any import of it fails
import torch
from diffusers import DiffusionPipeline
expected = torch.load("expected.pt", weights_only=True)["v1"]
for name in ("with-code", "lab/with-code"):
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(seed=1, num_inference_steps=3)
    assert torch.equal(out.volumes, expected), name
out.save("saved")
"""


def test_an_export_needs_no_package(run: Any) -> None:
    exported = run(PREPARE + EXPORT, cache="exporting")
    assert exported.returncode == 0, exported.stderr
    loaded = run(WITHOUT_THE_PACKAGE, cache="stranger")
    assert loaded.returncode == 0, loaded.stderr
    assert "Expected types" not in loaded.stderr
