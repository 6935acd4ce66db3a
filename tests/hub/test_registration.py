import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import cardiodit
from cardiodit import CardioDiTPipeline
from cardiodit.hub.registration import public_library

from ..conftest import begin


def test_a_folder_names_the_package_and_not_its_modules(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.scheduler = cardiodit.change_solver(pipe.scheduler, "ddim")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["cardiodit", "VQModel4D"]
    assert index["transformer"] == ["cardiodit", "DiT4DTransformerModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]


def test_it_opens_in_a_fresh_process_by_either_class(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "model")
    expected = pipe(seed=4, num_inference_steps=3, output_type="latent").volumes
    torch.save(expected, tmp_path / "expected.pt")
    process = begin(open_by_either_class, tmp_path, said=tmp_path / "said")
    process.join()
    assert process.exitcode == 0, (tmp_path / "said").read_text()


def open_by_either_class(folder: Path) -> None:
    expected = torch.load(folder / "expected.pt", weights_only=True)
    for cls in (DiffusionPipeline, CardioDiTPipeline):
        pipe = cls.from_pretrained(folder / "model")
        assert type(pipe) is CardioDiTPipeline
        found = pipe(seed=4, num_inference_steps=3, output_type="latent").volumes
        assert torch.equal(found, expected), (found - expected).abs().max()


def test_components_can_be_swapped_on_loading(make_pipe, make_vae, tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path)
    vae = make_vae()
    assert CardioDiTPipeline.from_pretrained(tmp_path, vae=vae).vae is vae
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16), CardioDiTPipeline)


def test_only_our_own_modules_are_renamed() -> None:
    assert public_library(("cardiodit.models.autoencoder_vq", "VQModel4D")) == ("cardiodit", "VQModel4D")
    assert public_library(("diffusers", "DDIMScheduler")) == ("diffusers", "DDIMScheduler")
    assert public_library((None, None)) == (None, None)
    assert public_library("cardiodit.x") == "cardiodit.x"
