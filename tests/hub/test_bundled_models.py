"""The models that come with the package are found by their names, wherever a name may be given."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cardiodit import CardioDiTError, CardioDiTPipeline, open_pipeline
from cardiodit.cli import main
from cardiodit.hub.bundled_models import BUNDLED, PHANTOM_MODEL, bundled_model, find_model, find_pipeline
from cardiodit.hub.load import open_transformer, open_vae

SIZE_LIMIT = 16_000_000  # bytes


@pytest.mark.parametrize("name", BUNDLED)
def test_they_are_small_half_precision_and_tell_of_no_machine(name: str) -> None:
    files = [path for path in bundled_model(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_LIMIT
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
            assert "F16" in dtypes and dtypes <= {"F16", "F32", "I64"}, dtypes  # codes and times stay exact
        if path.suffix == ".json":
            assert "/" not in json.loads(path.read_text()).get("_name_or_path", "")


def test_the_bare_name_opens_the_model_and_its_parts() -> None:
    pipe = CardioDiTPipeline.from_pretrained(PHANTOM_MODEL)
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert pipe.transformer.config.class_names == ["dilated", "hypertrophic", "infarct", "normal"]
    assert pipe.geometry.spacing is not None and pipe.geometry.frame_time is not None
    assert open_vae(PHANTOM_MODEL).config.scaling_factor == pipe.vae.config.scaling_factor
    assert open_transformer(PHANTOM_MODEL).config.sample_size == pipe.transformer.config.sample_size


def test_a_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PHANTOM_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model(PHANTOM_MODEL) == PHANTOM_MODEL
    with pytest.raises(CardioDiTError, match=r"no model_index\.json"):
        CardioDiTPipeline.from_pretrained(PHANTOM_MODEL)


def test_a_training_run_stands_for_its_pipeline(make_pipe: Callable, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "dit"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(CardioDiTError, match="It is a training run, and only finished runs of a denoiser have a pipe"):
        open_pipeline(run)
    make_pipe().save_pretrained(run / "pipeline")
    for opened in (open_pipeline(run), CardioDiTPipeline.from_pretrained(run)):
        assert Path(opened.config["_name_or_path"]) == run / "pipeline"
    assert open_vae(run).config.embedding_dim == 8
    (run / "run.json").unlink()  # an empty record, which a card would report
    assert main(["card", str(run)]) == 0 and (run / "pipeline" / "README.md").is_file()
    assert main(["export", str(run), "--output_dir", str(tmp_path / "exported")]) == 0
    make_pipe().save_pretrained(run)  # a pipeline itself
    assert find_pipeline(run) == run


def test_other_names_are_left_alone_and_a_lost_model_is_said() -> None:
    assert find_model("org/name") == "org/name"
    with pytest.raises(CardioDiTError, match="Install cardiodit again"):
        bundled_model("another-model")
