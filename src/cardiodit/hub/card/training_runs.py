"""Read what a training run recorded: settings, duration, hardware, versions, energy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cardiodit._util.foreign_files import read_object
from cardiodit._util.hashing import sha256_of
from cardiodit._util.typed_yaml import load_yaml, read_yaml
from cardiodit.energy import two_digits
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.hub.card.model_facts import Model, contains_weights
from cardiodit.hub.card.model_words import table
from cardiodit.hub.checks.files import absolute_paths
from cardiodit.systems import Stage, stages_by_script

RECORD, CONFIG = "run.json", "config.yaml"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TrainingRun:
    """A training run, as recorded in its folder.

    Args:
        folder: the run folder.
        record: content of `run.json`.
        config: content of `config.yaml`, without folders of the machine that it ran on.
        best: record of the best weights, if there are any.
        stage: the stage of a published system that it trained; None for other scripts.
    """

    folder: Path
    record: dict[str, Any]
    config: str
    best: dict[str, Any] | None
    stage: Stage | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def script(self) -> str:
        return str(self.record["stage"])

    @property
    def title(self) -> str:
        return self.script if self.stage is None else self.stage.title

    @property
    def sessions(self) -> list[dict[str, Any]]:
        return list(self.record["sessions"])

    @property
    def hardware(self) -> str:
        return ", ".join(sorted({f"{s['processes']} × {s['hardware']}" for s in self.sessions}))

    @property
    def energy(self) -> float | None:
        """Energy in kWh over all sessions; None if an older version of the package did not record it."""
        if not any("seconds" in s or "energy_kwh" in s for s in self.sessions):
            return None
        if any("energy_kwh" not in s for s in self.sessions if "seconds" in s):
            return None
        return float(sum(s.get("energy_kwh", 0.0) for s in self.sessions))

    @property
    def energy_reach(self) -> tuple[float, float] | None:
        """Multiples of the energy between which the true value lies; None if they were not recorded."""
        recorded = [s["energy"] for s in self.sessions if "energy" in s]
        if not self.energy or len(recorded) < sum("energy_kwh" in s for s in self.sessions):
            return None
        low, high = (float(sum(each["kwh_range"][end] for each in recorded)) for end in (0, 1))
        return low / self.energy, high / self.energy

    @property
    def electricity(self) -> list[dict[str, Any]]:
        """Where the electricity of each session came from, as far as it was recorded."""
        return [s["energy"]["electricity"] for s in self.sessions if "energy" in s]

    @property
    def is_at_least(self) -> bool:
        """True if some of the energy is unknown."""
        return bool(self.killed) or any(s["energy"]["is_at_least"] for s in self.sessions if "energy" in s)

    @property
    def energy_method(self) -> str:
        return "; ".join(dict.fromkeys(s["energy_method"] for s in self.sessions if s.get("energy_method")))

    @property
    def killed(self) -> int:
        """Number of sessions that were killed; their time and their energy after the last checkpoint are unknown."""
        return sum("seconds" not in s for s in self.sessions)

    def describe(self, folder: Path) -> str:
        """Return a table and the config, for the card of a pipeline folder."""
        heading = f"### {self.title} (`{self.script}`)"
        folded = f"<details><summary>Configuration</summary>\n\n```yaml\n{self.config}```\n\n</details>"
        return f"{heading}\n\n{table({**self._rows(), **self._origin(folder)})}\n\n{folded}"

    def _rows(self) -> dict[str, str]:
        record, last = self.record, self.sessions[-1]
        rows = {
            "Volumes trained on": record["samples"],
            "Samples a step": record.get("samples_a_step", "not recorded"),
            "Steps": last.get("last_step", "not recorded"),
            "Seed": record["seed"],
            "Hardware": self.hardware,
            "Precision": ", ".join(sorted({_precision(s.get("mixed_precision")) for s in self.sessions})),
            "Duration": self._duration(),
            "Energy": self.energy_in_words(),
            "Versions": ", ".join(f"{name} {version}" for name, version in last["versions"].items()),
        }
        if self.best is not None:
            measure = str(self.best["measure"]).replace("_", " ")
            rows["Steps"] = f"{last.get('last_step', self.best['step'])}, the best of them {self.best['step']}"
            rows[f"Lowest {measure}"] = f"{self.best['value']:.5g}"
        if identity := record.get("data", {}).get("training_data"):
            rows["Identity of the training data"] = f"`{identity[:16]}`"
        return rows

    def made(self, folder: Path) -> bool | None:
        """Tell whether a pipeline folder holds this run's best weights, byte for byte; None if that is unknown."""
        if self.stage is None:
            return None
        weights = f"{self.stage.component}/{WEIGHTS}"
        trained = (self.best or {}).get("files", {}).get(weights)
        if trained is None or not (folder / weights).is_file():
            return None
        if self._was_extended_in(folder):
            own = self.folder / "best" / weights
            return contains_weights(folder / weights, own) if own.is_file() else None
        return bool(sha256_of(folder / weights) == trained)

    @property
    def is_lora(self) -> bool:
        """True if the run trained a LoRA adapter, which is merged into the weights of the pipeline."""
        return bool((load_yaml(self.config).get("training") or {}).get("lora_rank"))

    def _origin(self, folder: Path) -> dict[str, str]:
        made = self.made(folder)
        if self.is_lora:
            origin = "a LoRA adapter trained by this run, merged into the model that it started from"
        elif made is None:
            return {}
        elif not made:
            origin = "differ from the file that this run kept as its best"
        elif self._was_extended_in(folder):
            origin = "those that this stage trained are identical, number by number, to this run's best step"
        else:
            origin = "byte for byte those of this run's best step"
        return {"Weights in this folder": origin}

    def _was_extended_in(self, folder: Path) -> bool:
        """Tell whether a later stage added weights to the component that this run trained."""
        if self.stage is None:
            return False
        return not self.stage.trains(_read_json(folder / self.stage.component / "config.json"))

    def energy_in_words(self) -> str:
        if self.energy is None:
            return "not recorded"
        least = "at least " if self.is_at_least else ""
        return f"{least}{two_digits(self.energy):g} kWh ({self.energy_method or 'method not recorded'})"

    def _duration(self) -> str:
        seconds, count = sum(s.get("seconds", 0.0) for s in self.sessions), len(self.sessions)
        took = (
            f"{seconds / 3600:.1f} h"
            if seconds >= 7200
            else f"{seconds / 60:.1f} min"
            if seconds >= 60
            else f"{seconds:g} s"
        )
        killed = f"; {self.killed} of them were killed, and their time is unknown" if self.killed else ""
        return f"{took} in {count} session{'s' if count > 1 else ''}, {record_days(self.record)}{killed}"


def missing_stages(model: Model, runs: Sequence[TrainingRun]) -> list[str]:
    """Return the titles of the stages that shaped a model and that none of the runs covers."""
    covered = [run.stage for run in runs]
    return [stage.title for stage in model.system.stages_of(model.networks) if stage not in covered]


def record_days(record: dict[str, Any]) -> str:
    """Return the first and the last day of a run."""
    began, ended = (str(record.get(key, ""))[:10] for key in ("began", "ended"))
    return began if ended in ("", began) else f"{began} to {ended}"


def read_run(folder: Path) -> TrainingRun:
    """Read a run folder; it must have a record and a config, but may lack best weights."""
    if not (folder / RECORD).is_file():
        raise CardioDiTError(f"{folder} contains no {RECORD}, so it is not a training run.")
    try:
        record = _read_json(folder / RECORD)
        config = read_yaml(folder / CONFIG)
        best_file = folder / "best" / "state.json"
        best = _read_json(best_file) if best_file.is_file() else None
        run = TrainingRun(folder, record, _to_yaml(config), best, _stage_of(folder, record, config))
        run.describe(folder)
    except Exception as error:  # a record may hold anything
        reason = str(error) if isinstance(error, CardioDiTError) else f"{type(error).__name__}: {reason_of(error)}"
        raise CardioDiTError(f"The record of the run {folder} is damaged ({reason}).") from error
    return run


def _stage_of(folder: Path, record: dict[str, Any], config: dict[str, Any]) -> Stage | None:
    """Find the stage; where a script trains several, the model that was made decides, or else the run's config."""
    for _, stage in stages_by_script(str(record["stage"])):
        made = folder / "best" / stage.component / "config.json"
        if stage.trains(_read_json(made) if made.is_file() else config.get("model") or {}):
            return stage
    return None


def _read_json(path: Path) -> Any:
    return read_object(path)


def _to_yaml(config: Any) -> str:
    return yaml.safe_dump(_without_folders(config), sort_keys=False, default_flow_style=None, width=110)


def _without_folders(value: Any) -> Any:
    """Reduce absolute paths, which can reveal people and machines, to their last component."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and absolute_paths(value):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def _precision(mixed: str | None) -> str:
    return "float32" if mixed in (None, "no") else f"mixed ({mixed})"
