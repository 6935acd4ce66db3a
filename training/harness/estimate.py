"""`--estimate`: take a few steps, forecast time and energy of the whole run, and leave nothing behind."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cardiodit.energy import EnergyMeter, sum_energies
from cardiodit.energy.electricity import footprint_of, format_duration, format_number
from cardiodit.energy.forecast import OperationCounter, find_device, forecast_work
from cardiodit.training.harness.processes import gather_objects

TIMED_STEPS = 3


class Estimated(Exception):  # noqa: N818  it ends a run, and is no error
    """Ends a run that was only estimated."""


def estimated_steps(run: Any, fetch: Callable[[], list[Any]]) -> Iterator[tuple[int, list[Any]]]:
    """Yield a step whose operations are counted, then a few whose time and energy are measured; print the forecast.

    Args:
        run: the run, which has not taken a step.
        fetch: returns the batches of the next step.
    """
    name, total = run.request.options.estimate_device, run.schedule.steps - run.step
    device = find_device(name) if name else None
    with OperationCounter() as counter, torch.compiler.set_stance("force_eager"):
        yield from _one_step(run, fetch)
    timed = min(TIMED_STEPS, total - 1)
    meter, started = EnergyMeter(run.accelerator.device), time.perf_counter()
    for _ in range(timed):
        yield from _one_step(run, fetch)
    seconds, energies = time.perf_counter() - started, gather_objects([meter.read()], run.accelerator)
    processes, used = run.accelerator.num_processes, run.record.electricity
    work = counter.work * (total * processes)
    run.say(f"{total} steps, {format_number(work.tflop)} TFLOP. Nothing was saved.")
    if timed:
        energy = sum_energies(energies) * (total / timed)
        here = f"{processes} × {run.accelerator.device.type}"
        run.say(f"Here ({here}): about {format_duration(seconds * total / timed)}, {footprint_of(energy, used)}.")
    if device is not None:
        forecast = forecast_work(work, device, processes)
        footprint = footprint_of(forecast.energy, used)
        run.say(
            f"On {processes} × {device.title}: about {format_duration(forecast.seconds)}, {footprint} "
            f"({forecast.energy.method})."
        )
    raise Estimated


def _one_step(run: Any, fetch: Callable[[], list[Any]]) -> Iterator[tuple[int, list[Any]]]:
    run.prepare_step()
    yield run.step, fetch()
    run.step += 1
    run.settle()
