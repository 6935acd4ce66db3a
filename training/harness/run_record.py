"""Record of a run: `config.yaml`, and `run.json` with versions, hardware, seed and identities of the data."""

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import read_object
from cardiodit._util.typed_yaml import read_yaml, to_yaml
from cardiodit.energy import Energy, EnergyMeter, sum_energies
from cardiodit.energy.electricity import choose_electricity, footprint_of
from cardiodit.energy.records import Comparison
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.command_line import Request
from cardiodit.training.harness.processes import gather_objects

CONFIG, RECORD = "config.yaml", "run.json"
PLACE = ("country", "pue", "months")  # options that say where the electricity comes from
FORECAST_STEPS = (
    20  # steps from which the energy of a session is forecast, after the first, which allocates and compiles
)
PACKAGES = ("cardiodit", "torch", "diffusers", "accelerate", "huggingface-hub", "safetensors", "monai", "numpy", "peft")
# Keys that may change when a run resumes: they change neither the samples nor the loss.
CHANGEABLE = (
    *("num_train_epochs", "max_train_steps", "train_batch_size", "gradient_accumulation_steps"),
    *("mixed_precision", "gradient_checkpointing", "compile", "allow_tf32", "deterministic", "dataloader_num_workers"),
    *(
        "checkpointing_steps",
        "checkpointing_minutes",
        "checkpoints_total_limit",
        "validation_epochs",
        "validation_steps",
        "report_to",
    ),
    *("preview_epochs", "preview_steps", "preview_samples", "preview_inference_steps", "preview_guidance_scale"),
    *("cache", "cache_dir", "workers", "stop_when", "memorizing_gap"),
)


class RunRecord:
    """Read and write the record; refuse settings or data that contradict an existing one."""

    def __init__(self, folder: Path, request: Request, stage: str, accelerator: Accelerator) -> None:
        self.folder = folder
        self.request = request
        self.stage = stage
        self.accelerator = accelerator
        self.began = time.time()
        self.electricity = choose_electricity(*(getattr(request.options, name, None) for name in PLACE))
        self.meter = EnergyMeter(accelerator.device)
        self._of_others: list[Energy] = []  # of the other processes, when they last met
        self._after_first_step = 0.0  # kWh
        self._forecast: Comparison | None = None

    def claim(self, samples: int, data: Mapping[str, Any], samples_a_step: int) -> None:
        """Claim the folder for this run, or check that it belongs to it."""
        config = to_yaml(asdict(self.request.settings))
        held = self._read()
        if held is None:
            if unexpected := sorted({path.name for path in self.folder.iterdir()} - {CONFIG}):
                raise CardioDiTError(
                    f"The folder {self.folder} contains {', '.join(unexpected[:5])} and is not a run folder. Choose "
                    "another --output_dir or --run_name."
                )
            held = {"stage": self.stage, "began": _now(), "data": dict(data), "sessions": []}
        else:
            self._compare(held, config, data)
        held["sessions"] = [*held["sessions"], self._session()]
        with atomic_file(self.folder / CONFIG) as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False))
        facts = {"seed": config["training"]["seed"], "samples": samples, "samples_a_step": samples_a_step}
        self._write({**held, **facts, "status": "running"})

    def _compare(self, held: dict[str, Any], config: dict[str, Any], data: Mapping[str, Any]) -> None:
        if held["stage"] != self.stage:
            raise CardioDiTError(
                f"{self.folder} is a run of {held['stage']}, not of {self.stage}. Choose another --run_name."
            )
        try:
            before = dict(_leaves(read_yaml(self.folder / CONFIG)))
        except CardioDiTError as error:
            raise CardioDiTError(f"{self.folder / CONFIG} cannot be read, so the run cannot resume.") from error
        now = dict(_leaves(config))
        defaults = dict(_leaves(to_yaml(asdict(type(self.request.settings)()))))
        before = {**{key: defaults.get(key) for key in now}, **before}  # older versions had fewer keys
        changed = [
            f"{key} was {before.get(key)}, now {now.get(key)}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and key.rpartition(".")[2] not in CHANGEABLE
        ]
        changed += [f"{name} has changed" for name, value in data.items() if held["data"].get(name) != value]
        if changed:
            listed = "".join(f"\n  - {sentence}" for sentence in changed)
            tuning = f"; with --init_from {self.folder / 'best'} it starts from this run's weights"
            can_tune = hasattr(self.request.options, "init_from")
            raise CardioDiTError(
                f"The run {self.folder} started with other settings or data:{listed}\nUse the same to resume it, or "
                f"start a new run with another --run_name{tuning if can_tune else ''}."
            )

    def check_step_size(self, before: int, now: int) -> None:
        if before != now:
            raise CardioDiTError(
                f"The checkpoint was written with {before} samples per step, now there are {now}. Choose "
                "train_batch_size and gradient_accumulation_steps so that, with "
                f"{self.accelerator.num_processes} processes, they give {before}."
            )

    def note_energy(self, step: int) -> None:
        """Record the energy so far, so that a run that is killed keeps it up to its last checkpoint.

        All processes call it, since each measures its own.
        """
        self._of_others = gather_objects([self.meter.read()], self.accelerator)[1:]
        self._update({"last_step": step, **self._energy(is_whole=True)})

    def forecast(self, done: int, total: int) -> None:
        """Forecast the energy of this session from its first steps; all processes call it after each step.

        Args:
            done, total: steps of this session.
        """
        counted = min(FORECAST_STEPS, (total - 1) // 2)
        if done == 1:
            self._after_first_step = self.meter.read().kwh
        elif counted and done == 1 + counted:
            own = self.meter.read().kwh
            own += (own - self._after_first_step) / counted * (total - done)
            self._forecast = Comparison(sum(gather_objects([own], self.accelerator)), 0.0, f"steps 2 to {done}")
            self._update({"forecast": self._forecast.to_dict()})

    def end(self, status: str, step: int, is_whole: bool = True) -> None:
        """Record how this session ended, how long it took and what it used.

        Args:
            status: "finished", "interrupted" or "failed".
            step: steps done.
            is_whole: whether all processes call it; otherwise those of the others count as when they last met.
        """
        if is_whole:
            self._of_others = gather_objects([self.meter.read()], self.accelerator)[1:]
        changes = {"seconds": round(time.time() - self.began, 1), "last_step": step, **self._energy(is_whole)}
        if self._forecast and status == "finished":
            changes["forecast"] = replace(self._forecast, measured=changes["energy"]["kwh"]).to_dict()
        self._update(changes, status=status, ended=_now())

    def _energy(self, is_whole: bool) -> dict[str, Any]:
        energy = sum_energies([self.meter.read(), *self._of_others])
        footprint = footprint_of(energy, self.electricity, datetime.fromtimestamp(self.began, UTC)).to_dict()
        footprint["is_at_least"] |= not is_whole and self.accelerator.num_processes > 1
        return {"energy_kwh": footprint["kwh"], "energy_method": energy.method, "energy": footprint}

    def _update(self, changes: Mapping[str, Any], **more: Any) -> None:
        """Change what the record says of this session, and of the run."""
        held = self._read() if self.accelerator.is_main_process else None
        if held is not None:
            held["sessions"][-1] |= changes
            self._write({**held, **more})

    @property
    def seconds(self) -> float:
        """Seconds of all sessions that were not killed."""
        held = self._read() or {"sessions": []}
        return sum(session.get("seconds", 0.0) for session in held["sessions"])

    def _session(self) -> dict[str, Any]:
        device = self.accelerator.device
        return {
            "began": _now(),
            "versions": versions(),
            "python": platform.python_version(),
            "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "processes": self.accelerator.num_processes,
            "distribution": self.accelerator.distributed_type.value,
            "mixed_precision": self.accelerator.mixed_precision,
        }

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / RECORD
        if not path.is_file():
            return None
        try:
            return read_object(path, ["stage", "data", "sessions"])
        except CardioDiTError as error:
            raise CardioDiTError(
                f"{path} is damaged, so the run cannot resume. Restore it or start a new run."
            ) from error

    def _write(self, record: dict[str, Any]) -> None:
        with atomic_file(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that matter."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def _processor() -> str:
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _leaves(config: dict[str, Any], at: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in config.items():
        leaves += _leaves(value, f"{at}{key}.") if isinstance(value, dict) else [(f"{at}{key}", value)]
    return leaves
