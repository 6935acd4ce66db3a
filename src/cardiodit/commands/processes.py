"""The processes that accelerate or torchrun started for a command."""

from typing import Any


def join_processes(device: str | None, **more: Any) -> Any:
    """accelerate's `PartialState`: which process this is, of how many, on which device.

    Unless it is told so, it does not join processes on machines without a GPU: each would do everything.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    return PartialState(cpu=on_cpu or not torch.accelerator.is_available(), **more)
