"""Metrics of a run: `metrics.jsonl`, trackers and a progress bar."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from cardiodit._util.atomic_io import append_line, atomic_file
from cardiodit._util.terminal import progress, say, shows_bars
from cardiodit.energy.electricity import format_duration
from cardiodit.training.harness.schedule import Schedule

FILE = "metrics.jsonl"
NEWEST_WEIGHT = 0.05  # of the last step in the displayed speed
SECONDS_BETWEEN_LINES = 60.0  # of progress in a log, where no bar is shown


class Metrics:
    """Metrics of one run; only the main process writes."""

    def __init__(self, folder: Path, schedule: Schedule, samples_a_step: int, accelerator: Accelerator) -> None:
        self.folder = folder
        self.schedule = schedule
        self.samples = samples_a_step
        self.accelerator = accelerator
        self.seconds: float | None = None  # per step, averaged over the last steps
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def start(self, step: int) -> None:
        """Start after `step` steps; remove what a killed process reported beyond them, since it will be repeated."""
        self._start_trackers(step)
        if not self.accelerator.is_main_process:
            return
        path = self.folder / FILE
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            with atomic_file(path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines))
        self.bar = progress(description="Training", unit="step", total=self.schedule.steps, initial=step)

    def _start_trackers(self, step: int) -> None:
        settings: dict[str, Any] = {"wandb": {"dir": str(self.folder), "name": self.folder.name}}
        if step:  # hides what a killed process reported beyond its last checkpoint
            settings["tensorboard"] = {"purge_step": step + 1}
        self.accelerator.init_trackers(self.folder.name, init_kwargs=settings)

    def write(self, step: int, values: Mapping[str, Any], seconds: float, waited: float) -> None:
        """Record a completed step."""
        if not self.accelerator.is_main_process:
            return
        self.seconds = seconds if self.seconds is None else self.seconds + NEWEST_WEIGHT * (seconds - self.seconds)
        rate = self.samples / self.seconds
        line = {
            "step": step,
            "epoch": round(step / self.schedule.epoch, 4),
            **values,
            "learning_rate": self.schedule.settings.learning_rate * self.schedule.rate(step - 1),
            "seconds": round(seconds, 4),
            "waited": round(waited, 4),
        }
        self._write(line)
        loss = f"{values.get('loss', float('nan')):.4g}"
        self.bar.set_postfix(loss=loss, samples=f"{rate:.3g}/s", refresh=False)
        self.bar.update()
        if not shows_bars() and time.monotonic() >= self._next_line:
            left = format_duration((self.schedule.steps - step) * self.seconds)
            say(f"step {step} of {self.schedule.steps}: loss {loss}, {rate:.3g} samples/s, about {left} left")
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def write_validation(self, step: int, values: Mapping[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        self._write({"step": step, **values})
        say(f"step {step}: " + ", ".join(f"{name} {value:.5g}" for name, value in values.items()))

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self.folder / FILE, json.dumps(line))
        numbers = {name: value for name, value in line.items() if name != "step"}
        self.accelerator.log(numbers, step=line["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG or GIF to every tracker."""
        for tracker in self.accelerator.trackers if self.accelerator.is_main_process else []:
            if tracker.name == "tensorboard":
                _show_in_tensorboard(tracker.writer, name, path, step)
            elif tracker.name == "wandb":
                import wandb

                shown = wandb.Video(str(path)) if path.suffix == ".gif" else wandb.Image(str(path))
                tracker.log({name: shown}, step=step)
            else:
                import trackio

                shown = trackio.Video(str(path)) if path.suffix == ".gif" else trackio.Image(str(path))
                tracker.log({name: shown}, step=step)

    def finish(self) -> None:
        if self.accelerator.is_main_process:
            self.bar.close()


def _show_in_tensorboard(writer: Any, name: str, path: Path, step: int) -> None:
    """Send the file unchanged: TensorBoard plays a GIF that is logged as an image."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)


def _step_of(line: str) -> float:
    """Return the step of a line; infinity if it was cut off when its process was killed."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return np.inf
