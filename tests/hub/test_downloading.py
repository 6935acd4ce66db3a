"""The authors' files straight from the Hub: the real client, a real server."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cardiodit import PRDiTPipeline, VolDiTControlPipeline
from cardiodit.cli import main

from ..prdit_cases import config, save, small_weights
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
