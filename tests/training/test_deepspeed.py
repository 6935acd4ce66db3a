"""DeepSpeed's ZeRO by two CPU processes: the same run, with the same checkpoints, as without.

pip install 'cardiodit[deepspeed]' && pytest tests/training/test_deepspeed.py
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from cardiodit import CardioDiTPipeline
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness import deepspeed

from ..prepared_python import python
from .conftest import Cohorts, lines_of, said_by
from .test_processes import CLOSE, Runs, check_same, difference, finish, start

IS_THERE = importlib.util.find_spec("deepspeed") is not None
needed = pytest.mark.skipif(not IS_THERE, reason="deepspeed is not installed: pip install 'cardiodit[deepspeed]'")
CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "deepspeed_zero2.yaml"
ONE_STEP = {"max_train_steps": 1, "lr_warmup_steps": 0}
TRAIN_DIT, TRAIN_VQGAN = ["-m", "cardiodit.training.train_dit"], ["-m", "cardiodit.training.train_vqgan"]


def start_zero(command: list[str], stage: int = 2) -> subprocess.Popen:
    """As two processes that accelerate would have configured for DeepSpeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        patch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
        return start(command)


@pytest.fixture(scope="module")
def runs(cohorts: Cohorts, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs with DeepSpeed, and what they are compared with."""
    made = Runs(tmp_path_factory.mktemp("runs"), cohorts)
    made.alone("alone")
    finish(start([*TRAIN_DIT, *made.dit("copies")]))
    finish(start_zero([*TRAIN_DIT, *made.dit("zero")]))
    for name in ("alone", "zero"):
        made.cut(name, f"{name}-then-zero")
        finish(start_zero([*TRAIN_DIT, *made.dit(f"{name}-then-zero")]))
    return made


def gradients_of(run: Path) -> dict[str, torch.Tensor]:
    """Adam's first moments after one step, which tell of the size of the gradients, unlike the weights."""
    moments = load_file(run / "checkpoint-1" / "optimizer.safetensors")
    return {name: values for name, values in moments.items() if name.endswith("exp_avg")}


def session_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["sessions"][-1]


@needed
@pytest.mark.parametrize("other", ["copies", "alone"])
def test_zero_trains_as_copies_do(runs: Runs, other: str) -> None:
    check_same(runs.folder / "zero", runs.folder / other)
    session = session_of(runs.folder / "zero")
    assert (session["processes"], session["distribution"], session["mixed_precision"]) == (2, "DEEPSPEED", "no")


@needed
def test_it_goes_on_to_the_bit(runs: Runs) -> None:
    went_on, at_once = runs.folder / "zero-then-zero", runs.folder / "zero"
    for key in ("loss", "gradient_norm", "validation_loss"):
        assert lines_of(went_on, key) == lines_of(at_once, key)
    digests = [json.loads((run / "checkpoint-12/state.json").read_text())["files"] for run in (went_on, at_once)]
    assert digests[0] == digests[1] and len(digests[0]) >= 5


@needed
def test_it_goes_on_with_the_checkpoint_of_one_process(runs: Runs) -> None:
    check_same(runs.folder / "alone-then-zero", runs.folder / "alone")


@needed
def test_one_process_goes_on_with_its_checkpoint(runs: Runs) -> None:
    runs.cut("zero", "zero-then-alone")
    check_same(runs.alone("zero-then-alone"), runs.folder / "alone")


@needed
def test_it_writes_what_one_process_writes(runs: Runs) -> None:
    written, expected = (runs.folder / name / "checkpoint-12" for name in ("zero", "alone"))
    files = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    assert files == {path.relative_to(written) for path in written.rglob("*") if path.is_file()}
    for file in (file for file in files if file.suffix == ".safetensors"):
        assert difference(load_file(written / file), load_file(expected / file)) < 1e-4, file


@needed
def test_it_ends_in_a_pipeline(runs: Runs) -> None:
    pipe = CardioDiTPipeline.from_pretrained(runs.folder / "zero" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    volumes = pipe(num_samples=1, num_inference_steps=2, class_labels=[0], seed=0, output_type="np").volumes
    assert volumes.shape == (1, 32, 32, 4, 8)


@needed
@pytest.mark.parametrize("stage", [1, 2])
def test_accumulated_batches_take_the_step_of_the_large_batch(runs: Runs, stage: int) -> None:
    """Clipped to a norm that they exceed."""
    settings = {**ONE_STEP, "max_grad_norm": 0.01}
    at_once = runs.alone(f"at-once-{stage}", train_batch_size=8, gradient_accumulation_steps=1, **settings)
    name = f"accumulated-{stage}"
    finish(start_zero([*TRAIN_DIT, *runs.dit(name, gradient_accumulation_steps=4, **settings)], stage))
    accumulated = runs.folder / name
    assert difference(gradients_of(accumulated), gradients_of(at_once)) < 2 * CLOSE
    assert lines_of(accumulated, "gradient_norm")[1] == pytest.approx(lines_of(at_once, "gradient_norm")[1], rel=CLOSE)
    assert lines_of(at_once, "gradient_norm")[1] > 0.01


@needed
def test_the_launcher_starts_it_in_bf16(runs: Runs) -> None:
    """With the file of this repository; as copies do in bf16, which is not what they do in float32."""
    settings = {"max_train_steps": 4, "validation_steps": 4}
    launch = ["accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "2"]
    command = [sys.executable, "-m", *launch, "--main_process_port", "0", *TRAIN_DIT, *runs.dit("launched", **settings)]
    caught: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    finish(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **caught))
    finish(start([*TRAIN_DIT, *runs.dit("copies-bf16", mixed_precision="bf16", **settings)]))
    launched, copies = runs.folder / "launched", runs.folder / "copies-bf16"
    for key in ("loss", "validation_loss"):
        assert lines_of(launched, key) == pytest.approx(lines_of(copies, key), rel=CLOSE)
    assert lines_of(launched)[4] != pytest.approx(lines_of(runs.folder / "copies")[4], rel=CLOSE)
    session = session_of(launched)
    assert (session["distribution"], session["mixed_precision"]) == ("DEEPSPEED", "bf16")
    weights = load_file(launched / "checkpoint-4/transformer/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# --- What cannot be ---


@needed
def test_other_stages_end_in_one_sentence(runs: Runs) -> None:
    starts = [start_zero([*TRAIN_VQGAN, *runs.vqgan("vqgan")]), start_zero([*TRAIN_DIT, *runs.dit("three")], stage=3)]
    for process, sentence in zip(starts, ["for train_vqgan", "ZeRO stage must be 1 or 2, not 3"], strict=True):
        said = said_by(process)
        assert process.returncode != 0 and said.count("error: ") == said.count(sentence) == 1, said


@pytest.mark.parametrize(
    ("stage", "plugin", "precision", "sentence"),
    [
        ("train_vqgan", {}, "no", "use configs/accelerate/multi_gpu.yaml (DDP) for train_vqgan"),
        (
            "train_dit",
            {"zero_stage": 3},
            "no",
            "must be 1 or 2, not 3. To shard the weights too, use configs/",
        ),
        ("train_dit", {"zero_stage": 0}, "no", "ZeRO stage must be 1 or 2, not 0"),
        ("train_dit", {"offload_optimizer_device": "cpu"}, "no", "offload_optimizer_device must be none, not 'cpu'"),
        ("train_dit", {}, "fp16", "use configs/accelerate/multi_gpu.yaml (DDP) for fp16"),
    ],
)
def test_what_cannot_be_is_told_at_the_start(stage: str, plugin: dict[str, Any], precision: str, sentence: str) -> None:
    given = SimpleNamespace(**{"zero_stage": 2, "offload_optimizer_device": "none", **plugin})
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=given), mixed_precision=precision)
    with pytest.raises(CardioDiTError, match=re.escape(sentence)):
        deepspeed.check(accelerator, stage)


def test_without_deepspeed_nothing_is_checked() -> None:
    deepspeed.check(Accelerator(cpu=True), "train_vqgan")
    assert not deepspeed.is_requested()


@pytest.mark.skipif(IS_THERE, reason="deepspeed is installed")
def test_the_command_that_installs_it_is_told(cohorts: Cohorts, tmp_path: Path) -> None:
    """By us, and by accelerate's launcher, which does not come as far as to start us."""
    process = start_zero([*TRAIN_DIT, *Runs(tmp_path, cohorts).dit("run")])
    launch = [python(), "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", "2"]
    told = subprocess.run([*launch, *TRAIN_DIT], capture_output=True, text=True)
    said = said_by(process)
    assert process.returncode != 0 and said.count("error: ") == 1, said
    assert "pip install 'cardiodit[deepspeed]'" in said and "fsdp2.yaml" in said
    assert not (tmp_path / "run").exists()
    assert told.returncode != 0 and "pip3 install deepspeed" in told.stderr.splitlines()[-1]
