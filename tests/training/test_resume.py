"""Resuming a run that was killed, was asked to stop, or finds its checkpoint damaged."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit._util.gpu import channels_last
from cardiodit.errors import CardioDiTError
from cardiodit.training import train_dit
from cardiodit.training.harness import processes
from cardiodit.training.harness import run as run_module
from cardiodit.training.harness.processes import SignalHandler
from cardiodit.training.harness.state import Optimizer

from ..conftest import begin
from ..prepared_python import python
from .conftest import Cohorts, lines_of, wait_for_step


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python(), "-m", "cardiodit.training.train_dit", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_a_killed_run_goes_on_to_the_bit(dit_arguments: Callable, train_a_dit: Callable, tmp_path: Path) -> None:
    """Killed twice, at a step that no checkpoint was written after; dropout and label dropout draw at every step."""
    changes = {"model": {"dropout": 0.1}, "training": {"max_train_steps": 60, "checkpointing_steps": 7}}
    whole = train_a_dit("whole", **changes)
    for step in (10, 33):
        process = begin(train_dit.main, dit_arguments("killed", **changes))
        wait_for_step(tmp_path / "killed", step, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    killed = train_a_dit("killed", **changes)
    assert lines_of(killed) == lines_of(whole)  # every loss of every step, once
    assert len(lines_of(whole)) == 60
    assert lines_of(killed, "validation_loss") == lines_of(whole, "validation_loss")
    for part in ("transformer", "transformer_ema"):
        weights = f"checkpoint-60/{part}/diffusion_pytorch_model.safetensors"
        assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    record = json.loads((killed / "run.json").read_text())
    assert record["status"] == "finished" and len(record["sessions"]) == 3
    killed_once, killed_twice, last = record["sessions"]
    for session in (killed_once, killed_twice):  # what they used up to their last checkpoint is kept
        assert "seconds" not in session and session["energy"]["kwh"] > 0 and session["last_step"] % 7 == 0
    assert last["seconds"] > 0 and last["forecast"]["ratio"] > 0


def test_the_autoencoder_goes_on_to_the_bit_too(train_a_vqgan: Callable) -> None:
    """Across the beginning of the adversarial loss (step 4), with codebook, critic and both optimizers."""
    whole = train_a_vqgan("whole")
    train_a_vqgan("parts", training={"max_train_steps": 8, "checkpointing_steps": 3})
    parts = train_a_vqgan("parts")
    for key in ("loss", "discriminator", "perplexity"):
        assert lines_of(parts, key) == lines_of(whole, key)
    assert set(lines_of(whole, "discriminator")) == set(range(6, 13))
    for part in ("vae", "discriminator"):
        weights = f"checkpoint-12/{part}/diffusion_pytorch_model.safetensors"
        assert (parts / weights).read_bytes() == (whole / weights).read_bytes()


def test_a_signal_saves_a_checkpoint_and_the_run_resumes(
    dit_arguments: Callable, train_a_dit: Callable, tmp_path: Path
) -> None:
    changes = {"training": {"max_train_steps": 150, "checkpointing_steps": 1000, "validation_steps": 1000}}
    process = start(dit_arguments("stopped", **changes))
    wait_for_step(tmp_path / "stopped", 5, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    last = max(lines_of(tmp_path / "stopped"))
    assert f"Stopped by SIGTERM after step {last}; the same command resumes from there." in printed
    assert (tmp_path / "stopped" / f"checkpoint-{last}").is_dir()
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "stopped" / "pipeline").exists()
    finished = train_a_dit("stopped", **changes)
    assert sorted(lines_of(finished)) == list(range(1, 151))


def test_ctrl_c_saves_a_checkpoint_and_tells_the_command(dit_arguments: Callable, tmp_path: Path) -> None:
    """As a script sees it: an exit code that stops it. Earlier, while data is read, there is nothing to save."""
    changes = {"training": {"max_train_steps": 1500, "checkpointing_steps": 5000, "validation_steps": 5000}}
    arguments = dit_arguments("stopped", **changes)
    process = start(arguments)
    wait_for_step(tmp_path / "stopped", 5, process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed
    assert "Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once." in printed
    last = max(lines_of(tmp_path / "stopped"))
    command = f"python -m cardiodit.training.train_dit {' '.join(arguments)}"
    assert f"Stopped by Ctrl-C after step {last}; the same command resumes from there.\n  {command}" in printed
    assert (tmp_path / "stopped" / f"checkpoint-{last}").is_dir()
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"


def test_a_second_ctrl_c_or_one_before_the_first_step_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with SignalHandler() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.in_step = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # passed on by a launcher at once
        assert signals.received == "Ctrl-C"
        monkeypatch.setattr(processes, "AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_damaged_checkpoint_is_found_and_an_older_one_taken(
    train_a_dit: Callable, capsys: pytest.CaptureFixture
) -> None:
    whole = train_a_dit("run")
    losses = lines_of(whole)
    weights = whole / "checkpoint-12" / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # one bit
    weights.write_bytes(content)
    again = train_a_dit("run")
    printed = capsys.readouterr().out
    assert "checkpoint-12 is damaged (transformer/diffusion_pytorch_model.safetensors has changed since" in printed
    assert "Resuming run after step 8." in printed
    assert (again / "damaged-checkpoint-12").is_dir() and (again / "checkpoint-12").is_dir()
    assert lines_of(again) == losses


@pytest.mark.parametrize("left", ["", "state.json", "optimizer.safetensors"])
def test_half_a_checkpoint_is_none(train_a_dit: Callable, left: str) -> None:
    run = train_a_dit("run")
    shutil.rmtree(run / "pipeline")
    newest = run / "checkpoint-12"
    for path in list(newest.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    losses = lines_of(run)
    assert lines_of(train_a_dit("run")) == losses
    assert (run / "pipeline").is_dir()


def test_only_so_many_checkpoints_are_kept(train_a_dit: Callable) -> None:
    run = train_a_dit("run", training={"checkpoints_total_limit": 2, "checkpointing_steps": 2})
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_the_best_never_gets_worse(train_a_dit: Callable) -> None:
    """A second session whose validations are worse leaves `best` as it was."""
    changes = {"training": {"max_train_steps": 6, "lr_scheduler": "constant"}}
    run = train_a_dit("run", **changes)
    best = json.loads((run / "best" / "state.json").read_text())
    # As if the first session had been luckier than anything to come.
    record = run / "best" / "state.json"
    record.write_text(json.dumps({**best, "value": 1e-6}))
    train_a_dit("run", training={"lr_scheduler": "constant"})
    after = json.loads(record.read_text())
    assert (after["step"], after["value"]) == (6, 1e-6)


def test_a_kill_while_best_is_replaced_leaves_the_old_one(train_a_dit: Callable) -> None:
    run = train_a_dit("run", training={"max_train_steps": 6})
    value = json.loads((run / "best" / "state.json").read_text())["value"]
    (run / "best").rename(run / ".old-best")  # what is there between the two renames
    (run / ".tmp-12ab-best").mkdir()
    train_a_dit("run")
    assert json.loads((run / "best" / "state.json").read_text())["value"] <= value
    assert not list(run.glob(".old-*")) and not list(run.glob(".tmp-*"))


def test_what_a_killed_process_half_wrote_is_no_line(train_a_dit: Callable) -> None:
    run = train_a_dit("run")
    losses = lines_of(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    train_a_dit("run")
    assert lines_of(run) == losses


def test_another_config_or_other_data_is_not_the_same_run(train_a_dit: Callable, cohorts: Cohorts) -> None:
    train_a_dit("run")
    with pytest.raises(CardioDiTError, match=r"training.learning_rate was 0.001, now 0.5\n.*--init_from .*best"):
        train_a_dit("run", training={"learning_rate": 0.5})
    with pytest.raises(CardioDiTError, match="validation_data has changed"):
        manifest = cohorts.latents[1]
        fewer = manifest.with_name("fewer.csv")
        fewer.write_text("\n".join(manifest.read_text().splitlines()[:-1]))
        train_a_dit("run", "--validation_ids", str(fewer))
    with pytest.raises(CardioDiTError, match=r"written with 2 samples per step, now there are 4"):
        train_a_dit("run", training={"gradient_accumulation_steps": 2})
    with pytest.raises(CardioDiTError, match="already exists"):
        train_a_dit("run", "--resume_from_checkpoint", "never")
    with pytest.raises(CardioDiTError, match="is not a checkpoint"):
        train_a_dit("run", "--resume_from_checkpoint", "somewhere")


def test_a_longer_run_may_go_on(train_a_dit: Callable) -> None:
    run = train_a_dit("run", training={"lr_scheduler": "constant"})
    train_a_dit("run", training={"lr_scheduler": "constant", "max_train_steps": 14})
    assert sorted(lines_of(run)) == list(range(1, 15))


def test_accumulated_batches_are_the_same_step(train_a_dit: Callable) -> None:
    """The same samples a step, in one batch or in two: the same run, which may even change in the middle."""
    one = train_a_dit("one")
    two = train_a_dit("two", training={"train_batch_size": 1, "gradient_accumulation_steps": 2})
    assert list(lines_of(two).values()) == pytest.approx(list(lines_of(one).values()), rel=1e-5)


def test_a_named_checkpoint_is_taken(train_a_dit: Callable, capsys: pytest.CaptureFixture) -> None:
    run = train_a_dit("run")
    shutil.rmtree(run / "checkpoint-12")
    train_a_dit("run", "--resume_from_checkpoint", str(run / "checkpoint-8"))
    assert "after step 8" in capsys.readouterr().out


# --- Checkpoints are written while training goes on ---


def test_training_goes_on_while_a_checkpoint_is_written(train_a_dit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 4 waits until step 6 was trained, and holds the weights and the average of step 4."""
    changes = {"validation_steps": 12, "checkpoints_total_limit": 3}
    expected = train_a_dit("expected", training=changes) / "checkpoint-4"
    six, write = threading.Event(), run_module.write_checkpoint

    def wait_and_write(folder: Path, step: int, *rest: Any) -> None:
        assert step != 4 or six.wait(60)
        write(folder, step, *rest)

    def log(self: run_module.Run, *arguments: Any) -> dict[str, float]:
        if self.step == 6:
            six.set()
        return logged(self, *arguments)

    logged = run_module.Run.log
    monkeypatch.setattr(run_module, "write_checkpoint", wait_and_write)
    monkeypatch.setattr(run_module.Run, "log", log)
    delayed = train_a_dit("delayed", training=changes) / "checkpoint-4"
    for file in ("transformer/diffusion_pytorch_model.safetensors", "transformer_ema/updates.txt"):
        assert (delayed / file).read_bytes() == (expected / file).read_bytes()
    assert (delayed / "transformer_ema/updates.txt").read_text() == "4"


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    train_a_dit: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "write_checkpoint", fail)
    with pytest.raises(OSError, match="No space left"):
        train_a_dit("run", training={"validation_steps": 12})


def test_checkpoints_by_the_clock(train_a_dit: Callable) -> None:
    run = train_a_dit("run", training={"checkpointing_minutes": 0, "checkpointing_steps": 100, "max_train_steps": 3})
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_moments_have_the_layout_and_the_counter_that_fused_kernels_need(tmp_path: Path) -> None:
    """Otherwise a run on a GPU, whose convolutions keep channels last, could not resume."""
    model = torch.nn.Conv3d(4, 4, 3)
    channels_last(model, device=torch.device("cuda"))

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    first, again = Optimizer("optimizer", model, optimizer()), Optimizer("optimizer", model, optimizer())
    model(torch.rand(1, 4, 8, 8, 8)).sum().backward()
    first.optimizer.step()
    first.write(first.gather(), tmp_path)
    again.load(tmp_path)
    for weight in model.parameters():
        state, expected = again.optimizer.state[weight], first.optimizer.state[weight]
        assert state["exp_avg"].stride() == weight.stride() and state["step"].device == weight.device
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    again.optimizer.step()
