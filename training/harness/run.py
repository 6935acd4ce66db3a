"""A training run: its processes, its folder, its steps, and how it ends and goes on."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from cardiodit._util.atomic_io import restore_folder
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness import deepspeed
from cardiodit.training.harness.checkpoints import (
    Checkpoint,
    given_checkpoint,
    newest_sound,
    remove_leftovers,
    remove_old,
    write_best,
    write_checkpoint,
)
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.metrics import Metrics
from cardiodit.training.harness.processes import gather_objects, share, start_accelerator
from cardiodit.training.harness.run_record import RunRecord
from cardiodit.training.harness.sampler import Share, seed_for
from cardiodit.training.harness.schedule import Schedule
from cardiodit.training.harness.signals import SignalHandler
from cardiodit.training.harness.state import Part
from cardiodit.training.settings import Training

Batch = dict[str, Any]


class Run:
    """One stage's training. `open` claims its folder, `keep` says what checkpoints hold, `steps` is the training loop.

    Args:
        request: what the user asked for.
        stage: name of the script, for the record.
    """

    def __init__(self, request: Request, stage: str) -> None:
        self.settings: Training = request.settings.training
        self.request = request
        self.folder: Path = request.folder
        self.accelerator = start_accelerator(self.settings, request.options.cpu, self.folder)
        deepspeed.check(self.accelerator, stage)
        self.is_main = self.accelerator.is_main_process
        self.record = RunRecord(self.folder, request, stage, self.accelerator)
        self.step = 0  # steps done
        self.was_interrupted = False
        self.best: float | None = None
        self._parts: list[Part] = []
        self._optimizers: list[tuple[Any, float]] = []
        self._line: dict[str, Any] = {}
        self._stop: str | None = None
        self._ending = SignalHandler()
        self._worked = 0.0  # when the last step's weights were ready

    def __enter__(self) -> "Run":
        self._ending.__enter__()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._ending.__exit__()
        if kind is not None and self.is_main:
            self.record.end("failed", self.step)

    # --- Beginning ---

    def open(self, samples: int, data: Mapping[str, Any]) -> None:
        """Claims the run folder for these settings and this data; fixes the calendar.

        Args:
            samples: in the training data.
            data: identities of all data, which must be the same when the run goes on.
        """
        self.calendar = Schedule.of(self.settings, samples, self.accelerator.num_processes)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            restore_folder(self.folder / "best")
        self.main_first(lambda: self.record.claim(samples, data, self.samples_a_step))
        deepspeed.configure(self.accelerator, self.settings)  # the record has read the precision
        self.metrics = Metrics(self.folder, self.calendar, self.samples_a_step, self.accelerator)

    @property
    def samples_a_step(self) -> int:
        return (
            self.settings.train_batch_size * self.settings.gradient_accumulation_steps * self.accelerator.num_processes
        )

    def main_first(self, work: Any) -> None:
        """Work of the main process; its error becomes everybody's, so that nobody waits for it for ever."""
        error = None
        if self.is_main:
            try:
                work()
            except CardioDiTError as problem:
                error = str(problem)
        error = share(error, self.accelerator)
        if error is not None:
            raise CardioDiTError(error)

    def keep(self, parts: Sequence[Part], optimizers: Sequence[tuple[Any, float]]) -> None:
        """What checkpoints hold, and each optimizer with its highest rate. Goes on where a checkpoint stopped."""
        self._parts, self._optimizers = list(parts), list(optimizers)
        checkpoint = self._checkpoint_to_resume()
        if checkpoint is not None:
            for part in self._parts:
                part.load(checkpoint.folder)
            state = checkpoint.state()
            self.step = state["step"]
            self.record.check_step_size(state["samples_a_step"], self.samples_a_step)
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.say(f"Going on after step {self.step} of {self.folder.name}.")
        self.best = self._best_so_far()
        self.metrics.start(self.step)

    def _best_so_far(self) -> float | None:
        best = Checkpoint(self.folder / "best")
        if not best.folder.is_dir():
            return None
        if why := best.damage():
            self.say(f"{best.folder} is damaged ({why}); the next validation will replace it.")
            return None
        return best.state()["value"]

    def _checkpoint_to_resume(self) -> Checkpoint | None:
        where = self.request.options.resume_from_checkpoint
        if where not in ("latest", "never"):
            return given_checkpoint(Path(where))
        found: tuple[str | None, list[str]] = (None, [])
        if self.is_main:
            newest, damaged = newest_sound(self.folder)
            found = (None if newest is None else str(newest.folder), damaged)
        path, damaged = share(found, self.accelerator)
        for sentence in damaged:
            self.say(sentence)
        if path is not None and where == "never":
            raise CardioDiTError(
                f"The run {self.folder} has begun already ({Path(path).name}). Choose another --run_name, or leave "
                "--resume_from_checkpoint out to go on with it."
            )
        return None if path is None else Checkpoint(Path(path))

    def loader(self, dataset: Dataset) -> DataLoader:
        """This process's share of all steps that are left."""
        workers = self.settings.dataloader_num_workers
        part = Share(
            self.step,
            self.calendar.steps,
            self.settings.train_batch_size,
            self.settings.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return DataLoader(
            dataset,
            batch_sampler=part,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    # --- The loop ---

    def steps(self, loader: Iterable[Batch]) -> Iterator[tuple[int, list[Batch]]]:
        """Yields the number of each step left, from 0, with its batches; saves when due, stops when asked to.

        The batches of the next step are fetched and brought to the device meanwhile.
        """
        batches = iter(loader)

        def fetch() -> list[Batch]:
            return [self.to_device(next(batches)) for _ in range(self.settings.gradient_accumulation_steps)]

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-step") as ahead:
            coming = ahead.submit(fetch) if self.step < self.calendar.steps else None
            while coming is not None:
                began = time.perf_counter()
                fetched = coming.result()
                waited = time.perf_counter() - began
                is_last = self.step + 1 == self.calendar.steps
                coming = None if is_last else ahead.submit(fetch)
                self._prepare_step()
                self._stop = self._ending.asked
                yield self.step, fetched
                self.step += 1
                self.metrics.write(self.step, self._line, self._worked - began, waited)
                if self.step % self.settings.checkpointing_steps == 0 or self._stop or is_last:
                    self.save_checkpoint()
                if self._stop and not is_last:
                    self._leave()
                    return
        self.metrics.finish()

    def _prepare_step(self) -> None:
        """Everything that draws from torch's global generator (dropout, perceptual slices) does so by step."""
        draw = self.step * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(generator_for(seed_for(self.settings.seed, "step"), draw).initial_seed())
        self._line = {}
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.calendar.rate(self.step)

    def to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    @contextmanager
    def accumulating(self, model: Any, is_last: bool) -> Iterator[None]:
        """Gradients are exchanged between processes once a step, with its last batch; DeepSpeed then steps at once."""
        if is_last:
            yield
        else:
            self.accelerator.sync_gradients = False
            with self.accelerator.no_sync(model):
                yield
            self.accelerator.sync_gradients = True

    def backward(self, loss: torch.Tensor) -> None:
        """A batch's share of the step's gradient."""
        self.accelerator.backward(loss / self.settings.gradient_accumulation_steps)

    def log(self, parts: Mapping[str, float | torch.Tensor], subjects: Sequence[str] = ()) -> dict[str, float]:
        """Means of values over processes, for the step's record. A loss that is no number ends the run.

        Waits for the device, so it comes last in a step.
        """
        flag = float(self._stop is not None)
        device = self.accelerator.device
        total = torch.stack([torch.as_tensor(v, device=device).detach().float() for v in (*parts.values(), flag)])
        *means, stop = self.accelerator.reduce(total.clone(), reduction="mean").tolist()
        if stop and self._stop is None:
            self._stop = "a signal to another process"
        found = dict(zip(parts, means, strict=True))
        if not all(math.isfinite(value) for value in found.values()):
            self._stop_at_nan(dict(zip(parts, total.tolist(), strict=False)), subjects)
        self._line = {name: _number(value) for name, value in self._line.items()} | found
        self._worked = time.perf_counter()
        return found

    def _stop_at_nan(self, parts: Mapping[str, float], subjects: Sequence[str]) -> None:
        everybody = gather_objects([(dict(parts), list(subjects))], self.accelerator)
        broken = [(p, s) for p, s in everybody if not all(math.isfinite(value) for value in p.values())]
        told = "; ".join(
            f"{', '.join(f'{name} {value:g}' for name, value in p.items())} with the subjects {', '.join(s)}"
            for p, s in broken
        )
        raise CardioDiTError(
            f"Step {self.step + 1}: the loss is not a number: {told}. The run stopped before these weights were "
            f"saved; the last checkpoint in {self.folder} is good. Look at these volumes (cardiodit prepare), try a "
            "lower learning_rate, or mixed_precision bf16 instead of fp16."
        )

    def update(self, optimizer: Any, model: Any, name: str = "gradient_norm") -> None:
        """Clips the gradients and takes the optimizer's step; steps left out, as fp16 does, are counted and said."""
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if norm is not None:
            self._line[name] = norm  # a number in `log`, which waits for the device anyway
        if self.accelerator.optimizer_step_was_skipped:
            self._line["overflowed"] = 1.0
            self.say(f"Step {self.step + 1}: gradients overflowed, so the weights were left as they are.")

    def is_due(self, every: int) -> bool:
        """Whether something is due at the end of the present step; the end of a run is always one."""
        return (self.step + 1) % every == 0 or self.step + 1 == self.calendar.steps

    # --- Validation and saving ---

    def validated(self, values: Mapping[str, float], parts: Sequence[Part], by: str) -> None:
        """Records a validation, and keeps these parts as `best` if `by` is lower than it ever was."""
        self.metrics.write_validation(self.step + 1, values)
        value = values[by]
        if not math.isfinite(value):
            raise CardioDiTError(f"Step {self.step + 1}: the validation's {by} is not a number ({value}).")
        if self.best is not None and value >= self.best:
            return
        self.best = value
        gathered = [part.gather() for part in parts]
        if self.is_main:
            write_best(self.folder, self.step + 1, parts, gathered, {"measure": by, "value": value})
        self.accelerator.wait_for_everyone()

    def save_checkpoint(self) -> None:
        gathered = [part.gather() for part in self._parts]
        if self.is_main:
            scaler = self.accelerator.scaler
            info = {"samples_a_step": self.samples_a_step, "scaler": scaler.state_dict() if scaler else None}
            write_checkpoint(self.folder, self.step, self._parts, gathered, info)
            remove_old(self.folder, self.settings.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def _leave(self) -> None:
        self.was_interrupted = True
        self.metrics.finish()
        self.record.end("interrupted", self.step)
        self.say(f"Stopped by {self._stop} after step {self.step}; the same command goes on from there.")

    def finish(self) -> None:
        """The run is done: says so in its record."""
        self.record.end("finished", self.step)
        self.accelerator.end_training()

    def say(self, sentence: str) -> None:
        if self.is_main:
            self.accelerator.print(sentence, flush=True)


def _number(value: Any) -> float:
    return float(value.full_tensor() if isinstance(value, DTensor) else value)
