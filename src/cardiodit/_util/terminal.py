"""Output of commands: one progress bar per stage, their own notes and warnings, and no other package's warnings.

Progress bars appear on a terminal only, so that logs stay plain; nothing is coloured. `--quiet` leaves answers,
warnings and errors. Started processes learn of it through the environment.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")

QUIET = "CARDIODIT_QUIET"
OWN_WARNINGS = "CARDIODIT_OWN_WARNINGS"
PACKAGE = str(Path(__file__).parents[1]) + os.sep
# What other packages log is for their own users; `--debug` shows it, and their warnings.
ENVIRONMENT = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", OWN_WARNINGS: "1"}


def is_quiet() -> bool:
    """Return whether `--quiet` was given."""
    return os.environ.get(QUIET, "") not in ("", "0")


def quiet_variables(quiet: bool) -> dict[str, str]:
    """Return the environment variables of a command that was given `--quiet`."""
    return {QUIET: "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {}


def shows_bars() -> bool:
    """Return whether progress bars are shown: on a terminal, and without `--quiet`."""
    return sys.stderr.isatty() and not is_quiet()


def say(sentence: object = "", aside: bool = False) -> None:
    """Print a note, above a progress bar if there is one; `--quiet` leaves it out.

    Args:
        sentence: what is printed.
        aside: print it on standard error, where it does not mix with a command's answer.
    """
    if is_quiet():
        return
    stream = sys.stderr if aside else sys.stdout
    if "tqdm" not in sys.modules:
        print(sentence, file=stream, flush=True)
        return
    from tqdm import tqdm

    tqdm.write(str(sentence), file=stream)
    stream.flush()


def progress(
    items: Iterable[Item] | None = None,
    description: str = "",
    unit: str = "volume",
    total: int | None = None,
    is_shown: bool = True,
    **more: Any,
) -> "tqdm[Item]":
    """Return a progress bar with the time that is left, around items or to be updated."""
    from tqdm import tqdm

    look: dict[str, Any] = {"dynamic_ncols": True, "mininterval": 0.2, "disable": not (is_shown and shows_bars())}
    return tqdm(items, description, total, unit=unit, **look, **more)


class SharedBar:
    """One progress bar over several calls of a pipeline, each of which would show its own.

    Args:
        pipe: the pipeline.
        calls: number of calls.
        description: what they do.
        is_shown: whether this process shows it.
    """

    def __init__(self, pipe: Any, calls: int, description: str = "Sampling", is_shown: bool = True) -> None:
        self.pipe, self.calls, self.description, self.is_shown = pipe, calls, description, is_shown
        self.bar: Any = None

    def __enter__(self) -> Self:
        self.pipe.progress_bar = self._part
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        vars(self.pipe).pop("progress_bar", None)  # already gone if a second job with this pipeline has ended
        if self.bar is not None:
            self.bar.close()

    @contextmanager
    def _part(self, iterable: Any = None, total: int = 0) -> Iterator[Any]:
        """Stand in for diffusers' `progress_bar` during one call of `total` steps."""
        if self.bar is None:
            steps = self.calls * total
            self.bar = progress(description=self.description, unit="step", total=steps, is_shown=self.is_shown)
        yield self.bar


@contextmanager
def own_warnings(everything: bool = False) -> Iterator[None]:
    """Show warnings of this package as sentences, and those of other packages not at all.

    Args:
        everything: leave all warnings as they are, to look for an error.
    """
    if everything:
        yield
        return
    with environment({**ENVIRONMENT, **os.environ}), warnings.catch_warnings():
        warnings.showwarning = _show_own
        yield


def own_warnings_in_worker() -> None:
    """Show warnings in a worker process as the command that started it does."""
    if os.environ.get(OWN_WARNINGS):
        warnings.showwarning = _show_own


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while; started processes inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _show_own(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if filename.startswith(PACKAGE) and not issubclass(category, DeprecationWarning | FutureWarning):
        print(f"warning: {message}", file=sys.stderr, flush=True)
