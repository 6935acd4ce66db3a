"""How processes of one launch find each other: the variables that `accelerate launch` and torchrun set."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cardiodit.errors import CardioDiTError, reason_of

COUNTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")
UNSET = "`accelerate launch` and torchrun set it; to run a single process, unset it."
FIRST_WORD, NEXT_WORD, PATIENCE = 15, 60, 900  # seconds
LAST_WORK = 0.2  # seconds in which threads of the process group drop what the last exchange held


def check_launch() -> None:
    """Raise an error if the environment describes processes that cannot meet."""
    numbers = {name: _number(name) for name in COUNTS}
    processes, rank = numbers["WORLD_SIZE"], numbers["RANK"]
    if processes is None or processes < 2:
        return
    if missing := [name for name in MEETING if not os.environ.get(name)]:
        raise CardioDiTError(
            f"WORLD_SIZE={processes} in the environment announces {processes} processes, but {', '.join(missing)} is "
            f"not set, so they cannot find each other. {UNSET}"
        )
    if rank is None or not 0 <= rank < processes:
        raise CardioDiTError(f"RANK={rank} in the environment must be from 0 to {processes - 1}. {UNSET}")


def process_rank() -> int:
    """Return this process's number in its launch; 0 if it is alone or if the environment is wrong."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise CardioDiTError(f"{name}={text[:40]!r} in the environment is not a number. {UNSET}") from error


@contextmanager
def meeting() -> Iterator[None]:
    """Say whom a process waits for while it joins the others, and end it if they do not come."""
    met = threading.Event()
    processes, place = os.environ.get("WORLD_SIZE", "1"), os.environ.get("MASTER_ADDR")

    def watch() -> None:
        waited, seconds = 0, FIRST_WORD
        while not met.wait(seconds):
            waited += seconds
            seconds = NEXT_WORD
            sentence = f"Waiting for the other processes of {processes} at {place} (WORLD_SIZE, MASTER_ADDR)."
            if waited < PATIENCE:
                print(f"{sentence} Start all with `accelerate launch`.", file=sys.stderr, flush=True)
                continue
            print(f"error: {sentence} They did not come in {waited} s. {UNSET}", file=sys.stderr, flush=True)
            os._exit(1)

    if processes != "1" and place:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if processes == "1":
            raise
        raise CardioDiTError(f"The {processes} processes did not meet at {place}: {reason_of(error)}.") from error
    finally:
        met.set()


def leave_group() -> None:
    """Leave the process group, if there is one, in order.

    Its destructor holds Python's lock and joins gloo's threads. One that still has to drop a tensor of the last
    exchange needs that lock, and the process would hang at its end; so they are given time to do so first.
    """
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        time.sleep(LAST_WORK)
        dist.destroy_process_group()
