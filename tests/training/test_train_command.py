"""`cardiodit train`: the processes that it starts, and how little it says when they end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..prepared_python import python
from .conftest import lines_of, said_by, wait_for_step

ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, "use_cpu": True}


def start(*arguments: str, folder: Path, interpreter: str = sys.executable) -> subprocess.Popen:
    command = [interpreter, str(Path(sys.executable).with_name("cardiodit")), "train", *arguments]
    caught: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, **caught)


def test_two_processes_stop_at_ctrl_c_with_a_checkpoint(dit_arguments: Callable, tmp_path: Path) -> None:
    changes = {"training": {"max_train_steps": 5000, "checkpointing_steps": 5000, "validation_steps": 5000}}
    process = start("--num_processes", "2", "dit", *dit_arguments("run", "--cpu", **changes), folder=tmp_path)
    wait_for_step(tmp_path / "run", 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed = said_by(process)
    assert process.returncode == 130 and "Traceback" not in printed, printed
    last = max(lines_of(tmp_path / "run"))
    told = f"Stopped by Ctrl-C after step {last}; the same command resumes from there.\n  cardiodit train --num_pro"
    assert printed.count(told) == 1 and (tmp_path / "run" / f"checkpoint-{last}").is_dir()


def test_an_error_is_its_sentence_alone(dit_arguments: Callable, tmp_path: Path) -> None:
    """Also where accelerate would print a traceback, and where a folder has the package's name."""
    (tmp_path / "cardiodit").mkdir()
    (tmp_path / "cardiodit" / "__init__.py").write_text("raise SystemExit('another package')")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(ACCELERATE))
    arguments = dit_arguments("run", "--depth", "x")
    here, launched = (
        start(*options, "dit", *arguments, folder=tmp_path, interpreter=interpreter)
        for interpreter, options in ((python(), []), (sys.executable, ["--config_file", "one.yaml"]))
    )
    for process in (here, launched):
        printed = said_by(process)
        assert process.returncode == 2 and printed.count("error: ") == 1, printed
        assert printed.strip().splitlines()[-1].endswith("argument --depth: invalid int value: 'x'")
