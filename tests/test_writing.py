import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cardiodit import writing
from cardiodit.writing import append_line, atomic_file


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "volume.nii.gz"
    with atomic_file(target) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    code = (
        "import importlib.util, sys, time, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('writing', {writing.__file__!r})\n"
        "writing = importlib.util.module_from_spec(spec); spec.loader.exec_module(writing)\n"
        f"with writing.atomic_file(pathlib.Path({str(target)!r})) as temporary:\n"
        "    temporary.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert target.read_text() == "old"


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "samples.jsonl"
    pids = []
    for worker in range(4):
        pid = os.fork()
        if pid == 0:
            for _ in range(50):
                append_line(target, str(worker) * 500)
                time.sleep(0)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    lines = target.read_text().splitlines()
    assert len(lines) == 200 and {len(set(line)) for line in lines} == {1} and {len(line) for line in lines} == {500}
