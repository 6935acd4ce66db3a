"""The launch variables of other processes are checked before anything waits for them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cardiodit._util.launch import check_launch, leave_group, process_rank
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError

from ..conftest import begin_two

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", *MEETING):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "first"}, "RANK='first' in the environment is not a number"),
        ({"MASTER_PORT": "tcp://1.2.3.4:80"}, "MASTER_PORT='tcp://1.2.3.4:80' in the environment is not a number"),
        ({"WORLD_SIZE": "2"}, "announces 2 processes, but RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "but MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2", **MEETING}, "RANK=2 in the environment must be from 0 to 1"),
    ],
)
def test_processes_that_cannot_meet_are_an_error_at_once(
    environment: pytest.MonkeyPatch, variables: dict[str, str], message: str, capsys: pytest.CaptureFixture
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(CardioDiTError, match=message):
        check_launch()
    assert main(["sample", "cardiodit-phantom", "--output_dir", "none"]) == 1
    assert message in capsys.readouterr().err


def test_a_single_process_and_a_complete_launch_pass(environment: pytest.MonkeyPatch) -> None:
    check_launch()
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **MEETING}.items():
        environment.setenv(name, value)
    check_launch()
    assert process_rank() == 1
    environment.setenv("RANK", "first")
    assert process_rank() == 0


def exchange_and_end() -> None:
    """Work of one of two processes: many tensors whose last holders are gloo's threads, then the end."""
    dist.init_process_group("gloo")
    for _ in range(200):
        dist.broadcast(torch.zeros(64), 0, async_op=True)
    dist.barrier()
    leave_group()
    assert not dist.is_initialized()
    leave_group()  # of no group


def test_processes_end_after_their_last_exchange(tmp_path: Path) -> None:
    processes = begin_two(exchange_and_end, said=tmp_path / "said")
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "said").read_text()
