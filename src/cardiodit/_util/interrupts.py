"""Ctrl-C: which processes ignore it, and the command that continues what it stopped."""

import shlex
import signal
import sys
from pathlib import Path

from cardiodit._util.terminal import own_warnings_in_worker

EXIT_CODE = 130  # of a program that Ctrl-C ended: 128 and the number of the signal


def ignore_interrupts(_: int = 0) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that started this worker; warn as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    own_warnings_in_worker()


def typed_command() -> str:
    """Return the command of this process, or of the launcher that started it, as it was typed."""
    own = list(sys.orig_argv)
    try:
        import psutil

        lines = [own, *(process.cmdline() for process in psutil.Process().parents()[:3])]
    except (ImportError, OSError, RuntimeError):  # psutil's errors are RuntimeErrors or OSErrors by version
        lines = [own]
    arguments = sys.argv[1:]
    same = [line for line in lines[1:] if arguments and line[-len(arguments) :] == arguments]
    line = next((line for line in reversed(same) if _is_script(line) or "-m" in line[:3]), own)
    return shlex.join([Path(line[1]).name, *line[2:]] if _is_script(line) else ["python", *line[1:]])


def _is_script(line: list[str]) -> bool:
    """Return whether a command is one of the environment, such as `/venv/bin/python /venv/bin/accelerate launch`."""
    return len(line) > 1 and line[1].startswith("/") and Path(line[1]).parent == Path(line[0]).parent
