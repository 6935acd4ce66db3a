"""Record of a run: `config.yaml`, and `run.json` with versions, hardware, seed and identities of the data."""

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
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
from cardiodit.energy import EnergyMeter
from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.command_line import Request

CONFIG, RECORD = "config.yaml", "run.json"
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
        self.meter = EnergyMeter(accelerator.device)

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

    def end(self, status: str, step: int) -> None:
        """Record how this session ended and how long it took."""
        held = self._read()
        if not self.accelerator.is_main_process or held is None:
            return
        energy, processes = self.meter.read(), self.accelerator.num_processes
        held["sessions"][-1] |= {
            "seconds": round(time.time() - self.began, 1),
            "last_step": step,
            "energy_kwh": float(f"{energy.kwh * processes:.4g}"),  # all processes do the same work
            "energy_method": energy.method if processes == 1 else f"{energy.method}, times {processes} processes",
        }
        self._write({**held, "status": status, "ended": _now()})

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
