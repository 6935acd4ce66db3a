"""The files in `configs/accelerate` and `configs/slurm`: what a launcher makes of them."""

import argparse
import json
import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from ..prepared_python import python
from .conftest import DIT, Cohorts, arguments_of, lines_of, merged, said_by, wait_for_step

CONFIGS = Path(__file__).parents[2] / "configs"
SBATCH = CONFIGS / "slurm" / "train.sbatch"
KINDS = {
    "one_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def launched(name: str, *options: str) -> argparse.Namespace:
    """What `accelerate launch` understands."""
    file = str(CONFIGS / "accelerate" / f"{name}.yaml")
    args = launch_command_parser().parse_args(["--config_file", file, *options, "training/train_dit.py"])
    return _validate_launch_command(args)[0]


def environment_of(args: argparse.Namespace) -> dict[str, str]:
    """What its processes find; without a port, which must be free."""
    args.main_process_port = args.main_process_port or 0
    return prepare_multi_gpu_env(args)


@pytest.mark.parametrize("name", KINDS)
def test_every_file_says_when_to_use_it_and_how(name: str) -> None:
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[name] and config.mixed_precision == "bf16"
    assert path.read_text().startswith("# ") and f"--config_file configs/accelerate/{path.name}" in path.read_text()


def test_no_file_is_left_out() -> None:
    assert {path.stem for path in (CONFIGS / "accelerate").iterdir()} == set(KINDS)


def test_one_gpu_is_one_process() -> None:
    args = launched("one_gpu")
    assert (args.num_processes, args.multi_gpu, args.use_fsdp, args.mixed_precision) == (1, False, False, "bf16")


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2"])
def test_the_number_of_gpus_is_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="--num_processes"):
        launched(name)


def test_several_gpus_have_copies() -> None:
    args = launched("multi_gpu", "--num_processes", "4")
    environment = environment_of(args)
    assert (args.multi_gpu, args.use_fsdp, args.nproc_per_node) == (True, False, "4")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16" and "ACCELERATE_USE_FSDP" not in environment


def test_several_machines_meet_at_the_first() -> None:
    where = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    args = launched("multi_node", "--num_processes", "8", *where, "--main_process_port", "29511")
    environment_of(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:29511")


def check_shards(plugin: FullyShardedDataParallelPlugin, make_dit: Callable) -> None:
    """FSDP2, and the blocks that it names are the transformer's."""
    model = make_dit()
    plugin.set_auto_wrap_policy(model)
    blocks = {type(module) for module in model.transformer_blocks}
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == ["DiTBlock"] == [block.__name__ for block in blocks]
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == blocks
    assert not plugin.cpu_ram_efficient_loading and plugin.reshard_after_forward


def test_fsdp2_spreads_the_blocks(make_dit: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(launched("fsdp2", "--num_processes", "2")).items():
        monkeypatch.setenv(name, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    check_shards(FullyShardedDataParallelPlugin(), make_dit)


# --- Slurm ---


def test_the_sharding_in_the_batch_script_is_that_of_the_file(
    make_dit: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = re.findall(r"((?:^# export .*\n)+)", SBATCH.read_text(), re.MULTILINE)
    for setting in lines.replace("# export", "").split():
        monkeypatch.setenv(*setting.split("="))
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    check_shards(FullyShardedDataParallelPlugin(), make_dit)


FAKES = {
    # As srun: a process for each task, and a signal to each of them.
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        for ((task = 0; task < SLURM_NTASKS; task++)); do
            SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
            tasks+=($!)
        done
        trap 'kill -USR1 "${tasks[@]}"' USR1
        code=0
        for task in "${tasks[@]}"; do
            while kill -0 "$task" 2>/dev/null; do wait "$task"; done
            wait "$task" || code=$?
        done
        exit "$code"
        """,
    "scontrol": """
        if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> "$SCONTROL_CALLS"; fi
        """,
    "python": f"""
        exec {python()} "$@"
        """,
}


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts the batch script as Slurm would, with two tasks."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in FAKES.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(stat.S_IRWXU)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job_with_free_port(),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SCONTROL_CALLS": str(tmp_path / "scontrol-calls"),
    }

    def submit(*arguments: str) -> subprocess.Popen:
        caught: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", str(SBATCH), *arguments], env=environment, **caught)

    return submit


def job_with_free_port() -> str:
    for job in range(os.getpid() % 15000, 15000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 15000 + job)):
                return str(job)
    raise AssertionError("no port is free")


def test_the_batch_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)


def test_a_job_that_meets_its_time_limit_is_queued_again_and_goes_on(
    slurm: Callable, cohorts: Cohorts, tmp_path: Path
) -> None:
    settings = {"max_train_steps": 40, "checkpointing_steps": 1000, "validation_steps": 1000}
    config = merged(DIT, {"training": {**settings, "mixed_precision": "no"}})
    options = arguments_of(tmp_path, "run", config, cohorts.latents, "--vae", str(cohorts.vae), "--cpu")
    options = [text for text in options if text not in ("--output_dir", "--run_name", str(tmp_path), "run")]
    run, calls = tmp_path / "run", tmp_path / "scontrol-calls"

    job = slurm(str(run), "cardiodit.training.train_dit", *options)
    wait_for_step(run, 5, job)
    job.send_signal(signal.SIGUSR1)
    said = said_by(job)
    last = max(lines_of(run))
    assert job.returncode == 0, said
    assert last < 40 and said.count("Stopped by ") == said.count(f" after step {last}; the same command") == 1, said
    assert calls.read_text().split()[0] == "requeue"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "interrupted" and record["sessions"][0]["processes"] == 2

    job = slurm(str(run), "cardiodit.training.train_dit", *options)
    said = said_by(job)
    assert job.returncode == 0 and f"Resuming run after step {last}." in said, said
    assert sorted(lines_of(run)) == list(range(1, 41))
    assert len(calls.read_text().splitlines()) == 1  # it is finished


def test_a_job_that_fails_is_not_queued_again(slurm: Callable, tmp_path: Path) -> None:
    job = slurm(str(tmp_path / "run"), "no_such_stage")
    assert "No module named" in said_by(job) and job.returncode == 1
    assert not (tmp_path / "scontrol-calls").exists()
