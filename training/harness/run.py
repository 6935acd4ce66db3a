"""A training run: its processes, its folder, its steps, its checkpoints and how it resumes."""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Subset

from cardiodit._util.atomic_io import restore_folder
from cardiodit._util.gpu import upload
from cardiodit._util.interrupts import ignore_interrupts, typed_command
from cardiodit._util.launch import leave_group
from cardiodit._util.randomness import generator_for
from cardiodit._util.terminal import say
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
from cardiodit.training.harness.estimate import Estimated, estimated_steps
from cardiodit.training.harness.metrics import Metrics
from cardiodit.training.harness.processes import CTRL_C, SignalHandler, gather_objects, share, start_accelerator
from cardiodit.training.harness.run_record import RunRecord
from cardiodit.training.harness.schedule import DistributedSampler, Schedule, seed_for
from cardiodit.training.harness.state import Checkpointable, Tensors
from cardiodit.training.settings import MEMORIZING, Training

Batch = dict[str, Any]
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Logged:
    """The measurements of a step, while they are copied from the device.

    Args:
        step: number of steps done with it.
        own: values of this process, by name.
        means: their means over all processes, then two flags; on the CPU once `has_arrived`.
        has_arrived: event of the copy; None on a CPU.
        numbers: further values, known without the device.
        losses: names of those that must be numbers.
        subjects: subjects of the batches.
        began, waited: when the step began, and seconds that it waited for data.
    """

    step: int
    own: dict[str, torch.Tensor]
    means: torch.Tensor
    has_arrived: torch.cuda.Event | None
    numbers: dict[str, float]
    losses: list[str]
    subjects: list[str]
    began: float
    waited: float


class Run:
    """The training of one stage.

    `open` claims the run folder, `register` names what checkpoints hold and resumes, `steps` is the training loop.

    Args:
        request: settings and options from the command line.
        stage: name of the script, for the record.
    """

    def __init__(self, request: Request, stage: str) -> None:
        self.settings: Training = request.settings.training
        self.request = request
        self.folder: Path = request.folder
        self.accelerator = start_accelerator(self.settings, request.options.cpu, self.folder)
        deepspeed.check(self.accelerator, stage)
        self.precision: str = self.accelerator.mixed_precision  # DeepSpeed, once configured, hides it
        self.is_main = self.accelerator.is_main_process
        self.record = RunRecord(self.folder, request, stage, self.accelerator)
        self.step = 0  # steps done
        self.was_interrupted = False
        self.best: float | None = None
        self._parts: list[Checkpointable] = []
        self._optimizers: list[tuple[Any, float]] = []
        self._line: dict[str, Any] = {}
        self._logged: Logged | None = None  # of the step before, until its values have arrived
        self._stop: str | None = None
        self.ended_early = False  # before the last step of the schedule, and not to be resumed
        self._saved = time.monotonic()  # when the last checkpoint was begun
        self._is_time_to_save = False
        self._signals = SignalHandler()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._began = self._waited = 0.0  # when the current step began, and its wait for data
        self._arrived = 0.0  # when the values of a step arrived last

    def __enter__(self) -> "Run":
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type | None, *_: object) -> bool:
        self._signals.__exit__()
        self._writer.shutdown()  # what is being written is finished, also after an error
        if self.request.options.estimate:
            shutil.rmtree(self.request.options.output_dir, ignore_errors=True)
        if kind is Estimated:
            leave_group()
            return True
        if kind is not None and self.is_main:
            self.record.end("interrupted" if self._signals.received == CTRL_C else "failed", self.step, is_whole=False)
        if self._signals.received == CTRL_C and (self.was_interrupted or kind is not None):
            # What fails after Ctrl-C, such as the connection to a process that has ended, fails because of it.
            raise KeyboardInterrupt(*(["a checkpoint was saved"] if self.was_interrupted else [])) from None
        return False

    # --- Start ---

    def open(self, samples: int, data: Mapping[str, Any]) -> None:
        """Claim the run folder for these settings and this data, and compute the schedule.

        Args:
            samples: number of training samples.
            data: identities of all data, which must be the same when the run resumes.
        """
        self.schedule = Schedule.of(self.settings, samples, self.accelerator.num_processes)
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            restore_folder(self.folder / "best")
        self.main_first(lambda: self.record.claim(samples, data, self.samples_a_step))
        deepspeed.configure(self.accelerator, self.settings)  # the record has read the precision
        self.metrics = Metrics(self.folder, self.schedule, self.samples_a_step, self.accelerator)

    @property
    def samples_a_step(self) -> int:
        return self.samples_a_pass * self.settings.gradient_accumulation_steps

    @property
    def samples_a_pass(self) -> int:
        """Samples of all processes in one forward pass."""
        return self.settings.train_batch_size * self.accelerator.num_processes

    def main_first(self, work: Any) -> None:
        """Do work on the main process; its error is raised on every process, so that none waits for it forever."""
        error = None
        if self.is_main:
            try:
                work()
            except CardioDiTError as problem:
                error = str(problem)
        error = share(error, self.accelerator)
        if error is not None:
            raise CardioDiTError(error)

    def together(self, work: Callable[[], object]) -> None:
        """Do work on every process; the errors of all are raised on every process."""
        errors = []
        try:
            work()
        except CardioDiTError as problem:
            errors.append(str(problem))
        if found := gather_objects(errors, self.accelerator):
            raise CardioDiTError("\n".join(dict.fromkeys(found)))

    def register(self, parts: Sequence[Checkpointable], optimizers: Sequence[tuple[Any, float]]) -> None:
        """Register what checkpoints hold and each optimizer with its highest rate; resume from a checkpoint."""
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
            self.say(f"Resuming {self.folder.name} after step {self.step}.")
            if state.get("ended_early") and getattr(self.settings, "stop_when", None) == MEMORIZING:
                self.ended_early = True
                self.say("This run ended there because the model began to memorize; --stop_when finished trains on.")
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
        newest: tuple[str | None, list[str]] = (None, [])
        if self.is_main:
            checkpoint, damaged = newest_sound(self.folder)
            newest = (None if checkpoint is None else str(checkpoint.folder), damaged)
        path, damaged = share(newest, self.accelerator)
        for sentence in damaged:
            self.say(sentence)
        if path is not None and where == "never":
            raise CardioDiTError(
                f"The run {self.folder} already exists ({Path(path).name}). Choose another --run_name, or omit "
                "--resume_from_checkpoint to resume it."
            )
        return None if path is None else Checkpoint(Path(path))

    def loader(self, dataset: Dataset) -> DataLoader:
        """Load this process's samples of all remaining steps."""
        workers = self.settings.dataloader_num_workers
        batches = DistributedSampler(
            self.step,
            self.schedule.steps,
            self.settings.train_batch_size,
            self.settings.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=ignore_interrupts,
            persistent_workers=workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def validation_loader(self, dataset: Dataset, one_by_one: bool = False) -> DataLoader:
        """Load this process's samples of a validation set, whose size is a multiple of `samples_a_pass`."""
        places = range(self.accelerator.process_index, len(dataset), self.accelerator.num_processes)  # type: ignore
        workers = min(1, self.settings.dataloader_num_workers)
        return DataLoader(
            Subset(dataset, places),
            1 if one_by_one else self.settings.train_batch_size,
            num_workers=workers,
            worker_init_fn=ignore_interrupts,
        )

    # --- The loop ---

    def steps(self, loader: Iterable[Batch]) -> Iterator[tuple[int, list[Batch]]]:
        """Yield the number of each remaining step, counted from 0, with its batches; save when due, stop on a signal.

        Meanwhile, the batches of the next step are loaded, and the first one is moved to the device; `accumulating`
        moves the others one ahead of their use, so that no more than two batches of a step are on the device.
        """
        batches, began = iter(loader), self.step

        def fetch() -> list[Batch]:
            first, *others = (next(batches) for _ in range(self.settings.gradient_accumulation_steps))
            return [self.to_device(first), *others]

        if self.request.options.estimate:
            yield from estimated_steps(self, fetch)

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-step") as ahead:
            coming = ahead.submit(fetch) if self.step < self.schedule.steps and not self.ended_early else None
            self._signals.in_step = True
            while coming is not None:
                self._began = time.perf_counter()
                fetched = coming.result()
                self._waited = time.perf_counter() - self._began
                is_last = self.step + 1 == self.schedule.steps
                coming = None if is_last else ahead.submit(fetch)
                self.prepare_step()
                yield self.step, fetched
                self.step += 1
                self.record.forecast(self.step - began, self.schedule.steps - began)
                if self.accelerator.num_processes == 1:  # several stop when all have heard of it
                    self._stop = self._stop or self._signals.received
                is_due = self._is_time_to_save or self.step % self.settings.checkpointing_steps == 0
                if is_due or self._stop or is_last or self.ended_early:
                    self.save_checkpoint()
                if self.ended_early:
                    break
                if self._stop and not is_last:
                    self._leave()
                    return
        self.everything_written()
        self._signals.in_step = False
        self.metrics.finish()

    def prepare_step(self) -> None:
        """Seed torch's global generator, from which dropout and perceptual slices are drawn, and set the rates."""
        draw = self.step * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(generator_for(seed_for(self.settings.seed, "step"), draw).initial_seed())
        self._line = {}
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.schedule.rate(self.step)

    def to_device(self, item: Any) -> Any:
        """Return a tensor, or a batch or tuple with its tensors, on the run's device."""
        if isinstance(item, torch.Tensor):
            return item.to(self.accelerator.device, non_blocking=True)
        if isinstance(item, tuple):
            return tuple(map(self.to_device, item))
        return {key: self.to_device(value) for key, value in item.items()} if isinstance(item, dict) else item

    def accumulating(self, model: Any, batches: Sequence[Item]) -> Iterator[Item]:
        """Yield a step's batches on the device; with the last one, gradients are exchanged, and DeepSpeed steps."""
        coming = self.to_device(batches[0])
        for following in batches[1:]:
            batch, coming = coming, self.to_device(following)
            self.accelerator.sync_gradients = False
            with self.accelerator.no_sync(model):
                yield batch
            self.accelerator.sync_gradients = True
        yield coming

    def backward(self, loss: torch.Tensor) -> None:
        """Add a batch's share of the step's gradient."""
        self.accelerator.backward(loss / self.settings.gradient_accumulation_steps)

    def log(self, parts: Mapping[str, float | torch.Tensor], batches: Sequence[Batch] = ()) -> None:
        """Record the means of a step's values over all processes; end the run if one is not a number.

        The device is not waited for: the values are read while it computes the next step, or before anything is saved.
        Numbers that are no tensors must be the same on all processes. The error names the subjects of the batches.
        """
        self.settle()
        minutes = self.settings.checkpointing_minutes
        is_time = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        device, values = self.accelerator.device, {**self._line, **parts}
        own = {name: _scalar(value) for name, value in values.items() if isinstance(value, torch.Tensor)}
        flags = upload(torch.tensor([float(self._signals.received is not None), float(is_time)]), device)
        means = self.accelerator.reduce(torch.cat([torch.stack(list(own.values())), flags]), reduction="mean")
        means = means.to("cpu", non_blocking=True)
        has_arrived = torch.cuda.Event() if device.type == "cuda" else None
        if has_arrived is not None:
            has_arrived.record()
        numbers = {name: value for name, value in values.items() if name not in own}
        subjects = [subject for batch in batches for subject in batch["subject"]]
        self._logged = Logged(
            self.step + 1, own, means, has_arrived, numbers, list(parts), subjects, self._began, self._waited
        )

    def settle(self) -> None:
        """Read and write the values that were logged last, and what the processes agreed on with them."""
        logged, self._logged = self._logged, None
        if logged is None:
            return
        if logged.has_arrived is not None:
            logged.has_arrived.synchronize()
        *means, stop, time_to_save = logged.means.tolist()
        self._is_time_to_save = self._is_time_to_save or time_to_save > 0
        if stop and self._stop is None:
            self._stop = self._signals.received or "a signal to another process"
        values = {**logged.numbers, **dict(zip(logged.own, means, strict=True))}
        if not all(math.isfinite(values[name]) for name in logged.losses):
            self._stop_at_nan(logged)
        since, self._arrived = max(self._arrived, logged.began), time.perf_counter()
        self.metrics.write(logged.step, values, self._arrived - since, logged.waited)

    def _stop_at_nan(self, logged: Logged) -> None:
        parts = {name: value.item() for name, value in logged.own.items() if name in logged.losses}
        processes = gather_objects([(parts, logged.subjects)], self.accelerator)
        broken = [(p, s) for p, s in processes if not all(math.isfinite(value) for value in p.values())]
        listed = "; ".join(
            f"{', '.join(f'{name} {value:g}' for name, value in p.items())} with the subjects {', '.join(s)}"
            for p, s in broken
        )
        raise CardioDiTError(
            f"Step {logged.step}: the loss is not a number: {listed}. The run stopped before these weights were "
            f"saved; the last checkpoint in {self.folder} is good. Check these volumes (cardiodit prepare), try a "
            "lower learning_rate, or mixed_precision bf16 instead of fp16."
        )

    def update(self, optimizer: Any, model: Any, name: str = "gradient_norm") -> None:
        """Clip the gradients and take the optimizer's step; report a step that fp16 skips."""
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if norm is not None:
            self._line[name] = norm  # a tensor, read with the losses
        if self.accelerator.optimizer_step_was_skipped:
            self._line["overflowed"] = 1.0
            self.say(f"Step {self.step + 1}: gradients overflowed, so the weights were not updated.")

    def is_due(self, every: int) -> bool:
        """Return whether something is due after the current step; everything is due after the last one."""
        return (self.step + 1) % every == 0 or self.step + 1 == self.schedule.steps

    # --- Validation and saving ---

    def end_early(self) -> None:
        """End the run after the current step, as after the last one."""
        self.ended_early = True

    def validated(
        self, values: Mapping[str, float], parts: Sequence[Checkpointable], by: str, may_be_best: bool = True
    ) -> None:
        """Record a validation, and save these parts as `best` if the value of `by` is the lowest so far."""
        self.settle()
        self.metrics.write_validation(self.step + 1, values)
        value = values[by]
        if not math.isfinite(value):
            raise CardioDiTError(f"Step {self.step + 1}: {by} is not a number ({value}).")
        if self.best is not None and (value >= self.best or not may_be_best):
            return
        self.best = value
        info = {"measure": by, "value": value}

        def write(gathered: Sequence[Tensors], step: int = self.step + 1) -> None:
            write_best(self.folder, step, parts, gathered, info)

        self._write(parts, write)

    def save_checkpoint(self) -> None:
        self.settle()
        self.record.note_energy(self.step)
        self._saved, self._is_time_to_save = time.monotonic(), False
        scaler = self.accelerator.scaler
        info = {"samples_a_step": self.samples_a_step, "scaler": scaler.state_dict() if scaler else None}
        info |= {"ended_early": True} if self.ended_early else {}

        def write(gathered: Sequence[Tensors], step: int = self.step) -> None:
            write_checkpoint(self.folder, step, self._parts, gathered, info)
            remove_old(self.folder, self.settings.checkpoints_total_limit)

        self._write(self._parts, write)

    def _write(self, parts: Sequence[Checkpointable], write: Callable[[Sequence[Tensors]], None]) -> None:
        """Copy the parts to the CPU and write them in the background; only sharded parts concern every process."""
        self.wait_for_writing()
        if self.is_main or self.accelerator.distributed_type in SHARDED:
            gathered = [part.gather() for part in parts]
            if self.is_main:
                self._writing = self._writer.submit(write, gathered)

    def wait_for_writing(self) -> None:
        """Wait until what was saved last is on the disk; raise an error if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def everything_written(self) -> None:
        """Wait until the main process has written what was saved last."""
        self.main_first(self.wait_for_writing)

    def _leave(self) -> None:
        self.was_interrupted = True
        self.everything_written()
        self._signals.in_step = False
        self.metrics.finish()
        self.record.end("interrupted", self.step)
        self.say(
            f"Stopped by {self._stop} after step {self.step}; the same command resumes from there.\n  {typed_command()}"
        )

    def finish(self) -> None:
        """Record that the run is finished."""
        self.record.end("finished", self.step)
        leave_group()  # end_training leaves it as well, but without giving the last exchange time to end
        self.accelerator.end_training()

    def say(self, sentence: str) -> None:
        if self.is_main:
            say(sentence)


def _scalar(value: torch.Tensor) -> torch.Tensor:
    """Return a scalar in float32, whole if it is sharded over processes."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().float().reshape(())
