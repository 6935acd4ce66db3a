"""Find where code would wait for a GPU, by running it on tensors without values (device "meta").

A GPU computes behind the program that feeds it. Reading a value back, or copying without `non_blocking`, makes the
program wait until the GPU has caught up, and the GPU then waits for the program.
"""

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.training.harness.run import Run

META = torch.device("meta")
# What reads a value, or has a result whose size depends on values.
READING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
)
COPYING = ("_to_copy", "copy_")
STEPS = 3
KEPT = "kept_positions"  # makes what it returns once for each grid, but not for tensors without values


class Waits(TorchDispatchMode):
    """Collects what would wait in `found`, if `is_strict`; otherwise it lets it pass with a made-up value."""

    def __init__(self, is_strict: bool = True) -> None:
        super().__init__()
        self.is_strict = is_strict
        self.found: list[str] = []

    def __enter__(self) -> "Waits":
        self._made = _Made(self.note)
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype == torch.bool and index.ndim > 0 for index in args[1]
        )
        on_device = any(tensor.is_meta for tensor in args if isinstance(tensor, torch.Tensor))
        if on_device and (masks or name in READING):
            self.note(name)
            if name == "_local_scalar_dense":
                return 1
        if name in COPYING:
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
            is_queued = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if target is not None and source.device != target and META in (source.device, torch.device(target)):
                if not is_queued:
                    self.note(f"{name} from {source.device} to {target}")
                if source.is_meta:
                    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)

    def note(self, what: str) -> None:
        if self.is_strict:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            if any(frame.name == KEPT for frame in frames):
                return
            places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:-2]]
            self.found.append(f"{what} at {' > '.join(places)}")


class _Made(TorchFunctionMode):
    """Notes tensors made of Python's numbers on the device: they are made on the CPU and copied."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if is_made and kwargs.get("device") is not None and torch.device(kwargs["device"]) == META:
            self.note(f"{func.__name__} of numbers on the device")
        return func(*args, **kwargs)


class _EnoughError(Exception):
    """Ends a training after a few steps, whose results mean nothing."""


def waits_in_training(train: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what would wait in the second and third step of a training; the first may prepare things once."""
    waits = Waits()
    steps, log = Run.steps, Run.log

    def watched_steps(self: Run, loader: Any) -> Iterator[Any]:
        for step, batches in steps(self, loader):
            waits.is_strict = step > 0
            with waits:
                yield step, batches

    def watched_log(self: Run, *arguments: Any) -> None:
        log(self, *arguments)
        if self.step + 1 == STEPS:
            raise _EnoughError

    monkeypatch.setattr(Accelerator, "device", property(lambda self: META))
    monkeypatch.setattr(Run, "steps", watched_steps)
    monkeypatch.setattr(Run, "log", watched_log)
    with pytest.raises(_EnoughError):
        train()
    return waits.found


def waits_in_sampling(sample: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what would wait in the sampling loop, from the first step to the last."""
    waits, denoise = Waits(), VolumePipeline._denoise

    def watched(*arguments: Any) -> torch.Tensor:
        with waits:
            denoise(*arguments)
        raise _EnoughError

    monkeypatch.setattr(VolumePipeline, "_denoise", watched)
    with pytest.raises(_EnoughError):
        sample()
    return waits.found
