import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import CardioDiTError, CardioDiTPipeline, PRDiTTransformerModel
from cardiodit.hub.load import folder_of, open_geometry_source, open_transformer, open_vae
from cardiodit.imaging import Intensity, Preprocessing

from ..prepared_python import python


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("place", ["", "vae", "best/vae"])
def test_a_vae_is_opened_as_what_it_is(any_vae: Any, tmp_path: Path, place: str) -> None:
    any_vae.save_pretrained(tmp_path / place)
    opened = open_vae(tmp_path)
    assert type(opened) is type(any_vae) and not opened.training and same_weights(opened, any_vae)
    assert folder_of(str(tmp_path), "vae") == tmp_path / place


def test_transformers_of_both_kinds(make_dit: Callable, make_dit_3d: Callable, tmp_path: Path) -> None:
    for transformer in (make_dit(), make_dit_3d()):
        transformer.save_pretrained(tmp_path / "best" / "transformer")
        opened = open_transformer(str(tmp_path), torch_dtype=torch.bfloat16)
        assert type(opened) is type(transformer) and opened.dtype == torch.bfloat16 and not opened.training


def test_a_pipeline_folder_holds_both(make_pipe: Callable[..., CardioDiTPipeline], tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path)
    assert same_weights(open_vae(tmp_path), pipe.vae) and same_weights(open_transformer(tmp_path), pipe.transformer)


def test_what_does_not_fit_is_named(make_vae: Callable, make_dit: Callable, tmp_path: Path) -> None:
    with pytest.raises(
        CardioDiTError, match=r"contains no vae: looked for .*VQModel4D or VQModel3D in .*pipeline/vae\.$"
    ):
        open_vae(tmp_path)
    make_vae().save_pretrained(tmp_path)
    with pytest.raises(CardioDiTError, match=r"contains no transformer.*config.json belongs to a VQModel4D\."):
        open_transformer(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CardioDiTError, match="It is not a model config"):
        open_vae(tmp_path)
    with pytest.raises(CardioDiTError, match="There is no folder .*nowhere"):
        open_vae(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CardioDiTError, match="file is not a folder"):
        open_vae(tmp_path / "file")


def test_a_model_that_works_on_voxels_has_no_autoencoder_and_says_how_volumes_are_prepared(
    make_vae: Callable, tmp_path: Path
) -> None:
    steps = Preprocessing(intensity=Intensity(-1000, 1000)).to_dict()
    model = PRDiTTransformerModel((16, 8, 8), 8, 1, 0, 2, 8, preprocessing=steps)
    model.save_pretrained(tmp_path / "voxels" / "transformer")
    make_vae(preprocessing=steps).save_pretrained(tmp_path / "latents" / "vae")
    for folder in ("voxels", "latents"):
        assert open_geometry_source(tmp_path / folder).config.preprocessing == steps
    for open_one in (open_vae, open_geometry_source):
        with pytest.raises(CardioDiTError, match=r"contains no vae"):
            open_one(tmp_path)
    with pytest.raises(CardioDiTError, match="It contains PRDiT, which denoises voxels and needs neither autoencoder"):
        open_vae(tmp_path / "voxels")


OPEN = """
from huggingface_hub import HfApi
import cardiodit
from cardiodit.hub.load import open_transformer, open_vae

vae = cardiodit.VQModel3D(channels=(8, 16), num_res_channels=(8, 16), num_embeddings=64)
vae.push_to_hub("lab/alone")
vae.save_pretrained("vae")
HfApi().create_repo("lab/inside")
HfApi().upload_folder(repo_id="lab/inside", folder_path="vae", path_in_repo="vae")
for name in ("lab/inside", "lab/alone"):
    assert type(open_vae(name, revision="main")) is cardiodit.VQModel3D
for open_model, name, parts in [
    (open_transformer, "lab/inside", ["lab/inside/config.json", "lab/inside/transformer/config.json"]),
    (open_transformer, "lab/alone", ["lab/alone/config.json: belongs to a VQModel3D"]),
    (open_vae, "lab/nothing", ["There is no folder lab/nothing", "VQModel4D or VQModel3D"]),
]:
    try:
        open_model(name)
    except cardiodit.CardioDiTError as error:
        assert all(part in str(error) for part in parts), error
        print(error)
    else:
        raise AssertionError(name)
"""


def test_the_hub(hub: Any, tmp_path: Path) -> None:
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [python(), "-c", OPEN], env={**os.environ, **settings}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
