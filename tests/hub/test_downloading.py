"""The authors' files straight from the Hub: the real client, a real server."""

from pathlib import Path
from typing import Any

import pytest

from cardiodit import VolDiTControlPipeline
from cardiodit.cli import main

from .conftest import Repository

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
    told = capsys.readouterr().err
    assert "configs/dti.yaml of lab/voldit cannot be downloaded" in told and "names are right" in told
    assert not (tmp_path / "other").exists()
