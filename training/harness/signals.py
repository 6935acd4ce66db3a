"""A polite end: schedulers such as Slurm send a signal before they kill."""

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class SignalHandler:
    """Remembers that an end was asked for; the run saves at the end of its step and leaves."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalHandler":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
