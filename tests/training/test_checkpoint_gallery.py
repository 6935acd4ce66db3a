"""Samples of a training run's checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cardiodit import TGCAAdapterModel
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Preprocessing
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.training.checkpoint_gallery import checkpoints_of, open_checkpoint

from ..conftest import randomise


@pytest.fixture
def run_folder(make_pipe: Callable, make_dit: Callable, tmp_path: Path) -> Path:
    """As training leaves it: two checkpoints with raw and averaged weights, and a pipeline."""
    run = tmp_path / "run"
    for number in (10, 30):
        for part in ("transformer", "transformer_ema"):
            model = make_dit()
            with torch.no_grad():
                model.proj_out.bias += number + (part == "transformer")
            model.save_pretrained(run / f"checkpoint-{number}" / part)
    make_pipe().save_pretrained(run / "pipeline")
    (run / "config.yaml").write_text("diffusion: {num_train_timesteps: 100, prediction_type: v_prediction}\n")
    (run / "run.json").write_text('{"stage": "train_dit"}')
    return run


def test_averaged_weights_and_the_runs_own_schedule(run_folder: Path, make_dit: Callable) -> None:
    pipe = open_checkpoint(run_folder, run_folder / "checkpoint-30")
    assert torch.allclose(pipe.transformer.proj_out.bias, make_dit().proj_out.bias + 30)
    assert pipe.scheduler.config.num_train_timesteps == 100
    (run_folder / "checkpoint-30" / "transformer_ema" / "config.json").unlink()
    raw = open_checkpoint(run_folder, run_folder / "checkpoint-30")
    assert torch.allclose(raw.transformer.proj_out.bias, make_dit().proj_out.bias + 31)


def test_a_folder_each_and_a_sheet_across(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "samples"
    arguments = ["sample", str(run_folder), "--checkpoints", "10", "30", "10", "--output_dir", str(output)]
    assert main([*arguments, "--num_inference_steps", "2", "--num_samples", "2"]) == 0
    shown = capsys.readouterr()
    assert "checkpoint-20 does not exist and is skipped." in shown.err
    for number in (10, 30):
        names = sorted(path.name for path in (output / f"checkpoint-{number}").glob("*.nii.gz"))
        assert names == ["seed0-00000.nii.gz", "seed0-00001.nii.gz"]
        record = json.loads((output / f"checkpoint-{number}" / "samples.jsonl").read_text().splitlines()[0])
        assert record["seed"] == 0
    with Image.open(output / "checkpoints.png") as sheet, Image.open(output / "checkpoints.gif") as gif:
        assert sheet.height == 2 * 128 and gif.n_frames == 16
        assert sheet.crop((0, 0, 80, 128)).getextrema()[1] > 200  # a caption


@pytest.fixture
def adapter_run(make_pipe: Callable, tmp_path: Path) -> tuple[Path, Path]:
    """As the training of an adapter leaves it before it ends, and the base."""
    base = make_pipe()
    base.save_pretrained(tmp_path / "base")
    run = tmp_path / "tgca"
    for number in (2, 4):
        for part in ("adapter", "adapter_ema"):
            adapter = TGCAAdapterModel(32, 2, 4, channels=(4, 8), strides=((2, 2, 2),))
            randomise(adapter, seed=number, std=0.3)
            adapter.register_to_config(fingerprint=fingerprint_of(base.transformer))
            adapter.time_gate.bias.data.fill_(number + 0.5 * (part == "adapter"))
            adapter.save_pretrained(run / f"checkpoint-{number}" / part)
    freed = base.transformer
    freed.proj_out.bias.data += 1
    freed.save_pretrained(run / "checkpoint-4" / "transformer_ema")
    adapter.register_to_config(fingerprint=fingerprint_of(freed))
    adapter.time_gate.bias.data.fill_(4)
    adapter.save_pretrained(run / "checkpoint-4" / "adapter_ema")
    (run / "config.yaml").write_text("loss: mse\n")
    (run / "run.json").write_text('{"stage": "train_tgca"}')
    return run, tmp_path / "base"


def test_an_adapter_is_seen_to_learn(
    adapter_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, base = adapter_run
    mask = np.zeros((32, 32, 2, 16), np.uint8)
    mask[8:20, 8:20] = 1
    write_nifti(tmp_path / "mask.nii.gz", mask, Geometry())
    (tmp_path / "m.csv").write_text("mask0\nmask.nii.gz\n")
    output = tmp_path / "samples"
    arguments = ["sample", str(run), "--checkpoints", "2", "4", "2", "--output_dir", str(output)]
    arguments += ["--num_inference_steps", "2"]
    assert main([*arguments, "--masks", str(tmp_path / "m.csv")]) == 1
    assert "has no pipeline yet, so the model that it steers must be given: --base MODEL" in capsys.readouterr().err
    assert main([*arguments, "--base", str(base)]) == 1
    assert "is controlled by masks (mask0)" in capsys.readouterr().err
    assert main([*arguments, "--masks", str(tmp_path / "m.csv"), "--base", str(base)]) == 0
    assert (output / "checkpoints.png").is_file()
    first, second = (read_nifti(output / f"checkpoint-{n}" / "seed0-00000.nii.gz").voxels for n in (2, 4))
    assert np.abs(first - second).max() > 1e-3


def test_a_steered_checkpoint_is_of_the_averages_and_of_what_was_freed(adapter_run: tuple[Path, Path]) -> None:
    run, base = adapter_run
    early, late = (open_checkpoint(run, run / f"checkpoint-{n}", base=base) for n in (2, 4))
    assert early.adapter.time_gate.bias.item() == 2
    assert torch.allclose(late.transformer.proj_out.bias, early.transformer.proj_out.bias + 1)
    steps = Preprocessing(size=(32, 32, 2), frames=16)
    (run / "run.json").write_text(json.dumps({"stage": "train_tgca", "data": {"preprocessing": steps.to_dict()}}))
    prepared = open_checkpoint(run, run / "checkpoint-2", base=base)
    assert Preprocessing.from_dict(prepared.vae.config.preprocessing) == steps
    with pytest.raises(CardioDiTError, match="--vae: .* is a run of train_tgca, which does not use it"):
        open_checkpoint(run, run / "checkpoint-2", vae=base)


def test_masks_for_a_run_without_an_adapter_are_refused_in_a_sentence(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "m.csv").write_text("mask\nmask.nii.gz\n")
    arguments = ["sample", str(run_folder), "--checkpoints", "10", "30", "10", "--output_dir", str(tmp_path / "s")]
    assert main([*arguments, "--masks", str(tmp_path / "m.csv")]) == 1
    assert "which has no adapter" in capsys.readouterr().err
    assert main([*arguments, "--base", "cardiodit-phantom"]) == 1
    assert "--base: " in (message := capsys.readouterr().err) and "train_dit, which does not use it" in message
    (run_folder / "run.json").write_text('{"stage": "train_vqgan"}')
    assert main(arguments) == 1
    assert "is a run of train_vqgan, whose checkpoints cannot be sampled" in capsys.readouterr().err
    (run_folder / "run.json").unlink()
    assert main(arguments) == 1
    assert "contains no run.json, so it is not a training run" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_said(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"none of the checkpoints 11 to 29; it has 10, 30"):
        checkpoints_of(run_folder, 11, 29, 1)
    with pytest.raises(CardioDiTError, match="expected first, last and step"):
        checkpoints_of(run_folder, 30, 10, 5)
    (run_folder / "pipeline").rename(tmp_path / "elsewhere")
    with pytest.raises(CardioDiTError, match="has no pipeline yet, so the VQ model must be given: --vae"):
        open_checkpoint(run_folder, run_folder / "checkpoint-10")
    assert open_checkpoint(run_folder, run_folder / "checkpoint-10", tmp_path / "elsewhere")
