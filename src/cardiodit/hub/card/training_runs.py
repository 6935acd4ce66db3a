"""What a training run's folder says of it: settings, duration, hardware, versions, energy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.model_facts import Model
from cardiodit.hub.card.model_words import table
from cardiodit.hub.card.weight_files import holds_all_of
from cardiodit.hub.checks.text import absolute_paths

RECORD, CONFIG = "run.json", "config.yaml"
PRDIT = "train_prdit"
LOCAL, REFINER = f"{PRDIT}, local", f"{PRDIT}, refiner"  # the stages of one script
STAGES = {
    "train_vqgan": "Stage 1, the autoencoder",
    "train_dit": "Stage 2, the denoiser",
    "train_tgca": "The adapter for masks",
    LOCAL: "Stage 1, the local denoiser",
    REFINER: "Stage 2, the refiner",
}
PARTS = {  # what each makes
    "train_vqgan": "vae",
    "train_dit": "transformer",
    "train_tgca": "adapter",
    LOCAL: "transformer",
    REFINER: "transformer",
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TrainingRun:
    """Args:
    folder: where it lies.
    record: `run.json`.
    config: `config.yaml`, without folders of the machine it ran on.
    best: what is known of its best weights, or None.
    kind: its stage, as `STAGES` names it.
    """

    folder: Path
    record: dict[str, Any]
    config: str
    best: dict[str, Any] | None
    kind: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def script(self) -> str:
        return str(self.record["stage"])

    @property
    def title(self) -> str:
        return STAGES.get(self.kind, self.kind)

    @property
    def sessions(self) -> list[dict[str, Any]]:
        return list(self.record["sessions"])

    @property
    def hardware(self) -> str:
        return ", ".join(sorted({f"{s['processes']} × {s['hardware']}" for s in self.sessions}))

    @property
    def energy(self) -> float | None:
        """kWh of the sessions that recorded it; None where an older version of the package recorded none."""
        ended = [s for s in self.sessions if "seconds" in s]
        if not ended or any("energy_kwh" not in s for s in ended):
            return None
        return float(sum(s["energy_kwh"] for s in ended))

    @property
    def energy_method(self) -> str:
        return "; ".join(dict.fromkeys(s["energy_method"] for s in self.sessions if s.get("energy_method")))

    @property
    def killed(self) -> int:
        """Sessions that ended without a word, so that neither their time nor their energy is known."""
        return sum("seconds" not in s for s in self.sessions)

    def described(self, folder: Path) -> str:
        """A table and the whole config, for the card of a pipeline folder."""
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
        """Whether a pipeline folder holds this run's best weights, byte for byte; None where nobody can tell."""
        weights = f"{PARTS.get(self.kind)}/{WEIGHTS}"
        trained = (self.best or {}).get("files", {}).get(weights)
        if trained is None or not (folder / weights).is_file():
            return None
        if self._is_only_local_part_of(folder):
            own = self.folder / "best" / weights
            return holds_all_of(folder / weights, own) if own.is_file() else None
        return bool(sha256_of(folder / weights) == trained)

    @property
    def is_adapter(self) -> bool:
        """Whether only an adapter was trained, which is merged into the weights of a pipeline."""
        return bool((yaml.safe_load(self.config).get("training") or {}).get("lora_rank"))

    def _origin(self, folder: Path) -> dict[str, str]:
        made = self.made(folder)
        if self.is_adapter:
            said = "an adapter that this run trained, merged into the model it began from"
        elif made is None:
            return {}
        elif not made:
            said = "not the file that this run kept as its best"
        elif self._is_only_local_part_of(folder):
            said = "of the local part, number by number those of this run's best step"
        else:
            said = "byte for byte those of this run's best step"
        return {"Weights in this folder": said}

    def _is_only_local_part_of(self, folder: Path) -> bool:
        """Whether a later run put a refiner on top of what this one trained."""
        return self.kind == LOCAL and _has_refiner(folder / "transformer")

    def energy_in_words(self) -> str:
        if self.energy is None:
            return "not recorded"
        return (
            f"{'at least ' if self.killed else ''}{self.energy:.4g} kWh ({self.energy_method or 'method not recorded'})"
        )

    def _duration(self) -> str:
        seconds, count = sum(s.get("seconds", 0.0) for s in self.sessions), len(self.sessions)
        took = (
            f"{seconds / 3600:.1f} h"
            if seconds >= 7200
            else f"{seconds / 60:.1f} min"
            if seconds >= 60
            else f"{seconds:g} s"
        )
        killed = f"; {self.killed} of them were killed, and their time is not known" if self.killed else ""
        return f"{took} in {count} session{'s' if count > 1 else ''}, {record_days(self.record)}{killed}"


def missing_stages(model: Model, runs: Sequence[TrainingRun]) -> list[str]:
    """Titles of the stages that a model has and none of the runs is of."""
    told = {run.kind for run in runs}
    return [STAGES[stage] for stage in stages_of(model) if stage not in told]


def stages_of(model: Model) -> list[str]:
    """Those that make such a model, in their order."""
    if model.vae is None:
        return [LOCAL, REFINER] if model.transformer["num_layers"] else [LOCAL]
    return [stage for stage, part in PARTS.items() if part in model.networks and stage not in (LOCAL, REFINER)]


def record_days(record: dict[str, Any]) -> str:
    """From when to when, in days."""
    began, ended = (str(record.get(key, ""))[:10] for key in ("began", "ended"))
    return began if ended in ("", began) else f"{began} to {ended}"


def read_run(folder: Path) -> TrainingRun:
    """Reads a run folder; the best weights may be missing, its record and its config not."""
    if not (folder / RECORD).is_file():
        raise CardioDiTError(f"{folder} holds no {RECORD}, so it is no training run.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        best_file = folder / "best" / "state.json"
        best = json.loads(best_file.read_text(encoding="utf-8")) if best_file.is_file() else None
        run = TrainingRun(folder, record, _as_yaml(config), best, _kind_of(folder, record, config))
        run.described(folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CardioDiTError(f"The record of the run {folder} is damaged ({type(error).__name__}: {error}).") from error
    return run


def _kind_of(folder: Path, record: dict[str, Any], config: dict[str, Any]) -> str:
    """Its stage; of PRDiT's two the model tells, since a config may leave that to the model it began with."""
    if record["stage"] != PRDIT:
        return str(record["stage"])
    made = folder / "best" / "transformer"
    refined = _has_refiner(made) if (made / "config.json").is_file() else config["model"]["num_layers"] > 0
    return REFINER if refined else LOCAL


def _has_refiner(transformer: Path) -> bool:
    config = json.loads((transformer / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("num_layers"))


def _as_yaml(config: Any) -> str:
    return yaml.safe_dump(_without_folders(config), sort_keys=False, default_flow_style=None, width=110)


def _without_folders(value: Any) -> Any:
    """A config's values; of absolute paths, which tell of people and machines, the last name only."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and absolute_paths(value):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return value


def _precision(mixed: str | None) -> str:
    return "float32" if mixed in (None, "no") else f"mixed ({mixed})"
