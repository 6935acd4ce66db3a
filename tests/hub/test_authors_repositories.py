"""Repositories that hold the authors' checkpoints open in one line: listed, converted once, kept for offline use."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import (
    CardioDiTError,
    MedLoRDControlPipeline,
    MedLoRDPipeline,
    VolDiTControlPipeline,
    VolDiTPipeline,
    open_pipeline,
)
from cardiodit.cli import main
from cardiodit.convert.cardiodit import load_transformer
from cardiodit.convert.checkpoint import read_checkpoint
from cardiodit.convert.inferred_config import scale_of_codes, stage_of
from cardiodit.convert.medlord import load_unet
from cardiodit.hub.authors_repositories import choose_files, converted_model, infer_configs
from cardiodit.hub.bundled_models import AUTHORS_REPOSITORIES
from cardiodit.hub.load import open_vae
from cardiodit.models import DiT3DTransformerModel
from cardiodit.systems import public_models

from ..medlord_cases import GOLDEN, RULED, checkpoints
from .conftest import Hub, Repository

VOLDIT = GOLDEN / "voldit"


@pytest.fixture(scope="module")
def medlord(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of AICM-HD/medlord, with tiny checkpoints under their public names, and a ControlNet."""
    made = checkpoints(tmp_path_factory.mktemp("authors"))
    names = {"stage1": "vqgan_luna_ds8.pth", "diff": "ldm_luna_ds8.pth", "controlnet": "controlnet_luna.pth"}
    return {"README.md": b"Weights", **{name: made[f"{stage}_ckpt"].read_bytes() for stage, name in names.items()}}


@pytest.fixture(scope="module")
def voldit() -> dict[str, bytes]:
    names = {"vqgan_best_model.pth": "stage1/voldit_vqgan.pth", "dit_best_model.pth": "stage2/voldit_s4.pth"}
    names["tgca_best_model.pth"] = "tgca/voldit_tgca.pth"
    return {new: (VOLDIT / old).read_bytes() for old, new in names.items()}


@pytest.fixture
def client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The local Hub, with an empty cache."""
    constants = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.requests.clear()
    yield hub
    hub.repositories.clear()


def hold(hub: Hub, name: str, files: dict[str, bytes]) -> Repository:
    hub.repositories[name] = Repository()
    hub.repositories[name].add(files)
    return hub.repositories[name]


@torch.no_grad()
def test_medlord_opens_in_one_line_and_again_offline(
    client: Hub, medlord: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(client, "AICM-HD/medlord", medlord)
    pipe = MedLoRDPipeline.from_pretrained("AICM-HD/medlord")
    (tmp_path / "ldm.pth").write_bytes(medlord["ldm_luna_ds8.pth"])
    expected = load_unet(tmp_path / "ldm.pth", RULED / "ldm.yaml")
    assert all(torch.equal(value, pipe.unet.state_dict()[name]) for name, value in expected.state_dict().items())
    assert pipe.vae.config.scaling_factor == 1.11 and pipe.units == (-1000, 1000)
    assert pipe.vae.config.num_res_channels == [16, 20] and pipe.vae.config.channels == [16, 24]
    settings: dict[str, Any] = {"height": 32, "width": 32, "depth": 16, "num_inference_steps": 1, "seed": 0}
    volumes = pipe(**settings).volumes
    assert not any("controlnet" in request and "resolve" in request for request in client.requests)

    downloads = [request for request in client.requests if "resolve" in request]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    again = open_pipeline("AICM-HD/medlord")
    assert isinstance(again, MedLoRDPipeline) and torch.equal(again(**settings).volumes, volumes)
    assert open_vae("AICM-HD/medlord").config.num_embeddings == 64
    assert downloads == [request for request in client.requests if "resolve" in request]
    with pytest.raises(CardioDiTError, match="AICM-HD/medlord cannot be read on the Hub .*; offline"):
        MedLoRDControlPipeline.from_pretrained("AICM-HD/medlord")


def test_a_controlnet_in_the_repository_is_used_where_masks_are_wanted(client: Hub, medlord: dict[str, bytes]) -> None:
    hold(client, "AICM-HD/medlord", medlord)
    pipe = MedLoRDControlPipeline.from_pretrained("AICM-HD/medlord")
    assert pipe.controlnet.conditions.keys == ("mask0", "mask1", "mask2")
    assert (pipe.controlnet.config.width_ratio, pipe.controlnet.config.condition_widths) == (0.5, [8, 16])
    masks = {key: np.ones((32, 32, 16), np.uint8) for key in pipe.controlnet.conditions.keys}
    assert pipe(masks, num_inference_steps=1, seed=0).volumes.shape == (1, 32, 32, 16)


@torch.no_grad()
def test_voldit_opens_whatever_its_files_are_called(client: Hub, voldit: dict[str, bytes]) -> None:
    hold(client, "AICM-HD/voldit", voldit)
    pipe = VolDiTPipeline.from_pretrained("AICM-HD/voldit")
    expected = load_transformer(VOLDIT / "dit_best_model.pth", VOLDIT / "dit.yaml", kind=DiT3DTransformerModel)
    assert all(torch.equal(value, pipe.transformer.state_dict()[name]) for name, value in expected.state_dict().items())
    assert pipe.transformer.config.patch_size == expected.config.patch_size
    scale = scale_of_codes(read_checkpoint(VOLDIT / "vqgan_best_model.pth"))
    assert pipe.vae.config.scaling_factor == pytest.approx(scale, rel=1e-3)
    controlled = VolDiTControlPipeline.from_pretrained("AICM-HD/voldit")
    assert controlled.adapter.config.condition_channels >= 1


def test_a_new_commit_is_converted_anew_and_an_old_one_stays(client: Hub, medlord: dict[str, bytes]) -> None:
    repository = hold(client, "AICM-HD/medlord", medlord)
    first = converted_model("AICM-HD/medlord")
    assert converted_model("AICM-HD/medlord") == first
    old = repository.commits[-1].oid
    repository.add({**medlord, "NEWS.md": b"more"})
    second = converted_model("AICM-HD/medlord")
    assert second.parent != first.parent and converted_model("AICM-HD/medlord", old) == first


def test_several_denoisers_are_listed_and_one_can_be_named(client: Hub, voldit: dict[str, bytes]) -> None:
    hold(client, "AICM-HD/voldit", {**voldit, "stage2/voldit_l4.pth": voldit["stage2/voldit_s4.pth"]})
    with pytest.raises(CardioDiTError, match=r"denoiser: stage2/voldit_s4.pth \(2.0 MiB\), stage2/voldit_l4"):
        VolDiTPipeline.from_pretrained("AICM-HD/voldit")
    pipe = VolDiTPipeline.from_pretrained("AICM-HD/voldit", checkpoint="stage2/voldit_l4.pth")
    assert isinstance(pipe, VolDiTPipeline)
    with pytest.raises(CardioDiTError, match="has no file voldit_xl.pth; it has"):
        VolDiTPipeline.from_pretrained("AICM-HD/voldit", checkpoint="voldit_xl.pth")


def test_files_that_are_missing_or_not_what_they_seem(client: Hub, medlord: dict[str, bytes]) -> None:
    with pytest.raises(CardioDiTError, match="no file is named like the VQ-GAN: a.pth .*cardiodit convert"):
        choose_files("lab/x", {"a.pth": 1, "README.md": 1}, False)
    swapped = {"vqgan.pth": medlord["ldm_luna_ds8.pth"], "ldm.pth": medlord["vqgan_luna_ds8.pth"]}
    hold(client, "AICM-HD/medlord", swapped)
    with pytest.raises(CardioDiTError, match=r"vqgan.pth of AICM-HD/medlord holds the weights of another"):
        converted_model("AICM-HD/medlord")
    assert not list(Path(client_cache()).glob("cardiodit/*/*/plain"))


def client_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HOME


def test_two_processes_convert_once(client: Hub, medlord: dict[str, bytes], tmp_path: Path) -> None:
    hold(client, "AICM-HD/medlord", medlord)
    start = multiprocessing.get_context("fork")  # which inherits the local Hub's address
    jobs = [start.Process(target=converted_model, args=("AICM-HD/medlord",)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(100)
    assert [job.exitcode for job in jobs] == [0, 0]
    (folder,) = tmp_path.glob("cardiodit/AICM-HD--medlord/*/plain")
    assert isinstance(MedLoRDPipeline.from_pretrained(folder), MedLoRDPipeline)


def test_stages_and_configs_are_inferred_from_weights(tmp_path: Path) -> None:
    files = {
        "stage1": VOLDIT / "vqgan_best_model.pth",
        "diff": VOLDIT / "dit_best_model.pth",
        "adapter": VOLDIT / "tgca_best_model.pth",
    }
    read = {role: read_checkpoint(path) for role, path in files.items()}
    assert [stage_of(checkpoint) for checkpoint in read.values()] == ["stage1", "dit", "tgca"]
    configs = infer_configs(read)
    assert configs["diff"]["model"]["params"]["input_size"] == [8, 8, 4]
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CardioDiTError, match="other.pth holds the weights of no published network: weight"):
        stage_of(read_checkpoint(tmp_path / "other.pth"))


def test_the_catalogue_lists_what_opens_by_name(capsys: pytest.CaptureFixture) -> None:
    assert {model.name for _, model in public_models() if model.is_authors} == set(AUTHORS_REPOSITORIES)
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    for told in (
        "AICM-HD/medlord",
        "MedLoRDPipeline.from_pretrained('AICM-HD/medlord')",
        "files: vqgan_luna_ds8.pth, ldm_luna_ds8.pth",
        "config: read from the weights, one of configs/voldit",
        "LUNA16",
        "arxiv.org/abs/2503",
    ):
        assert told in printed
    assert main(["models", "--json"]) == 0
    assert '"name": "cardiodit-phantom"' in capsys.readouterr().out
    assert all(model.files and model.config and model.licence for _, model in public_models())
