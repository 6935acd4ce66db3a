"""What commands show on a terminal, in a log and with --quiet."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from cardiodit._util import terminal
from cardiodit._util.terminal import own_warnings, progress, say
from cardiodit.cli import main
from cardiodit.pipelines.sampling_job import SamplingJob, sample_many

COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Terminal:
    """Both ends of a pseudo-terminal; what is written to `stream` can be read."""

    def __init__(self) -> None:
        self.reader, writer = pty.openpty()
        termios.tcsetwinsize(writer, (24, 100))
        self.stream = os.fdopen(writer, "w")

    def shown(self) -> str:
        self.stream.close()
        text = b""
        try:
            while part := os.read(self.reader, 65536):
                text += part
        except OSError:  # the end of a terminal that nobody writes to
            pass
        os.close(self.reader)
        return text.decode()


@contextmanager
def terminal_as_stderr() -> Iterator[Terminal]:
    """A terminal in place of standard error, during a test's own lines: pytest sets it anew before them."""
    screen, before = Terminal(), sys.stderr
    sys.stderr = screen.stream
    try:
        yield screen
    finally:
        sys.stderr = before


def bars(shown: str) -> set[str]:
    """The titles of all progress bars."""
    return set(re.findall(r"(?:^|[\r\n])([^\r\n|%]+?): +\d+%\|", shown))


def test_a_bar_shows_the_time_that_is_left_without_colours() -> None:
    with terminal_as_stderr() as screen:
        assert list(progress(range(3), "Reading", unit="file")) == [0, 1, 2]
    shown = screen.shown()
    assert bars(shown) == {"Reading"} and "3/3 [00:00<00:00" in shown
    assert not COLOUR.search(shown)


@pytest.mark.parametrize("where", ["a log", "--quiet"])
def test_no_bars_in_a_log_or_with_quiet(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(terminal.QUIET, "1" if where == "--quiet" else "0")
    log = io.StringIO()
    with terminal_as_stderr() as screen, redirect_stderr(log) if where == "a log" else nullcontext():
        assert list(progress(range(3), "Reading")) == [0, 1, 2]
    assert screen.shown() == log.getvalue() == ""


def test_a_note_stands_above_the_bar() -> None:
    with terminal_as_stderr() as screen, redirect_stdout(screen.stream):
        for number in progress(range(2), "Reading"):
            say(f"note {number}")
    lines = re.split(r"[\r\n]+", screen.shown())
    assert {"note 0", "note 1"} <= set(lines)  # alone in their lines


def test_batches_share_one_bar(make_pipe: Callable[..., Any], tmp_path: Path) -> None:
    pipe = make_pipe()
    job = SamplingJob(0, 0, 3, settings={"num_inference_steps": 2, "height": 16, "width": 16, "depth": 2, "frames": 8})
    with terminal_as_stderr() as screen:
        assert len(list(sample_many(pipe, tmp_path / "s", job, batch_size=2))) == 3
    shown = screen.shown()
    assert bars(shown) == {"Sampling"} and "4/4" in shown  # two batches of two steps
    with pipe.progress_bar(total=1) as bar:  # afterwards diffusers' own again
        assert bar.disable


def test_warnings_of_other_packages_are_hidden(capsys: pytest.CaptureFixture) -> None:
    own = terminal.PACKAGE + "imaging/cache.py"
    with own_warnings():
        warnings.warn_explicit("The cached volume is damaged.", UserWarning, own, 1)
        warnings.warn_explicit("a.b is deprecated", FutureWarning, own, 2)
        warnings.warn_explicit("CUDA is not available", UserWarning, "/site-packages/torch/cuda.py", 3)
    assert capsys.readouterr().err == "warning: The cached volume is damaged.\n"
    with own_warnings(everything=True), pytest.warns(UserWarning, match="CUDA"):
        warnings.warn_explicit("CUDA is not available", UserWarning, "/site-packages/torch/cuda.py", 3)


def test_workers_hide_them_too() -> None:
    code = (
        "import warnings; from cardiodit._util.interrupts import ignore_interrupts; ignore_interrupts(); "
        "warnings.warn('a.b is slow')"
    )
    with own_warnings():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert terminal.OWN_WARNINGS not in os.environ


def test_a_command_is_silent_with_quiet_and_says_what_it_wrote_without(tmp_path: Path, capsys: Any) -> None:
    arguments = ["phantom", "--num", "1", "--size", "16", "16", "2", "4", "--output_dir"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Wrote 1 hearts.") and "\r" not in said.out + said.err
    assert main(["--quiet", *arguments, str(tmp_path / "b")]) == main([*arguments, str(tmp_path / "c"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*arguments, str(tmp_path / "a"), "--quiet"]) == 1
    assert "error" in capsys.readouterr().err
    assert not terminal.is_quiet()
