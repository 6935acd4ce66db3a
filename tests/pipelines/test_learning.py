"""Samples of a training run's checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.pipelines.learning import checkpoints_of, open_checkpoint


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
    assert "checkpoint-20 is not there; it is left out." in shown.err
    for number in (10, 30):
        names = sorted(path.name for path in (output / f"checkpoint-{number}").glob("*.nii.gz"))
        assert names == ["seed0-00000.nii.gz", "seed0-00001.nii.gz"]
        record = json.loads((output / f"checkpoint-{number}" / "samples.jsonl").read_text().splitlines()[0])
        assert record["seed"] == 0
    with Image.open(output / "checkpoints.png") as sheet, Image.open(output / "checkpoints.gif") as gif:
        assert sheet.height == 2 * 128 and gif.n_frames == 16
        assert sheet.crop((0, 0, 80, 128)).getextrema()[1] > 200  # a caption


def test_what_cannot_be_sampled_is_said(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"none of the checkpoints 11 to 29; it has 10, 30"):
        checkpoints_of(run_folder, 11, 29, 1)
    with pytest.raises(CardioDiTError, match="expected first, last and step"):
        checkpoints_of(run_folder, 30, 10, 5)
    (run_folder / "pipeline").rename(tmp_path / "elsewhere")
    with pytest.raises(CardioDiTError, match="has no pipeline yet, so the VQ model must be named: --vae"):
        open_checkpoint(run_folder, run_folder / "checkpoint-10")
    assert open_checkpoint(run_folder, run_folder / "checkpoint-10", tmp_path / "elsewhere")
